"""The exit codes of every command, and the error that carries one."""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum

__all__ = ["MEANINGS", "Exit", "Failure"]


class Exit(IntEnum):
    """What a command's exit code says; scripts may rely on it."""

    FINE = 0
    FOUND = 1
    USAGE = 2
    UNREACHABLE = 3
    INCAPABLE = 4
    INTERRUPTED = 130


MEANINGS: Mapping[Exit, str] = {
    Exit.FINE: "done; nothing to complain about",
    Exit.FOUND: "done, and something was found: a difference, damage, a row that stays pending, an answer of `no`",
    Exit.USAGE: "the command line or the stack's configuration is wrong; nothing was done",
    Exit.UNREACHABLE: "a member of the stack could not be reached, or failed",
    Exit.INCAPABLE: "a member lacks what the command needs; the message says what is possible instead",
    Exit.INTERRUPTED: "stopped by Ctrl-C or SIGTERM; what was done stays done, and the command can be run again",
}


class Failure(Exception):
    """Ends a command with a message for its user. ``hint`` says what to do."""

    def __init__(self, message: str, code: Exit, *, hint: str | None = None) -> None:
        self.message, self.code, self.hint = message, code, hint
        super().__init__(message)
