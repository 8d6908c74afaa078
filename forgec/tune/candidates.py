"""Candidate geometries of the matrix-vector kernels of a package, compiled into a folder.

A package's manifest goes in; kernels and the groups they belong to come out. Nothing here loads a device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from forgec.codegen.render import render_stage
from forgec.errors import PackageError
from forgec.plan.geometry import matvec_grid, matvec_tuning, retuned
from forgec.plan.stages import MatvecParams, RopeFields, Segment
from forgec.plan.tuning import Tuning, shape_class
from forgec.targets import Target, get_target
from forgec.toolchain import Cache, Unit, compile_units
from forgec.tune.groups import Candidate, Group, write_file, write_groups

__all__ = ["candidates_of", "groups_of", "matvec_params", "prepare"]

#: What is tried, besides what the table has: every combination that gives a kernel of its own.
BLOCKS = (128, 256, 512, 1024)
ROWS_PER_GROUP = (1, 2, 4)
SLICES_PER_LANE = (1, 4)
BLOCKS_PER_UNIT = (1, 2, 4, 8)
CPU_ROWS = (1, 2, 4, 8)


def matvec_params(data: Mapping[str, Any]) -> MatvecParams:
    """The parameters of a kernel as its manifest holds them. Raises PackageError."""
    try:
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}
        values["segments"] = tuple(Segment(**segment) for segment in values["segments"])
        if values["rope"] is not None:
            values["rope"] = RopeFields(**values["rope"])
        return MatvecParams(**values)
    except (KeyError, TypeError) as error:
        raise PackageError(
            f"the package's kernels are described in another way ({error})",
            "Compile the package again with this version of forgec.",
        ) from error


def candidates_of(params: MatvecParams, target: Target) -> Iterator[tuple[Tuning, MatvecParams, int]]:
    """(row of the table, parameters, grid) of every geometry worth timing, the present one first.

    The rows are keyed for this kernel, the present one too where it was a general one.
    """
    present = matvec_tuning(params.segments, params.cols, params.epilogue, target)
    shape = shape_class(params.epilogue, params.rows, params.cols)
    keyed = replace(present, format="+".join(params.formats), shape=shape, target=target.name)
    seen = set()
    for row in (keyed, *_rows(params, target)):
        tuned = retuned(params, row, target)
        grid = matvec_grid(tuned, row, target)
        # Some families do not use every number: what differs in nothing is one candidate.
        key = (render_stage(tuned).replace(tuned.symbol, ""), grid)
        if key not in seen:
            seen.add(key)
            yield row, tuned, grid


def _rows(params: MatvecParams, target: Target) -> Iterator[Tuning]:
    formats = "+".join(params.formats)
    shape = shape_class(params.epilogue, params.rows, params.cols)
    if target.wave == 1:
        for rows in CPU_ROWS:
            yield Tuning("matvec", formats, target.name, 1, rows, 1, shape=shape)
        return
    for block in BLOCKS:
        if block > target.max_threads or block % target.wave:
            continue
        for rows in ROWS_PER_GROUP:
            for slices in SLICES_PER_LANE:
                for blocks in BLOCKS_PER_UNIT:
                    if block * blocks <= 2 * target.max_threads:
                        yield Tuning(
                            "matvec", formats, target.name, block, rows, slices,
                            shape=shape, blocks_per_unit=blocks,
                        )  # fmt: skip


def groups_of(manifest: Mapping[str, Any]) -> Iterator[tuple[int, MatvecParams, tuple[int, ...], int]]:
    """(kernel, parameters, launches, weight bytes) of every matrix-vector kernel of the decode sequence."""
    launches = manifest["sequences"]["decode"]
    for index, kernel in enumerate(manifest["kernels"]):
        mine = tuple(i for i, launch in enumerate(launches) if launch["kernel"] == index)
        if mine and kernel.get("params") is not None:
            size = sum(launches[i].get("weight_bytes", 0) for i in mine)
            yield index, matvec_params(kernel["params"]), mine, size


def prepare(
    manifest: Mapping[str, Any],
    folder: Path,
    *,
    toolchain: str = "auto",
    cache: Cache | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Group, ...]:
    """Compile the candidates of a package into ``folder``; raises PackageError when it has no such kernel."""
    target = get_target(manifest["target"]["name"])
    units: dict[str, Unit] = {}
    groups = []
    for kernel, params, launches, size in groups_of(manifest):
        found = []
        for row, tuned, grid in candidates_of(params, target):
            units.setdefault(tuned.symbol, Unit(tuned.symbol, render_stage(tuned), (tuned.symbol,)))
            file = tuned.symbol + target.code_suffix
            found.append(Candidate(row, tuned.symbol, file, tuned.block, grid))
        groups.append(Group(kernel, launches, size, tuple(found)))
    if not groups:
        raise PackageError(
            "the package has no kernel that can be tuned", "Compile it again with --schedule graph."
        )
    folder.mkdir(parents=True, exist_ok=True)
    codes = compile_units(list(units.values()), target, toolchain=toolchain, cache=cache, progress=progress)
    for code in codes:
        write_file(folder / (code.name + target.code_suffix), code.data)
    write_groups(folder, groups)
    return tuple(groups)
