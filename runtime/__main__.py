"""``python PACKAGE_FOLDER …``: runs the command line of the package that this file lies in.

Python starts a folder's ``__main__.py`` without a parent package, and the folder may have a name that no
import statement can spell; so the package is imported from its path, under a fixed name.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path

_NAME = "forgec_package"
_NEEDED = ("numpy", "tokenizers", "jinja2")


def _main() -> Callable[[], int]:
    root = Path(__file__).resolve().parent
    # Python put the folder first on the path, where its modules would hide others of the same name.
    sys.path[:] = [entry for entry in sys.path if not entry or Path(entry).resolve() != root]
    spec = importlib.util.spec_from_file_location(
        _NAME, root / "__init__.py", submodule_search_locations=[str(root)]
    )
    assert spec is not None and spec.loader is not None
    package = importlib.util.module_from_spec(spec)
    sys.modules[_NAME] = package
    spec.loader.exec_module(package)
    main: Callable[[], int] = importlib.import_module(f"{_NAME}.cli").main
    return main


def _explain(error: Exception) -> int:
    """Say what is missing or damaged; returns the exit code."""
    name = error.name if isinstance(error, ModuleNotFoundError) else None
    if name in _NEEDED:
        print(f"error: the Python package '{name}' is missing", file=sys.stderr)
        print(f"hint: run: pip install {' '.join(_NEEDED)}", file=sys.stderr)
        return 1
    if name is not None and not name.startswith(f"{_NAME}."):
        raise error
    what = f"lacks '{name.rpartition('.')[2]}.py'" if name is not None else f"is damaged: {error}"
    print(f"error: the package '{Path(__file__).resolve().parent.name}' {what}", file=sys.stderr)
    print("hint: copy the whole folder again, or compile the model again", file=sys.stderr)
    return 8


if __name__ == "__main__":
    try:
        main = _main()
    except (ModuleNotFoundError, FileNotFoundError, SyntaxError, ValueError) as error:
        sys.exit(_explain(error))
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(main())
