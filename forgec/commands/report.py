"""``forgec report``: every kernel of a model on a target, from the code object itself and the roofline.

Static numbers only; ``roofline`` is a prediction from bytes, bandwidth and the cost of a launch.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from forgec.compiler import check_kernels, plan_model, program_units
from forgec.config import load_config
from forgec.errors import UsageError
from forgec.frontend.architectures import supported_spec
from forgec.frontend.gguf import open_gguf
from forgec.plan.layouts import FORMATS
from forgec.plan.program import CompileOptions, Launch, Program
from forgec.plan.stages import MatvecParams
from forgec.plan.traffic import launch_traffic
from forgec.targets import Target, get_target, occupancy
from forgec.toolchain import CodeObject, KernelInfo, compile_units, open_cache
from forgec.toolchain.disassembly import FunctionListing, Loop, analyse_listing

__all__ = ["KernelReport", "build_report", "command"]


@dataclass(frozen=True)
class KernelReport:
    """One kernel: resources from the code object, counts from its listing, bytes and time from the plan.

    ``bytes`` and ``roofline_us`` are of one launch at the report's context; fields are None where the
    target's code objects do not tell.
    """

    symbol: str
    sequences: tuple[str, ...]
    launches: int
    threads: int
    vgprs: int | None
    sgprs: int | None
    lds_bytes: int
    scratch_bytes: int
    spills: int
    occupancy: int | None
    bytes: int
    instructions: Mapping[str, int]
    valu_per_weight_byte: float | None
    roofline_us: float


#: Tokens in the KV cache of a short conversation.
DEFAULT_POSITION = 128


@click.command("report")
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--arch", required=True, metavar="A", help="Target chip.")
@click.option("--math", type=click.Choice(["fast", "exact"]), default="fast", show_default=True)
@click.option("--ctx", type=click.IntRange(1), metavar="N", help="Context length in tokens.")
@click.option("--position", type=click.IntRange(0), metavar="N",
              help="Tokens in the KV cache for bytes and times (default 128, if they fit).")  # fmt: skip
@click.option("--toolchain", type=click.Choice(["auto", "hipcc", "zig"]), default="auto", show_default=True)
@click.option("--emulate", is_flag=True,
              help="Also run each kernel of a token once on the emulator, count, and predict.")  # fmt: skip
@click.option("--prefill", is_flag=True, help="With --emulate: the kernels of a prompt, too.")
@click.option("--bandwidth", type=click.FloatRange(min=0, min_open=True), metavar="GB/S",
              help="Memory bandwidth of the card, if it is not the target's.")  # fmt: skip
@click.option("--node-us", type=click.FloatRange(min=0, min_open=True), metavar="US",
              help="Microseconds of a graph node, if not the target's.")  # fmt: skip
@click.option("--compute-units", type=click.IntRange(min=1), metavar="N",
              help="Compute units of the card, if not the target's.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print one JSON array.")
def command(
    model: Path,
    arch: str,
    math: str,
    ctx: int | None,
    position: int | None,
    toolchain: str,
    emulate: bool,
    prefill: bool,
    bandwidth: float | None,
    node_us: float | None,
    compute_units: int | None,
    as_json: bool,
) -> None:
    """List registers, LDS, spills, occupancy, bytes, instructions and roofline time of MODEL's kernels.

    \b
    Example:
      forgec report model.gguf --arch gfx1100
      forgec report model.gguf --arch gfx1100 --emulate --bandwidth 800 --compute-units 84
    """
    target = get_target(arch)
    with open_gguf(model) as gguf:
        program = plan_model(gguf, supported_spec(gguf), target, CompileOptions(math=math, context=ctx))
    position = min(DEFAULT_POSITION, program.context - 1) if position is None else position
    if position >= program.context:
        raise UsageError(
            f"position {position} is outside the context of {program.context} tokens",
            "Choose a smaller --position or a larger --ctx.",
        )
    cache, _ = open_cache(load_config())
    objects = compile_units(program_units(program), target, toolchain=toolchain, cache=cache)
    check_kernels(program, objects)
    program = replace(program, target=_card(target, bandwidth, node_us, compute_units))
    reports = build_report(program, objects, position)
    if as_json:
        click.echo(json.dumps([asdict(r) for r in reports], indent=1))
    else:
        _print(program, reports, position)
    if emulate:
        from forgec.commands.report_emulated import count_kernels, print_counts

        sequences = ("prefill", "decode") if prefill else ("decode",)
        print_counts(count_kernels(program, objects, position, sequences), program.target)


def _card(
    target: Target, bandwidth: float | None, node_us: float | None, compute_units: int | None
) -> Target:
    """The target with the numbers of another card that runs its code; they are for reports alone."""
    return replace(
        target,
        bandwidth=target.bandwidth if bandwidth is None else 1e9 * bandwidth,
        launch_seconds=target.launch_seconds if node_us is None else 1e-6 * node_us,
        compute_units=compute_units or target.compute_units,
    )


def build_report(
    program: Program, objects: tuple[CodeObject, ...], position: int
) -> tuple[KernelReport, ...]:
    """One entry per kernel, in order of first launch."""
    infos = {info.symbol: info for code in objects for info in code.inspection}
    listings = {
        f.name: f
        for code in objects
        if program.target.driver == "hip"
        for f in analyse_listing(code.assembly)
    }
    by_symbol: dict[str, list[tuple[str, Launch]]] = {}
    for sequence, launches in program.sequences.items():
        for launch in launches:
            by_symbol.setdefault(launch.kernel.symbol, []).append((sequence, launch))
    return tuple(
        _kernel(program, infos[symbol], listings.get(symbol), launches, position)
        for symbol, launches in by_symbol.items()
    )


def _kernel(
    program: Program,
    info: KernelInfo,
    listing: FunctionListing | None,
    launches: list[tuple[str, Launch]],
    position: int,
) -> KernelReport:
    target = program.target
    sequence, launch = launches[0]
    rows = program.chunk if sequence == "prefill" else 1
    moved = launch_traffic(launch, program, rows, position).bytes
    known = listing is not None
    return KernelReport(
        symbol=info.symbol,
        sequences=tuple(dict.fromkeys(name for name, _ in launches)),
        launches=len(launches),
        threads=launch.kernel.block,
        vgprs=info.vgprs if known else None,
        sgprs=info.sgprs if known else None,
        lds_bytes=info.lds_bytes,
        scratch_bytes=info.scratch_bytes,
        spills=info.vgpr_spills + info.sgpr_spills,
        occupancy=occupancy(target, info.vgprs, info.lds_bytes, launch.kernel.block) if known else None,
        bytes=moved,
        instructions=_mix(listing),
        valu_per_weight_byte=_valu_per_weight_byte(launch, listing, target),
        roofline_us=1e6 * (moved / target.bandwidth + target.launch_seconds),
    )


def _mix(listing: FunctionListing | None) -> Mapping[str, int]:
    if listing is None:
        return {}
    mix = asdict(listing.mix)
    return {name: mix[name] for name in ("valu", "salu", "smem", "vmem", "lds", "branch", "wait", "dot")}


def _valu_per_weight_byte(launch: Launch, listing: FunctionListing | None, target: Target) -> float | None:
    """VALU issues per weight byte of a matvec's inner loop: the innermost loop with the most loaded bytes.

    Every lane of a wave runs the loop, so issues x lanes over bytes x lanes is issues over one lane's bytes.
    Bytes that the slices of a block share count once, by the mean of the kernel's matrices. The activations
    and code tables that a loop reads from global memory count as loaded too; what it reads from LDS does not.
    """
    if listing is None or not isinstance(launch.kernel, MatvecParams):
        return None
    inner = [loop for loop in listing.loops if loop.inner and loop.mix.load_bytes]
    if not inner:
        return None
    loop: Loop = max(inner, key=lambda candidate: candidate.mix.load_bytes)
    segments = launch.kernel.segments
    shares = [FORMATS[s.format].bytes_per_loaded_byte for s in segments for _ in range(s.rows)]
    return loop.mix.valu / (loop.mix.load_bytes * sum(shares) / len(shares))


def _print(program: Program, reports: tuple[KernelReport, ...], position: int) -> None:
    table = Table(box=None, pad_edge=False)
    headings = ("kernel", "launches", "threads", "VGPR", "SGPR", "LDS B", "scratch B", "spills", "waves/SIMD",
                "bytes", "VALU", "VMEM", "LDS", "dot", "VALU/weight byte", "roofline us")  # fmt: skip
    for index, heading in enumerate(headings):
        table.add_column(heading, justify="right" if index else "left", no_wrap=True)
    for r in reports:
        mix = Counter(r.instructions)
        cells = (r.launches, r.threads, r.vgprs, r.sgprs, r.lds_bytes, r.scratch_bytes, r.spills, r.occupancy)
        table.add_row(
            r.symbol,
            *("-" if c is None else str(c) for c in cells),
            f"{r.bytes:,}",
            *(str(mix[name]) if r.instructions else "-" for name in ("valu", "vmem", "lds", "dot")),
            "-" if r.valu_per_weight_byte is None else f"{r.valu_per_weight_byte:.2f}",
            f"{r.roofline_us:.2f}",
        )
    console = Console(width=260)
    console.print(table)
    decode = program.sequences["decode"]
    moved = sum(launch_traffic(launch, program, 1, position).bytes for launch in decode)
    target = program.target
    seconds = moved / target.bandwidth + len(decode) * target.launch_seconds
    console.print(
        f"a token at position {position}: {len(decode)} launches, {moved / 1e6:,.1f} MB; "
        f"predicted by the roofline of {target.name} ({target.bandwidth / 1e9:,.0f} GB/s, "
        f"{target.launch_seconds * 1e6:.1f} us a launch): "
        f"{seconds * 1e3:.2f} ms, {1 / seconds:,.0f} tok/s"
    )
    formats = ", ".join(
        f"{t}: {FORMATS[t].bits_per_weight:.1f} bits"
        for t in sorted({t.format for t in program.tensors})
        if FORMATS[t].block > 1
    )
    if formats:
        console.print(f"weights: {formats} per weight")
