"""A trap record of the engine in, one readable sentence out."""

from __future__ import annotations

from forgec.emulator.operands import Instruction
from forgec.errors import DeviceError

__all__ = ["EmulatorTrap", "trap_error"]

_SENTENCES = (
    "no trap",
    "accesses {extra} bytes at {address:#x}, outside every allocation",
    "accesses {extra} bytes at {address:#x}, which was freed",
    "accesses {address:#x}, which is not aligned to {extra} bytes",
    "reads memory at {address:#x} that was never written",
    "computes an address from a value that was never written",
    "branches (or masks lanes) on a value that was never written",
    "uses a register whose load is still in flight: a wait is missing",
    "accesses LDS offset {address} of {extra} bytes",
    "touches LDS byte {address} that wave {extra} touched since the last barrier: a data race",
    "writes {address:#x}, which is read-only",
    "jumps to {address:#x}, where no code is",
    "accesses scratch offset {address} of {extra} bytes",
    "made no progress in the time allowed: its waves spin or wait for ever",
    "executes s_trap {address}",
    "waits at a barrier that can never complete",
    "could not get memory for its workgroups",
    "reads {address:#x}, which workgroup {extra} wrote without a release: its wave had not waited for the"
    " store (or not written back its cache) when it told others",
    "reads {address:#x}, which workgroup {extra} wrote, without an acquire: its own caches were not"
    " invalidated after it learned of the write",
)
_NAMES = [
    "none",
    "out-of-bounds",
    "freed",
    "misaligned",
    "uninitialised-memory",
    "uninitialised-address",
    "uninitialised-branch",
    "missing-wait",
    "lds-out-of-bounds",
    "lds-race",
    "read-only",
    "bad-pc",
    "scratch-out-of-bounds",
    "hang",
    "s-trap",
    "barrier",
    "no-memory",
    "missing-fence",
    "missing-fence",
]


class EmulatorTrap(DeviceError):
    """A kernel did something that a GPU would fault on, or that makes its result undefined.

    ``kind`` is a short name (``out-of-bounds``, ``lds-race``, ``missing-wait`` …), ``instruction`` the text
    of the instruction, ``pc`` its virtual address, ``lane``, ``wave`` and ``group`` say where.
    """

    def __init__(
        self,
        message: str,
        kind: str,
        kernel: str,
        pc: int,
        instruction: str,
        lane: int,
        wave: int,
        group: tuple[int, int, int],
    ) -> None:
        super().__init__(
            message, "the emulator traps on behaviour that is undefined on the GPU; fix the kernel"
        )
        self.kind = kind
        self.kernel = kernel
        self.pc = pc
        self.instruction = instruction
        self.lane = lane
        self.wave = wave
        self.group = group


def trap_error(
    kernel: str,
    sites: tuple[Instruction, ...],
    code: int,
    site: int,
    lane: int,
    wave: int,
    address: int,
    extra: int,
    group: tuple[int, int, int],
) -> EmulatorTrap:
    """The exception for one trap record."""
    ins = sites[site] if site < len(sites) else None
    what = _SENTENCES[code].format(address=address, extra=extra)
    where = f"'{ins.text}' at {ins.address:#x}" if ins else "the kernel"
    message = (
        f"kernel '{kernel}': {where} {what}"
        f" (lane {lane} of wave {wave}, workgroup {group[0]},{group[1]},{group[2]})"
    )
    return EmulatorTrap(
        message, _NAMES[code], kernel, ins.address if ins else 0, ins.text if ins else "", lane, wave, group
    )
