"""The chips that forgec knows, by name.

In comes a target name, out goes its frozen ``Target``; an unknown name is an error that lists the known ones
and never a default. Only ``native`` looks at the machine it runs on; every other target can be had anywhere.
"""

from __future__ import annotations

import difflib

from forgec.errors import TargetError
from forgec.targets import gfx9, gfx10, gfx11, gfx12, nvptx
from forgec.targets.base import FAMILIES, Family, Target
from forgec.targets.cpu import X86_64_V3, Machine, native_target, read_machine
from forgec.targets.occupancy import occupancy

__all__ = [
    "FAMILIES",
    "Family",
    "Machine",
    "Target",
    "all_targets",
    "get_target",
    "native_target",
    "occupancy",
    "read_machine",
    "target_names",
]

_FIXED = (*gfx11.TARGETS, *gfx12.TARGETS, *gfx10.TARGETS, *gfx9.TARGETS, *nvptx.TARGETS, X86_64_V3)


def get_target(name: str) -> Target:
    """The target called ``name``, exactly as spelled.

    Raises: TargetError, with the known names, when there is none.
    """
    if name == "native":
        return native_target(read_machine())
    for target in _FIXED:
        if target.name == name:
            return target
    close = difflib.get_close_matches(name.lower(), target_names(), n=1)
    hint = f"did you mean '{close[0]}'? " if close else ""
    raise TargetError(f"unknown target '{name}'", f"{hint}known targets: {', '.join(target_names())}")


def all_targets() -> tuple[Target, ...]:
    """Every known target, ``native`` last."""
    return (*_FIXED, get_target("native"))


def target_names() -> tuple[str, ...]:
    """The names of ``all_targets()``, without looking at this machine."""
    return (*(target.name for target in _FIXED), "native")
