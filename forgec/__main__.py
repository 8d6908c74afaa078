"""``python -m forgec`` is the console script ``forgec``."""

from __future__ import annotations

from forgec.cli import main

if __name__ == "__main__":
    main()
