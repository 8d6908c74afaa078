"""Program and code objects in, a self-contained Python package on disk out."""
