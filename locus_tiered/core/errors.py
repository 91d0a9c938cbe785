"""Every error that a stack raises, in one tree.

::

    LocusTieredError
    ├── InvalidArgument            (also ValueError)  an id, limit, size or state that no store could keep
    │   └── UnserialisableState    the state or its metadata has no JSON form
    ├── CapabilityMissing          (also NotImplementedError)  a member lacks what the call needs; named
    ├── StackConfigError           (also ValueError)  a stack that cannot be built as written
    ├── BackendError               a member failed; says which, during what, temporary or not
    │   ├── RetriesExhausted       retried as often as allowed
    │   ├── AttemptTimeout         one attempt took too long
    │   ├── BreakerOpen            the member is being left alone for a while
    │   ├── Overloaded             too many calls wait for the member already
    │   └── QuorumError            too few replicas answered; the outcome is unknown
    ├── StaleRead                  a member answered with less than this process had seen acknowledged
    ├── CorruptCheckpoint          what is stored is not what was saved
    ├── CheckpointTooLarge         (also ValueError)  larger than the whole budget of a store
    └── JournalError
        ├── JournalFull            the bounds are reached
        ├── JournalPoisoned        an fsync failed; the journal takes no more
        └── JournalLocked          another process owns it

A message says what happened, to which member and thread, whether the data is safe, and what to do.
Payloads, connection strings and keys never appear in one: causes are named by their type here, and chained
(``__cause__``) for whoever debugs.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

__all__ = [
    "AttemptTimeout",
    "BackendError",
    "BreakerOpen",
    "CapabilityMissing",
    "CheckpointTooLarge",
    "CorruptCheckpoint",
    "InvalidArgument",
    "JournalError",
    "JournalFull",
    "JournalLocked",
    "JournalPoisoned",
    "LocusTieredError",
    "Overloaded",
    "QuorumError",
    "RetriesExhausted",
    "StackConfigError",
    "StaleRead",
    "UnserialisableState",
]

_CODE = re.compile(r"[A-Za-z0-9_.]{1,60}")


def shorten(value: object, most: int = 80) -> str:
    """The ``repr`` of an id for a message: never longer than ``most`` characters."""
    text = repr(value)
    return text if len(text) <= most else f"{text[: most - 1]}…"


def cause_of(error: BaseException) -> str:
    """The class of an error, the backend's own where it is known, and the server's code: never its message."""
    if type(error) is BackendError and error.__cause__ is not None:
        error = error.__cause__
    return told_cause(error)


def told_cause(error: BaseException) -> str:
    """A library's error by its class and, where it has one, the server's code: ``ClientError, AccessDenied``.

    Its message is left out, which may hold a secret.
    """
    response = getattr(error, "response", None)
    code = response.get("Error", {}).get("Code") if isinstance(response, dict) else getattr(error, "sqlstate", None)
    kind = type(error).__name__
    return f"{kind}, {code}" if isinstance(code, str) and _CODE.fullmatch(code) and code != kind else kind


class LocusTieredError(Exception):
    """The root: ``except LocusTieredError`` catches all that a stack raises on its own account."""


class InvalidArgument(LocusTieredError, ValueError):
    """An argument that no store could honour. Raised before anything was written."""


class UnserialisableState(InvalidArgument):
    """The state, or the ``metadata=`` beside it, has no JSON form. Nothing was written."""


class CapabilityMissing(LocusTieredError, NotImplementedError):
    """The call needs a capability that a member of the stack lacks; the message names the member."""


class StackConfigError(LocusTieredError, ValueError):
    """A stack that cannot be built as written.

    ``file``, ``line``, ``column`` (from 1) and ``path`` say where when the stack came from a file; ``hint`` says what
    to write. ``mistakes`` holds one error per mistake: several when a file has several, else just this one.
    """

    def __init__(
        self,
        message: str,
        *,
        hint: str | None = None,
        file: str | None = None,
        line: int | None = None,
        column: int | None = None,
        path: str | None = None,
        mistakes: Sequence[StackConfigError] = (),
    ) -> None:
        self.hint, self.file, self.line, self.column, self.path = hint, file, line, column, path
        self.mistakes: tuple[StackConfigError, ...] = tuple(mistakes) or (self,)
        where = ":".join(str(part) for part in (file, line, column) if part is not None)
        prefix = ", ".join(part for part in (where, path) if part)
        text = f"{prefix}: {message}" if prefix else message
        super().__init__(f"{text} ({hint})" if hint else text)


class BackendError(LocusTieredError):
    """A member of the stack failed.

    ``member`` is its name, ``operation`` what it was asked for, ``temporary`` whether trying again can help
    (``None``: nobody knows). The foreign exception is ``__cause__``.
    """

    def __init__(self, message: str, *, member: str, operation: str, temporary: bool | None = None) -> None:
        self.member, self.operation, self.temporary = member, operation, temporary
        super().__init__(message)


class RetriesExhausted(BackendError):
    """The call was tried as often as allowed. An outer layer does not retry it again."""


class AttemptTimeout(BackendError):
    """One attempt took longer than its limit. It was abandoned, not killed: it may still take effect."""


class BreakerOpen(BackendError):
    """The member failed so often that it is left alone for a while. Nothing was sent."""


class Overloaded(BackendError):
    """So many calls wait for the member that this one was turned away. Nothing was sent."""


class QuorumError(BackendError):
    """Too few replicas answered. The outcome is unknown; ``known`` says what each replica said.

    To whoever is above, the replicas are one member that failed.
    """

    def __init__(
        self,
        message: str,
        *,
        known: Mapping[str, str] | None = None,
        member: str = "replicated",
        operation: str = "",
        temporary: bool | None = True,
    ) -> None:
        self.known = dict(known or {})
        super().__init__(message, member=member, operation=operation, temporary=temporary)


class StaleRead(LocusTieredError):
    """A member answered with an older head than one that this process had seen acknowledged."""


class CorruptCheckpoint(LocusTieredError):
    """What a member holds is not what was saved: damaged, or somebody else's. Nothing was deleted."""

    def __init__(self, message: str, *, member: str, thread_id: str, checkpoint_id: str | None) -> None:
        self.member, self.thread_id, self.checkpoint_id = member, thread_id, checkpoint_id
        super().__init__(message)


class CheckpointTooLarge(LocusTieredError, ValueError):
    """One checkpoint is larger than the whole budget of the store. It was not kept."""


class JournalError(LocusTieredError):
    """The local journal cannot do what it is for."""


class JournalFull(JournalError):
    """The journal reached its bounds and the far store takes nothing. The save was not acknowledged."""


class JournalPoisoned(JournalError):
    """The journal's disk failed a commit; what was acknowledged before is kept, nothing more is taken."""


class JournalLocked(JournalError):
    """Another live process owns this journal directory."""
