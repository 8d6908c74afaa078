"""forgec: an ahead-of-time compiler for language models.

One GGUF file goes in; one self-contained Python package, whose device code was specialised for that
model and one chip, comes out.
"""

__version__ = "0.1.0"
__all__ = ["__version__"]
