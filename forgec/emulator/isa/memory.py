"""Memory instructions: mnemonic to (operation, bytes, flags), for scalar, global, flat, scratch and LDS
accesses."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["ATOMICS", "DS", "FENCES", "SMEM", "VECTOR", "Access"]

SIGNED, D16, D16_HI = 1, 2, 4


@dataclass(frozen=True)
class Access:
    """What a memory instruction moves: ``kind`` load, store, atomic, load2 or store2; ``size`` in bytes a
    lane.

    ``flags`` are those of machine/wave.h; ``operation`` names an atomic; ``stride`` is the unit of an LDS
    pair offset.
    """

    kind: str
    size: int
    flags: int = 0
    operation: str = ""
    returns: bool = False
    stride: int = 1
    section: str = ""


def _smem() -> dict[str, int]:
    """Scalar loads (RDNA3 16.6, CDNA3 12.6): name to bytes; gfx9 and gfx10 say dword, gfx11 on says b32."""
    rows = {}
    for n, old in (
        (1, "dword"),
        (2, "dwordx2"),
        (3, "dwordx3"),
        (4, "dwordx4"),
        (8, "dwordx8"),
        (16, "dwordx16"),
    ):
        rows[f"s_load_{old}"] = rows[f"s_load_b{32 * n}"] = 4 * n
    return rows


SMEM = _smem()
SMEM_SMALL = {"s_load_u8": (1, 0), "s_load_i8": (1, SIGNED), "s_load_u16": (2, 0), "s_load_i16": (2, SIGNED)}

_LOADS = {
    "u8": (1, 0),
    "ubyte": (1, 0),
    "i8": (1, SIGNED),
    "sbyte": (1, SIGNED),
    "u16": (2, 0),
    "ushort": (2, 0),
    "i16": (2, SIGNED),
    "sshort": (2, SIGNED),
    "b32": (4, 0),
    "dword": (4, 0),
    "b64": (8, 0),
    "dwordx2": (8, 0),
    "b96": (12, 0),
    "dwordx3": (12, 0),
    "b128": (16, 0),
    "dwordx4": (16, 0),
    "d16_u8": (1, D16),
    "ubyte_d16": (1, D16),
    "d16_i8": (1, D16 | SIGNED),
    "sbyte_d16": (1, D16 | SIGNED),
    "d16_b16": (2, D16),
    "short_d16": (2, D16),
    "d16_hi_u8": (1, D16_HI),
    "ubyte_d16_hi": (1, D16_HI),
    "d16_hi_i8": (1, D16_HI | SIGNED),
    "sbyte_d16_hi": (1, D16_HI | SIGNED),
    "d16_hi_b16": (2, D16_HI),
    "short_d16_hi": (2, D16_HI),
}
_STORES = {
    "b8": (1, 0),
    "byte": (1, 0),
    "b16": (2, 0),
    "short": (2, 0),
    "b32": (4, 0),
    "dword": (4, 0),
    "b64": (8, 0),
    "dwordx2": (8, 0),
    "b96": (12, 0),
    "dwordx3": (12, 0),
    "b128": (16, 0),
    "dwordx4": (16, 0),
    "d16_hi_b8": (1, D16_HI),
    "byte_d16_hi": (1, D16_HI),
    "d16_hi_b16": (2, D16_HI),
    "short_d16_hi": (2, D16_HI),
}
# name after "atomic_": (operation of memory.c, bytes)
ATOMICS = {
    "swap": ("A_SWAP", 4),
    "swap_b32": ("A_SWAP", 4),
    "cmpswap": ("A_CMPSWAP", 4),
    "cmpswap_b32": ("A_CMPSWAP", 4),
    "add": ("A_ADD", 4),
    "add_u32": ("A_ADD", 4),
    "sub": ("A_SUB", 4),
    "sub_u32": ("A_SUB", 4),
    "smin": ("A_SMIN", 4),
    "min_i32": ("A_SMIN", 4),
    "umin": ("A_UMIN", 4),
    "min_u32": ("A_UMIN", 4),
    "smax": ("A_SMAX", 4),
    "max_i32": ("A_SMAX", 4),
    "umax": ("A_UMAX", 4),
    "max_u32": ("A_UMAX", 4),
    "and": ("A_AND", 4),
    "and_b32": ("A_AND", 4),
    "or": ("A_OR", 4),
    "or_b32": ("A_OR", 4),
    "xor": ("A_XOR", 4),
    "xor_b32": ("A_XOR", 4),
    "inc": ("A_INC", 4),
    "inc_u32": ("A_INC", 4),
    "dec": ("A_DEC", 4),
    "dec_u32": ("A_DEC", 4),
    "csub_u32": ("A_SUB_CLAMP", 4),
    "sub_clamp_u32": ("A_SUB_CLAMP", 4),
    "cond_sub_u32": ("A_COND_SUB", 4),
    "add_f32": ("A_FADD", 4),
    "min_f32": ("A_FMIN", 4),
    "min_num_f32": ("A_FMIN", 4),
    "fmin": ("A_FMIN", 4),
    "max_f32": ("A_FMAX", 4),
    "max_num_f32": ("A_FMAX", 4),
    "fmax": ("A_FMAX", 4),
    "pk_add_f16": ("A_PK_ADD_F16", 4),
    "pk_add_bf16": ("A_PK_ADD_BF16", 4),
    "add_f64": ("A_FADD", 8),
    "min_f64": ("A_FMIN", 8),
    "max_f64": ("A_FMAX", 8),
}
for _name in ("swap", "cmpswap", "and", "or", "xor"):
    ATOMICS[f"{_name}_x2"] = ATOMICS[f"{_name}_b64"] = (ATOMICS[_name][0], 8)
for _old, _new in (("add", "add_u64"), ("sub", "sub_u64"), ("inc", "inc_u64"), ("dec", "dec_u64")):
    ATOMICS[f"{_old}_x2"] = ATOMICS[_new] = (ATOMICS[_old][0], 8)
for _old, _new in (("smin", "min_i64"), ("umin", "min_u64"), ("smax", "max_i64"), ("umax", "max_u64")):
    ATOMICS[f"{_old}_x2"] = ATOMICS[_new] = (ATOMICS[_old][0], 8)


def _vector() -> dict[str, Access]:
    rows: dict[str, Access] = {}
    for space in ("global", "flat", "scratch", "buffer"):
        section = "RDNA3 16.16 and 16.20, CDNA3 12.13 and 12.15"
        for name, (size, flags) in _LOADS.items():
            rows[f"{space}_load_{name}"] = Access("load", size, flags, section=section)
        for name, (size, flags) in _STORES.items():
            rows[f"{space}_store_{name}"] = Access("store", size, flags, section=section)
        for name, (operation, size) in ATOMICS.items():
            rows[f"{space}_atomic_{name}"] = Access("atomic", size, 0, operation, section=section)
    return rows


VECTOR = _vector()

_DS_ATOMICS = {
    "add": "A_ADD",
    "sub": "A_SUB",
    "rsub": "A_RSUB",
    "inc": "A_INC",
    "dec": "A_DEC",
}


def _ds() -> dict[str, Access]:
    """LDS instructions (RDNA3 16.15, CDNA3 12.12), under the names of every family."""
    rows: dict[str, Access] = {}
    section = "RDNA3 16.15, CDNA3 12.12"

    def add(
        name: str,
        kind: str,
        size: int,
        flags: int = 0,
        operation: str = "",
        returns: bool = False,
        stride: int = 1,
    ) -> None:
        rows[name] = Access(kind, size, flags, operation, returns, stride, section)

    sizes = {"b32": 4, "b64": 8, "b96": 12, "b128": 16}
    for new, old, kind in (("load", "read", "load"), ("store", "write", "store")):
        for bits, size in sizes.items():
            add(f"ds_{new}_{bits}", kind, size)
            add(f"ds_{old}_{bits}", kind, size)
        for bits in ("b32", "b64"):
            size = sizes[bits]
            for name, stride in ((f"ds_{new}_2addr_{bits}", 1), (f"ds_{old}2_{bits}", 1)):
                add(name, f"{kind}2", size, stride=stride * size)
            for name in (f"ds_{new}_2addr_stride64_{bits}", f"ds_{old}2st64_{bits}"):
                add(name, f"{kind}2", size, stride=64 * size)
    for verb in ("load", "read"):
        for name, size, flags in (("u8", 1, 0), ("i8", 1, SIGNED), ("u16", 2, 0), ("i16", 2, SIGNED)):
            add(f"ds_{verb}_{name}", "load", size, flags)
            add(f"ds_{verb}_{name}_d16", "load", size, flags | D16)
            add(f"ds_{verb}_{name}_d16_hi", "load", size, flags | D16_HI)
    for verb in ("store", "write"):
        for name, size in (("b8", 1), ("b16", 2)):
            add(f"ds_{verb}_{name}", "store", size)
            add(f"ds_{verb}_{name}_d16_hi", "store", size, D16_HI)
    for bits, size in (("32", 4), ("64", 8)):
        for name, operation in _DS_ATOMICS.items():
            add(f"ds_{name}_u{bits}", "atomic", size, 0, operation)
            add(f"ds_{name}_rtn_u{bits}", "atomic", size, 0, operation, True)
        for name, operation in (
            ("min_i", "A_SMIN"),
            ("max_i", "A_SMAX"),
            ("min_u", "A_UMIN"),
            ("max_u", "A_UMAX"),
        ):
            stem, letter = name.split("_")
            add(f"ds_{stem}_{letter}{bits}", "atomic", size, 0, operation)
            add(f"ds_{stem}_rtn_{letter}{bits}", "atomic", size, 0, operation, True)
        for name, operation in (("and", "A_AND"), ("or", "A_OR"), ("xor", "A_XOR")):
            add(f"ds_{name}_b{bits}", "atomic", size, 0, operation)
            add(f"ds_{name}_rtn_b{bits}", "atomic", size, 0, operation, True)
        for name, operation in (
            ("add", "A_FADD"),
            ("min", "A_FMIN"),
            ("max", "A_FMAX"),
            ("min_num", "A_FMIN"),
            ("max_num", "A_FMAX"),
        ):
            add(f"ds_{name}_f{bits}", "atomic", size, 0, operation)
            add(f"ds_{name}_rtn_f{bits}", "atomic", size, 0, operation, True)
        for name in ("storexchg", "wrxchg"):
            add(f"ds_{name}_rtn_b{bits}", "atomic", size, 0, "A_SWAP", True)
        # gfx9/gfx10 cmpst: comparand first; gfx11 cmpstore: new value first
        for name in ("cmpst", "cmpstore"):
            add(f"ds_{name}_b{bits}", "atomic", size, 0, "A_CMPSWAP")
            add(f"ds_{name}_rtn_b{bits}", "atomic", size, 0, "A_CMPSWAP", True)
    for name in ("pk_add_f16", "pk_add_bf16"):
        add(f"ds_{name}", "atomic", 4, 0, f"A_{name.upper()}")
        add(f"ds_{name.replace('add', 'add_rtn')}", "atomic", 4, 0, f"A_{name.upper()}", True)
    return rows


DS = _ds()

# Cache maintenance: memory is coherent here, so these only order (and count as instructions).
FENCES = frozenset(
    {
        "buffer_gl0_inv",
        "buffer_gl1_inv",
        "buffer_wbinvl1",
        "buffer_wbinvl1_vol",
        "buffer_wbl2",
        "buffer_inv",
        "buffer_invl2",
        "global_inv",
        "global_wb",
        "global_wbinv",
        "s_dcache_inv",
        "s_dcache_wb",
        "s_icache_inv",
        "s_gl1_inv",
        "s_dcache_inv_vol",
    }
)
