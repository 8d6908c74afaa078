"""Every error that a compiled package raises on purpose.

Each class owns its process exit code, equal to the compiler's for the same kind; whoever prints one shows
``message`` and ``hint``. Nothing here imports anything.
"""

from __future__ import annotations

__all__ = [
    "ChatTemplateError",
    "ContextOverflowError",
    "DeviceError",
    "ForgeRuntimeError",
    "PackageError",
    "UsageError",
]


class ForgeRuntimeError(Exception):
    """Base of all errors of a compiled package.

    ``message`` is one sentence that names what was wrong (quoted names, expected against found);
    ``hint`` says what to do about it and may be empty.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(ForgeRuntimeError):
    """The command line or an API call was given values that cannot be meant."""

    exit_code = 2


class PackageError(ForgeRuntimeError):
    """The package is damaged, incomplete or built for another chip."""

    exit_code = 8


class DeviceError(ForgeRuntimeError):
    """The device is missing, refused a call, or ran out of memory."""

    exit_code = 9


class ContextOverflowError(ForgeRuntimeError):
    """The prompt and the tokens asked for do not fit the compiled context length."""

    exit_code = 10


class ChatTemplateError(ForgeRuntimeError):
    """The chat template is broken, rejects the messages, or wants more than its share of time or memory."""

    exit_code = 11
