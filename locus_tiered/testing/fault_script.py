"""What can go wrong with a checkpointer, as values: the script that ``FaultyCheckpointer`` plays.

A :class:`Fault` says what happens (:class:`FaultKind`), to which calls, and how often. :func:`on` writes one
so that it reads aloud::

    script = [
        on("save", at=2).fail_after(),             # the second save is applied, then raises
        on("load", times=None).stale_latest(),     # every load of the latest answers the one before it
        on("delete").apply_late(after=3),          # hangs; lands three operations later, cancelled or not
    ]

``at`` and ``times`` count only the calls that the fault matches. Every fault is due at its own calls, so two
may befall one call; :class:`FaultKind` lists them in the order in which they then act.

A script promises the same faults for the same calls in the same order: all chance comes from its seed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from random import Random
from typing import Literal

__all__ = ["OPERATIONS", "Call", "Fault", "FaultKind", "InjectedFault", "Script", "on"]

Answer = Literal["hang", "raise", "return"]
Outcome = Literal["pending", "returned", "raised", "cancelled"]

_CHANGES = frozenset({"save", "delete", "vacuum", "copy_thread"})
_LOOKS = frozenset(
    {
        "load",
        "list_checkpoints",
        "exists",
        "search",
        "query_by_metadata",
        "get_metadata",
        "list_threads",
        "list_with_metadata",
    }
)
OPERATIONS = _CHANGES | _LOOKS | {"close"}
"""The thirteen asynchronous methods of ``BaseCheckpointer``."""


class InjectedFault(ConnectionError):
    """What a fault raises unless it was given an ``error`` of its own."""


class FaultKind(StrEnum):
    """What goes wrong, in the order in which several faults act on one call."""

    SLOW = "slow"
    """The call waits ``seconds`` first, through the injected sleep."""
    HANG = "hang"
    """The call waits until the test releases it, then goes on; cancelled before that, it never happened."""
    FAIL_BEFORE = "fail before"
    """Raises; the inner checkpointer is never asked."""
    NONE_ON_OUTAGE = "none on outage"
    """Looks and ``delete`` answer "nothing there", other changes raise, as ``HTTPCheckpointer`` does."""
    LATE_APPLY = "late apply"
    """The call hangs, raises or returns at once, as ``answer`` says; its effect lands later in every case, as
    that of boto3 in a thread whose caller was cancelled."""
    WRONG_THREAD = "wrong thread"
    """Another thread's answer. No effect until another thread was saved."""
    STALE_LATEST = "stale latest"
    """``load(thread)`` answers the checkpoint before the newest, or ``None`` where there is only one."""
    LOST_INDEX_ROW = "lost index row"
    """The save is kept but not listed; loading by id still finds it. The Redis adapter under two writers."""
    TIE = "tie"
    """The save shares its time with the thread's previous save; ties are listed in the order of their ids,
    smallest first. S3's ``LastModified`` counts whole seconds."""
    DAMAGED_BODY = "damaged body"
    """One value somewhere in the state is changed: for good on ``save``, in this answer on ``load``."""
    FAIL_AFTER = "fail after"
    """Applied, then raises."""

    @property
    def befalls(self) -> frozenset[str]:
        """The operations that this can happen to."""
        return _BEFALLS[self]


