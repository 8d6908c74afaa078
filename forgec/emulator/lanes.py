"""Lane permutations that an instruction carries as modifiers: DPP controls as source-lane lists, SDWA
selections."""

from __future__ import annotations

from collections.abc import Callable

from forgec.emulator.operands import Instruction

__all__ = ["DPP_CONTROLS", "dpp_lanes", "is_dpp", "sdwa_select"]


def _within_row(move: Callable[[int], int]) -> Callable[[int, int], int | None]:
    def source(lane: int, wave: int) -> int | None:
        del wave
        at = move(lane & 15)
        return (lane & ~15) + at if 0 <= at < 16 else None

    return source


def _controls(name: str, value: str) -> Callable[[int, int], int | None]:
    """The source lane of each lane, None where there is none (RDNA3 ISA 7.7.1 "DPP16", CDNA3 ISA 6.6)."""
    n = int(value, 0) if value and not value.startswith("[") else 0
    if name == "quad_perm":
        order = [int(x, 0) for x in value.strip("[]").split(",")]
        return lambda lane, wave: (lane & ~3) + order[lane & 3]
    if name == "dpp8":
        order = [int(x, 0) for x in value.strip("[]").split(",")]
        return lambda lane, wave: (lane & ~7) + order[lane & 7]
    table: dict[str, Callable[[int, int], int | None]] = {
        "row_shl": _within_row(lambda i: i + n),
        "row_shr": _within_row(lambda i: i - n),
        "row_ror": _within_row(lambda i: (i - n) & 15),
        "row_mirror": _within_row(lambda i: 15 - i),
        "row_half_mirror": _within_row(lambda i: (i & 8) | (7 - (i & 7))),
        "row_share": _within_row(lambda i: n),
        "row_newbcast": _within_row(lambda i: n),
        "row_xmask": _within_row(lambda i: i ^ n),
        "wave_shl": lambda lane, wave: lane + 1 if lane + 1 < wave else None,
        "wave_shr": lambda lane, wave: lane - 1 if lane else None,
        "wave_rol": lambda lane, wave: (lane + 1) % wave,
        "wave_ror": lambda lane, wave: (lane - 1) % wave,
        "row_bcast": lambda lane, wave: (lane & ~n) - 1 if (lane & ~n if n == 31 else lane & ~15) else None,
    }
    if name == "row_bcast" and n == 15:
        return lambda lane, wave: (lane & ~15) - 1 if lane >= 16 else None
    if name == "row_bcast":
        return lambda lane, wave: 31 if lane >= 32 else None
    return table[name]


DPP_CONTROLS = (
    "quad_perm",
    "dpp8",
    "row_shl",
    "row_shr",
    "row_ror",
    "row_share",
    "row_newbcast",
    "row_xmask",
    "wave_shl",
    "wave_shr",
    "wave_rol",
    "wave_ror",
    "row_bcast",
    "row_mirror",
    "row_half_mirror",
)


def is_dpp(ins: Instruction) -> bool:
    return any(c in ins.modifiers or c in ins.flags for c in DPP_CONTROLS)


def dpp_lanes(ins: Instruction, wave: int) -> tuple[list[int | None], list[bool]]:
    """(source lane per lane, whether row and bank masks enable the lane)."""
    name = next(c for c in DPP_CONTROLS if c in ins.modifiers or c in ins.flags)
    control = _controls(name, ins.modifiers.get(name, ""))
    rows = int(ins.modifiers.get("row_mask", "0xf"), 0)
    banks = int(ins.modifiers.get("bank_mask", "0xf"), 0)
    enabled = [bool(rows >> (lane // 16) & 1 and banks >> (lane % 16 // 4) & 1) for lane in range(wave)]
    return [control(lane, wave) for lane in range(wave)], enabled


def sdwa_select(word: str, selection: str, sign: bool) -> str:
    """C of one SDWA source selection on a U32 (CDNA3 ISA 6.5 "SDWA")."""
    if selection == "DWORD":
        return word
    kind, _, index = selection.partition("_")
    bits = 8 if kind == "BYTE" else 16
    shift = bits * int(index)
    if sign:
        return f"((U32)((I32)({word} << {32 - bits - shift}) >> {32 - bits}))"
    return f"({word} >> {shift} & {(1 << bits) - 1:#x}u)"
