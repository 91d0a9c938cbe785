"""``GuardedCheckpointer``: a member that hangs or dies does not hang or drown its callers.

Around every attempt: a *timeout* by operation (and, for saves, by size), a *circuit breaker* that leaves a
failing member alone for a while, and a *bulkhead* that turns calls away at once when too many wait.

It promises: a caller waits no longer than the timeout; a call that was sent and timed out, or whose caller left, is
**abandoned**, not killed: when it changes something it goes on in the background, keeps its place in the
bulkhead, and the next change of its thread waits until it has ended, so a late write never lands on a newer
one that this layer acknowledged (law 9). A read is cancelled, and keeps its place until it has heard of that. What
still waited for its turn then is never sent. It does not retry.

A timeout says nothing about the outcome: the call may still take effect.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from locus.memory.checkpointer import BaseCheckpointer

from locus_tiered.core.classification import Kind, classify
from locus_tiered.core.clock import SYSTEM, Clock
from locus_tiered.core.deadline import remaining, timed
from locus_tiered.core.errors import AttemptTimeout, BreakerOpen, Overloaded, StackConfigError, shorten
from locus_tiered.core.lanes import Lanes, PerLoop
from locus_tiered.core.layer import Layer
from locus_tiered.core.logs import logger_for
from locus_tiered.core.operations import OPERATIONS, Operation, Save
from locus_tiered.core.signals import emit, observer
from locus_tiered.layers.breaker import Breaker, BreakerPolicy
from locus_tiered.layers.bulkhead import Bulkhead, Full
from locus_tiered.layers.order import warn_about_order

__all__ = ["GuardStats", "GuardedCheckpointer", "Timeouts"]

logger = logger_for(__name__)

R = TypeVar("R")

_SETTLE_SECONDS = 5.0
_MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds that one attempt may take, by operation.

    ``others`` is for every operation that ``by_operation`` does not name. A save gets ``save_per_mib`` more for
    each MiB of its state.
    """

    by_operation: Mapping[str, float] = field(
        default_factory=lambda: (
            {"load": 5.0, "head": 5.0, "exists": 5.0, "save": 10.0, "delete": 10.0}
            | {"copy_thread": 120.0, "vacuum": 300.0}
        )
    )
    others: float = 10.0
    save_per_mib: float = 2.0

    def __post_init__(self) -> None:
        known = {kind.name for kind in OPERATIONS}
        for name, seconds in self.by_operation.items():
            if name not in known:
                raise StackConfigError(
                    f"timeout for {name!r}: no such operation", hint=f"one of {', '.join(sorted(known))}"
                )
            _check_seconds(f"timeout for {name!r}", seconds)
        _check_seconds("timeout for others", self.others)
        if not self.save_per_mib >= 0:
            raise StackConfigError(f"save_per_mib={shorten(self.save_per_mib)} must be 0 or more")

    @classmethod
    def of(cls, given: Timeouts | Mapping[str, float] | float | None) -> Timeouts | None:
        """What a user gave as ``timeout=``: a number for all, a mapping over the defaults, or none at all."""
        if given is None or isinstance(given, Timeouts):
            return given
        if isinstance(given, Mapping):
            return replace(cls(), by_operation={**cls().by_operation, **given})
        _check_seconds("timeout", given)
        return cls(by_operation={}, others=given, save_per_mib=0.0)

    def seconds(self, operation: Operation[Any]) -> float:
        """For this operation."""
        seconds = self.by_operation.get(operation.name, self.others)
        if isinstance(operation, Save) and self.save_per_mib:
            seconds += self.save_per_mib * _size(operation) / _MIB
        return seconds

    @property
    def as_given(self) -> object:
        """The shortest form that :meth:`of` takes for this."""
        default = Timeouts()
        if self == Timeouts.of(self.others):
            return self.others
        if (self.others, self.save_per_mib) != (default.others, default.save_per_mib):
            return self
        if not default.by_operation.keys() <= self.by_operation.keys():
            return self
        return {name: each for name, each in self.by_operation.items() if each != default.by_operation.get(name)}


def _size(save: Save) -> int:
    """Bytes of a state: of one that was not encoded yet, those of its messages, which is nearly all of a large one."""
    if save.checkpoint is not None:
        return len(save.checkpoint.body.encoded)
    texts = (getattr(message, "content", None) for message in getattr(save.state, "messages", ()))
    return sum(len(text) for text in texts if isinstance(text, str))


def _check_seconds(what: str, value: object) -> None:
    if not isinstance(value, int | float) or isinstance(value, bool) or not value > 0:
        raise StackConfigError(f"{what}={shorten(value)} must be a number of seconds above 0")


@dataclass(slots=True)
class GuardStats:
    """What a guard has done, in numbers that only grow."""

    calls: int = 0
    failures: int = 0
    """Calls that counted against the member: it could not be reached, or took too long."""
    timeouts: int = 0
    """Calls that took longer than they might, or had no time left at all."""
    refused: int = 0
    """Calls that the open breaker refused."""
    overloaded: int = 0
    """Calls that the bulkhead turned away."""
    opened: int = 0
    """How often the breaker opened."""


