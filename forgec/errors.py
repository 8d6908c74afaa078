"""Every error a user can meet, with the hint that gets them past it.

Each class owns its process exit code; the command line prints ``message`` and ``hint`` and exits with
``exit_code``. Nothing here imports anything of forgec.
"""

from __future__ import annotations

__all__ = [
    "DeviceError",
    "ForgeError",
    "GGUFError",
    "PackageError",
    "TargetError",
    "ToolchainError",
    "UnsupportedModelError",
    "UsageError",
    "VerifyError",
]


class ForgeError(Exception):
    """Base of all errors that forgec raises on purpose.

    ``message`` is one sentence that names what was wrong (quoted names, expected against found);
    ``hint`` says what to do about it and may be empty.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(ForgeError):
    """The command line or an API call was given values that cannot be meant."""

    exit_code = 2


class GGUFError(ForgeError):
    """The GGUF file is damaged, truncated or not a GGUF file."""

    exit_code = 3


class UnsupportedModelError(ForgeError):
    """The file is sound, but its architecture, quantisation type or tokenizer is not supported."""

    exit_code = 4


class TargetError(ForgeError):
    """Unknown target name, or a model that does not fit the target."""

    exit_code = 5


class ToolchainError(ForgeError):
    """No usable compiler, a failed compilation, or a code object that is not what the plan asked for."""

    exit_code = 6


class VerifyError(ForgeError):
    """A graph or program breaks an invariant: a defect of forgec, not of the input."""

    exit_code = 7


class PackageError(ForgeError):
    """A package cannot be written, or is damaged, incomplete or built for another chip."""

    exit_code = 8


class DeviceError(ForgeError):
    """The device is missing, refused a call, or ran out of memory."""

    exit_code = 9