_BEFALLS: dict[FaultKind, frozenset[str]] = {
    FaultKind.SLOW: OPERATIONS,
    FaultKind.HANG: OPERATIONS,
    FaultKind.FAIL_BEFORE: OPERATIONS,
    FaultKind.NONE_ON_OUTAGE: OPERATIONS - {"close"},
    FaultKind.LATE_APPLY: _CHANGES,
    FaultKind.STALE_LATEST: frozenset({"load"}),
    FaultKind.WRONG_THREAD: frozenset({"load", "list_checkpoints", "get_metadata"}),
    FaultKind.LOST_INDEX_ROW: frozenset({"save"}),
    FaultKind.TIE: frozenset({"save"}),
    FaultKind.DAMAGED_BODY: frozenset({"save", "load"}),
    FaultKind.FAIL_AFTER: OPERATIONS,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One entry of a script. :func:`on` writes these more readably.

    Raises ``ValueError`` for an operation that the kind cannot befall, and for counts below one.
    """

    kind: FaultKind
    operation: str | None = None
    """The method's name; ``None``: every one that the kind can befall, except ``close``."""
    thread_id: str | None = None
    """Only calls on this thread; ``None``: on any."""
    at: int = 1
    """The first matching call that it befalls, counted from 1 since the fault was added."""
    times: int | None = 1
    """How many matching calls in a row; ``None``: all from ``at`` on."""
    error: Exception | type[Exception] | None = None
    """What is raised where something is; ``None``: :class:`InjectedFault`."""
    seconds: float = 1.0
    """``SLOW``: how long."""
    after: int | None = None
    """``LATE_APPLY``: lands as so many further operations have ended; ``None``: when the test says so."""
    answer: Answer = "hang"
    """``LATE_APPLY``: what the caller gets meanwhile."""

    def __post_init__(self) -> None:
        if self.operation is not None and self.operation not in self.kind.befalls:
            known = ", ".join(sorted(self.kind.befalls))
            raise ValueError(f"{self.kind.value!r} cannot befall {self.operation!r}, only: {known}")
        if self.at < 1 or (self.times is not None and self.times < 1):
            raise ValueError(f"at and times count from 1, got at={self.at}, times={self.times}")
        if self.after is not None and self.after < 1:
            raise ValueError(f"after must be at least one further operation, got {self.after}")

    def matches(self, operation: str, threads: tuple[str, ...]) -> bool:
        """Whether a call on ``threads`` counts for this fault."""
        if self.operation is None:
            named = operation in self.kind.befalls and operation != "close"
        else:
            named = operation == self.operation
        return named and (self.thread_id is None or self.thread_id in threads)

    def exception(self, operation: str, threads: tuple[str, ...]) -> Exception:
        """The exception to raise."""
        if isinstance(self.error, Exception):
            return self.error
        where = f" on {', '.join(map(repr, threads))}" if threads else ""
        return (self.error or InjectedFault)(f"injected: {self.kind.value}, {operation}{where}")


@dataclass(frozen=True, slots=True)
class _On:
    """Which calls; its methods say what happens to them."""

    operation: str | None
    thread_id: str | None
    at: int
    times: int | None

    def _fault(
        self,
        kind: FaultKind,
        *,
        error: Exception | type[Exception] | None = None,
        seconds: float = 1.0,
        after: int | None = None,
        answer: Answer = "hang",
    ) -> Fault:
        return Fault(
            kind=kind,
            operation=self.operation,
            thread_id=self.thread_id,
            at=self.at,
            times=self.times,
            error=error,
            seconds=seconds,
            after=after,
            answer=answer,
        )

    def fail_before(self, error: Exception | type[Exception] | None = None) -> Fault:
        """Raise; nothing is applied."""
        return self._fault(FaultKind.FAIL_BEFORE, error=error)

    def fail_after(self, error: Exception | type[Exception] | None = None) -> Fault:
        """Apply, then raise."""
        return self._fault(FaultKind.FAIL_AFTER, error=error)

    def hang(self) -> Fault:
        """Wait for ``release()``."""
        return self._fault(FaultKind.HANG)

    def slow(self, seconds: float = 1.0) -> Fault:
        """Wait so many seconds first."""
        return self._fault(FaultKind.SLOW, seconds=seconds)

    def apply_late(
        self,
        *,
        after: int | None = None,
        answer: Answer = "hang",
        error: Exception | type[Exception] | None = None,
    ) -> Fault:
        """Answer now, apply after so many further operations or on ``land()``."""
        return self._fault(FaultKind.LATE_APPLY, after=after, answer=answer, error=error)

    def stale_latest(self) -> Fault:
        """Answer the latest before this one."""
        return self._fault(FaultKind.STALE_LATEST)

    def wrong_thread(self) -> Fault:
        """Answer with what another thread holds."""
        return self._fault(FaultKind.WRONG_THREAD)

    def answer_nothing(self, error: Exception | type[Exception] | None = None) -> Fault:
        """Answer as if nothing were there; what cannot be answered so raises."""
        return self._fault(FaultKind.NONE_ON_OUTAGE, error=error)

    def lose_index_row(self) -> Fault:
        """Keep the save, never list it."""
        return self._fault(FaultKind.LOST_INDEX_ROW)

    def tie(self) -> Fault:
        """Give the save the time of the one before it."""
        return self._fault(FaultKind.TIE)

    def damage(self) -> Fault:
        """Change one value in the state."""
        return self._fault(FaultKind.DAMAGED_BODY)


def on(operation: str | None = None, *, thread_id: str | None = None, at: int = 1, times: int | None = 1) -> _On:
    """Which calls a fault befalls; the arguments are those of :class:`Fault`."""
    return _On(operation, thread_id, at, times)


@dataclass(slots=True)
class Call:
    """One call as the log keeps it. ``started`` and ``ended`` are positions in one order of all calls."""

    operation: str
    threads: tuple[str, ...]
    """The threads named in the call: none, one, or the two of ``copy_thread``."""
    checkpoint_id: str | None
    started: int
    ended: int | None = None
    outcome: Outcome = "pending"
    error: str | None = None
    """The type of what was raised."""
    faults: tuple[FaultKind, ...] = ()
    """The faults that took effect."""
    landed: int | None = None
    """``LATE_APPLY``: when the effect landed."""

    @property
    def thread_id(self) -> str | None:
        """The (first) thread named in the call."""
        return self.threads[0] if self.threads else None


class Script:
    """The faults still to come. ``rates`` are chances per call, for every operation the kind can befall."""

    def __init__(self, faults: Iterable[Fault], seed: int, rates: Mapping[FaultKind, float] | None) -> None:
        self._seen: list[tuple[Fault, list[int]]] = []
        self._random = Random(f"faults/{seed}")
        self._rates = {kind: (rates or {}).get(kind, 0.0) for kind in FaultKind}
        if bad := [rate for rate in self._rates.values() if not 0 <= rate <= 1]:
            raise ValueError(f"a rate is a chance between 0 and 1, got {bad[0]}")
        self.add(*faults)

    def add(self, *faults: Fault) -> None:
        """Append; their counts begin now."""
        self._seen += [(fault, [0]) for fault in faults]

    def clear(self) -> None:
        """Forget all faults and rates."""
        self._seen.clear()
        self._rates = dict.fromkeys(self._rates, 0.0)

    def due(self, operation: str, threads: tuple[str, ...]) -> dict[FaultKind, Fault]:
        """The faults that befall this call; of two of one kind, the one that was added first."""
        due: dict[FaultKind, Fault] = {}
        for fault, seen in self._seen:
            if not fault.matches(operation, threads):
                continue
            seen[0] += 1
            if fault.at <= seen[0] and (fault.times is None or seen[0] < fault.at + fault.times):
                due.setdefault(fault.kind, fault)
        for kind, rate in self._rates.items():
            if rate and operation in kind.befalls and operation != "close" and self._random.random() < rate:
                # Late effects of chance land by themselves and never leave a caller hanging.
                answers: tuple[Answer, ...] = ("raise", "return")
                fault = Fault(kind=kind, after=self._random.randint(1, 5), answer=self._random.choice(answers))
                due.setdefault(kind, fault)
        return due