def _begin(call: Coroutine[Any, Any, R]) -> asyncio.Task[R]:
    """``call`` in a task of its own; one that never waits is done at once, where Python can (3.12)."""
    loop = asyncio.get_running_loop()
    if sys.version_info >= (3, 12):
        return asyncio.Task(call, loop=loop, eager_start=True)
    return loop.create_task(call)


@dataclass(slots=True)
class _Turn:
    """How far a change has come."""

    task: asyncio.Task[Any] | None = None
    """Its own, from when its thread's lane was free."""
    sent: bool = False


class GuardedCheckpointer(Layer):
    """Timeout, circuit breaker and bulkhead around one member.

    Args:
        inner: Usually one backend; inside a ``RetryingCheckpointer``, so that each attempt has a timeout.
        timeout: :class:`Timeouts`, a mapping from operation to seconds over the defaults, one number for all, or
            ``None`` for no timeout. A sooner deadline of an outer layer holds as well.
        breaker: A :class:`BreakerPolicy`, or ``None`` for no breaker.
        max_concurrency: Calls under way at once, abandoned ones included.
        max_waiting: Calls that may wait beside them; further ones raise :class:`Overloaded` at once.
    """

    def __init__(
        self,
        inner: BaseCheckpointer,
        *,
        timeout: Timeouts | Mapping[str, float] | float | None = Timeouts(),
        breaker: BreakerPolicy | None = BreakerPolicy(),  # noqa: B008 - frozen
        max_concurrency: int = 16,
        max_waiting: int = 64,
        name: str | None = None,
        clock: Clock = SYSTEM,
    ) -> None:
        super().__init__(inner, name=name)
        for what, value, least in (("max_concurrency", max_concurrency, 1), ("max_waiting", max_waiting, 0)):
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise StackConfigError(f"{what}={shorten(value)} must be a whole number, at least {least}")
        self.timeouts = Timeouts.of(timeout)
        self.breaker = None if breaker is None else Breaker(breaker, clock)
        self.max_concurrency, self.max_waiting = max_concurrency, max_waiting
        self.stats = GuardStats()
        self._clock = clock
        self._bulkheads = PerLoop(lambda: Bulkhead(max_concurrency, max_waiting))
        self._lanes = Lanes()
        self._left: PerLoop[set[asyncio.Task[Any]]] = PerLoop(set)  # reads that were cancelled and have not ended
        warn_about_order(self)

    async def handle(self, operation: Operation[R]) -> R:
        watching = observer()
        if watching is not None:
            return await watching.member(self, operation, lambda: self._guarded(operation))
        return await self._guarded(operation)

    async def _guarded(self, operation: Operation[R]) -> R:
        self.stats.calls += 1
        seconds = self._seconds(operation)
        if seconds == 0:
            raise self._timed_out(operation, seconds, _Turn())
        era = self._admit(operation)
        turn = _Turn() if operation.changes else None
        try:
            if turn is not None:
                call = self._change(operation, turn)
                result = await (call if seconds is None else timed(call, seconds))
            else:
                task = _begin(self._read(operation))
                result = task.result() if task.done() else await self._answer(task, seconds)
        except TimeoutError as error:
            # The limit's own, or one that the member raised: that is as bad.
            self._against(operation, "a timeout", era)
            raise self._timed_out(operation, seconds, turn) from error
        except Full as error:
            if self.breaker is not None:
                self.breaker.undecided(era)
            raise self._overloaded(operation) from error
        except Exception as error:
            self._count(operation, error, era)
            raise
        except BaseException:  # the caller leaves
            if self.breaker is not None:
                self.breaker.undecided(era)
            raise
        if self.breaker is not None and self.breaker.succeeded(era):
            logger.info("%s: the breaker is closed again", self._member)
            emit("breaker.closed", self.name, None)
        return result

    @property
    def _member(self) -> str:
        return self.inner.name

    # -- the call ------------------------------------------------------------------------------------

    async def _read(self, operation: Operation[R]) -> R:
        """The call in its place of the bulkhead."""
        bulkhead = self._bulkheads.get()
        await bulkhead.enter()
        try:
            return await self.inner.handle(operation)
        finally:
            bulkhead.leave()

    async def _answer(self, read: asyncio.Task[R], seconds: float | None) -> R:
        """Wait for a read no longer than allowed; then it is cancelled, and left behind.

        Some clients wait for their server even to be cancelled (asyncpg does); whoever called us does not.
        """
        left = self._left.get()
        try:
            async with asyncio.timeout(seconds):
                return await asyncio.shield(read)
        finally:
            if not read.done() and not read.get_loop().is_closed():
                read.cancel()
                left.add(read)
                read.add_done_callback(left.discard)

    async def _change(self, operation: Operation[R], turn: _Turn) -> R:
        """The call in its thread's lane, where it may outlive us, and in its place of the bulkhead."""
        bulkhead = self._bulkheads.get()

        async def change() -> R:
            turn.task = asyncio.current_task()
            bulkhead.leave_line()
            await bulkhead.enter()
            turn.sent = True
            try:
                return await self.inner.handle(operation)
            finally:
                bulkhead.leave()

        bulkhead.line_up()
        try:
            return await self._lanes.change(operation.threads[-1] if operation.threads else "", change)
        except asyncio.CancelledError:
            if turn.task is not None and not turn.sent:
                turn.task.cancel()  # it still waits for a place
            raise
        finally:
            if turn.task is None:
                bulkhead.leave_line()

    def _seconds(self, operation: Operation[Any]) -> float | None:
        own = None if self.timeouts is None else self.timeouts.seconds(operation)
        left = remaining(self._clock)
        if own is None or left is None:
            return own if left is None else left
        return min(own, left)

    # -- the breaker ---------------------------------------------------------------------------------

    def _admit(self, operation: Operation[Any]) -> int:
        """Let the call pass, and answer the breaker's era; or raise."""
        if self.breaker is None:
            return 0
        wait = self.breaker.admit()
        if wait is None:
            return self.breaker.era
        self.stats.refused += 1
        emit("guard.refused", self.name, None)
        raise BreakerOpen(
            f"{self._member} failed too often; {operation.name} was not sent, and the data is as it was. The next "
            f"probe is due in {wait:.1f} s",
            member=self._member,
            operation=operation.name,
            temporary=True,
        )

    def _count(self, operation: Operation[Any], error: Exception, era: int) -> None:
        """A member that answers "no" is well; one that cannot be reached is not."""
        kind = classify(error).kind
        if kind in (Kind.PERMANENT, Kind.EXHAUSTED):
            if self.breaker is not None:
                self.breaker.succeeded(era) if kind is Kind.PERMANENT else self.breaker.undecided(era)
            return
        self._against(operation, type(error.__cause__ or error).__name__, era)

    def _against(self, operation: Operation[Any], what: str, era: int) -> None:
        self.stats.failures += 1
        if self.breaker is not None and self.breaker.failed(era):
            self.stats.opened += 1
            logger.warning("%s: the breaker opened after %s during %s", self._member, what, operation.name)
            emit("breaker.opened", self.name, None, error=what)

    def _overloaded(self, operation: Operation[Any]) -> Overloaded:
        self.stats.overloaded += 1
        emit("guard.overloaded", self.name, None)
        return Overloaded(
            f"{self._member}: {self.max_concurrency + self.max_waiting} calls are under way or wait already, this "
            f"{operation.name} was turned away; nothing was sent. Try again later, or raise max_concurrency or "
            "max_waiting",
            member=self._member,
            operation=operation.name,
            temporary=True,
        )

    def _timed_out(self, operation: Operation[Any], seconds: float | None, turn: _Turn | None) -> AttemptTimeout:
        self.stats.timeouts += 1
        emit("guard.timeout", self.name, next(iter(operation.threads), None), operation=operation.name)
        about = "".join(f" of thread {shorten(thread)}" for thread in operation.threads[:1])
        limit = "its own limit" if seconds is None else f"{seconds:g} s"
        happened = f"took longer than {limit} and was abandoned"
        if turn is None:
            outcome = "nothing was changed"
        elif turn.sent:
            outcome = "it goes on in the background and may still take effect; later changes of the thread wait for it"
        else:
            happened = f"waited for its turn longer than {limit}" if seconds else "came when the deadline had passed"
            outcome = "nothing was sent"
        return AttemptTimeout(
            f"{self._member}: {operation.name}{about} {happened}; {outcome}. Look at the member, or allow more time",
            member=self._member,
            operation=operation.name,
            temporary=True,
        )

    # -- life ----------------------------------------------------------------------------------------

    @property
    def running(self) -> int:
        """Calls of this event loop that are under way, abandoned ones included."""
        return self._bulkheads.get().running

    async def close(self) -> None:
        """Wait a little for abandoned calls, then close the member."""
        reads, loop = self._left.get(), asyncio.get_running_loop()
        deadline = loop.time() + _SETTLE_SECONDS
        changes = await self._lanes.settle(_SETTLE_SECONDS)
        if reads:
            await asyncio.wait(set(reads), timeout=max(0.0, deadline - loop.time()))
        if changes or reads:
            logger.warning("%s: closed with %d calls still running", self._member, changes + len(reads))
        await super().close()

    def __repr__(self) -> str:
        policy = None if self.breaker is None else self.breaker.policy
        parts = [
            repr(self.inner),
            "" if self.timeouts == Timeouts() else f"timeout={self.timeouts and self.timeouts.as_given!r}",
            "" if policy == BreakerPolicy() else f"breaker={policy!r}",
            "" if self.max_concurrency == 16 else f"max_concurrency={self.max_concurrency}",
            "" if self.max_waiting == 64 else f"max_waiting={self.max_waiting}",
        ]
        return f"{type(self).__name__}({', '.join(part for part in parts if part)})"
