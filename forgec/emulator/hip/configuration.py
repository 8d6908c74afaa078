"""What an emulated HIP device is: a frozen value that travels as JSON inside the stub library."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from forgec.errors import DeviceError
from forgec.targets import get_target

__all__ = ["Configuration"]


@dataclass(frozen=True)
class Configuration:
    """One emulated GPU.

    ``memory`` is its capacity in bytes (None: the chip's), ``threads`` the CPU threads of a launch (None:
    all), ``checks`` turns on all traps, ``seed`` interleaves waves and workgroups at random, reproducibly.

    Raises: TargetError for an unknown chip, DeviceError for one that is no AMD GPU or has no memory.
    """

    arch: str = "gfx1100"
    memory: int | None = None
    threads: int | None = None
    checks: bool = False
    seed: int | None = None

    def __post_init__(self) -> None:
        if get_target(self.arch).driver != "hip":
            raise DeviceError(f"'{self.arch}' is not an AMD GPU", "use a name such as gfx1100 or gfx942")
        if self.memory is not None and self.memory < 1:
            raise DeviceError(f"a device cannot have {self.memory} bytes of memory")

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(text: str) -> Configuration:
        return Configuration(**json.loads(text))
