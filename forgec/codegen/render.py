"""Parameters in, source text out: the one Jinja environment, which takes no decisions.

A stage's template is found by name, ``stages/<stage>.<family>.hip.j2`` before ``stages/<stage>.hip.j2``;
the only name in its context is the frozen parameter object ``k``. Nothing here compiles or plans.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import jinja2

from forgec.errors import VerifyError
from forgec.plan.stages import StageParams

__all__ = ["environment", "render_pool", "render_stage", "stage_template", "templates_dir"]


@cache
def templates_dir() -> Path:
    """The folder of templates: inside the installed package, or beside it in a source checkout."""
    package = Path(__file__).resolve().parent.parent
    for candidate in (package / "_templates", package.parent / "templates"):
        if (candidate / "stages").is_dir():
            return candidate
    raise VerifyError(f"no templates folder beside '{package}'", "Reinstall forgec.")


@cache
def environment() -> jinja2.Environment:
    """The code-generation environment: strict about undefined names, quiet about white space."""
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(templates_dir()),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )


def stage_template(stage: str, family: str) -> str:
    """Template name of a stage for a family: its own override if there is one, else the common text."""
    folder = templates_dir() / "stages"
    for name in (f"{stage}.{family}.hip.j2", f"{stage}.hip.j2"):
        if (folder / name).is_file():
            return f"stages/{name}"
    raise VerifyError(f"stage '{stage}' has no template in '{folder}'")


def render_stage(params: StageParams) -> str:
    """Source text of one kernel: freestanding HIP, CUDA or C++ by the family's prelude."""
    text = environment().get_template(stage_template(params.stage, params.family)).render(k=params)
    return _tidy(text)


def render_pool() -> str:
    """Source text (C) of the CPU thread pool."""
    return _tidy(environment().get_template("program/pool.cpu.c.j2").render())


def _tidy(text: str) -> str:
    """Squeeze runs of blank lines and trailing blanks that template blocks leave behind."""
    return re.sub(r"\n{3,}", "\n\n", re.sub(r"[ \t]+\n", "\n", text)).strip() + "\n"
