"""``RetryingCheckpointer``: what failed for a moment is tried again; what cannot succeed is not.

=====================  ===========  ===============================================================
what                   default      why
=====================  ===========  ===============================================================
attempts               3            one hiccup and one bad luck; more only delays the bad news
deadline               15 s         an agent's user waits; shared by all layers of one operation
pause                  50 ms x 2^n  full jitter, so that callers who failed together part
pause when throttled   1 s x 2^n    or what the server asked for (``Retry-After``)
cap of a pause         5 s
retry budget           9 % + 10     retries of all calls, so that an outage is not made worse
=====================  ===========  ===============================================================

It promises: a save is the same save in every attempt (its id is settled before the first), an operation that is
not repeatable is not repeated unless it was named in ``repeat=``, permanent and unknown errors leave at once,
and ``CancelledError`` always does. It does not cut an attempt short: put a ``GuardedCheckpointer`` inside.
A ``delete`` that took effect in an attempt which failed afterwards answers ``False`` in the next.

Retries are made by tenacity; the first attempt costs next to nothing.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

from locus.memory.checkpointer import BaseCheckpointer
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception

from locus_tiered.core.classification import Kind, Verdict, classify
from locus_tiered.core.clock import SYSTEM, Clock
from locus_tiered.core.deadline import begin, end, remaining
from locus_tiered.core.errors import BreakerOpen, Overloaded, RetriesExhausted, StackConfigError, shorten
from locus_tiered.core.layer import Layer, construction
from locus_tiered.core.logs import logger_for
from locus_tiered.core.operations import OPERATIONS, Operation
from locus_tiered.core.signals import emit, observer
from locus_tiered.layers.budget import RetryBudget, shared_budget
from locus_tiered.layers.client_retries import warn_about_clients
from locus_tiered.layers.order import warn_about_order

__all__ = ["RetryEvent", "RetryStats", "RetryingCheckpointer"]

logger = logger_for(__name__)

R = TypeVar("R")

Decide = Callable[[BaseException], bool | None]
RetryOn = Decide | type[BaseException] | Collection[type[BaseException]]

_RANDOM_BITS = 53


@dataclass(frozen=True, slots=True)
class RetryEvent:
    """One retry that is about to be made; what ``on_retry`` receives."""

    operation: str
    """The operation's name."""
    member: str
    """Who failed."""
    thread_id: str | None
    attempt: int
    """The attempt that failed, counted from 1."""
    attempts: int
    """How many are allowed."""
    wait: float
    """Seconds until the next one."""
    kind: Kind
    """What the error was taken for."""
    error: BaseException


@dataclass(slots=True)
class RetryStats:
    """What a retry layer has done, in numbers that only grow."""

    calls: int = 0
    retries: int = 0
    recovered: int = 0
    """Calls that succeeded after a retry."""
    exhausted: int = 0
    """Calls given up: attempts, deadline or budget used up."""
    unknown_errors: int = 0
    """Errors that no table knows; not retried."""


class RetryingCheckpointer(Layer):
    """Tries again what failed for a moment.

    Args:
        inner: Usually one backend (with its guard); a retry belongs inside tiers and replication.
        attempts: How often altogether, the first included.
        deadline: Seconds for the whole operation, pauses included.
        base: Seconds of the first pause at most; doubles with every attempt.
        throttled_base: The same after "slow down".
        cap: Seconds of a pause at most.
        budget: The retry budget; by default one per backend, shared by all stacks that it is in.
        retry_on: Exception classes that count as temporary besides the known ones, or a function from the
            (foreign) error to ``True``, ``False``, or ``None`` for "as the tables say".
        repeat: Names of operations to repeat although they are not repeatable (``"copy_thread"``, ``"vacuum"``).
        on_retry: Called with a :class:`RetryEvent` before each pause; what it raises is logged, not raised.
    """

    def __init__(
        self,
        inner: BaseCheckpointer,
        *,
        attempts: int = 3,
        deadline: float = 15.0,
        base: float = 0.05,
        throttled_base: float = 1.0,
        cap: float = 5.0,
        budget: RetryBudget | None = None,
        retry_on: RetryOn | None = None,
        repeat: Collection[str] = (),
        on_retry: Callable[[RetryEvent], None] | None = None,
        name: str | None = None,
        clock: Clock = SYSTEM,
    ) -> None:
        super().__init__(inner, name=name)
        if not isinstance(attempts, int) or isinstance(attempts, bool) or attempts < 1:
            raise StackConfigError(f"attempts={shorten(attempts)} must be a whole number above 0")
        for what, value in (("deadline", deadline), ("base", base), ("throttled_base", throttled_base), ("cap", cap)):
            if not isinstance(value, int | float) or isinstance(value, bool) or not value > 0:
                raise StackConfigError(f"{what}={shorten(value)} must be a number of seconds above 0")
        known = {kind.name for kind in OPERATIONS}
        if isinstance(repeat, str) or not set(repeat) <= known:
            raise StackConfigError(
                f"repeat={shorten(repeat)} names no operations", hint=f"of {', '.join(sorted(known))}"
            )
        self.attempts, self.deadline, self.base, self.cap = attempts, float(deadline), float(base), float(cap)
        self.throttled_base = float(throttled_base)
        self.budget = shared_budget(self) if budget is None else budget
        self.stats = RetryStats()
        self._retry_on = _checked(retry_on)
        self._repeat, self._on_retry, self._clock = frozenset(repeat), on_retry, clock
        warn_about_order(self)
        warn_about_clients(self)

    async def handle(self, operation: Operation[R]) -> R:
        watching = observer()
        if watching is not None:
            return await watching.member(self, operation, lambda: self._tried(operation))
        return await self._tried(operation)

    def _attempt(self, operation: Operation[R], number: int) -> Awaitable[R]:
        watching = observer()
        if watching is None:
            return self.inner.handle(operation)
        return watching.attempt(self, operation, number, lambda: self.inner.handle(operation))

    async def _tried(self, operation: Operation[R]) -> R:
        self.stats.calls += 1
        self.budget.note_call()
        if not self._repeatable(operation):
            # One attempt, however long it takes: the deadline is there to bound attempts and pauses.
            return await self._once(operation)
        token = begin(self.deadline, self._clock)
        try:
            return await self._attempt(operation, 1)
        except Exception as error:
            if not self._worth_it(operation, error):
                raise
            return await self._again(operation, error)
        finally:
            end(token)

    async def _once(self, operation: Operation[R]) -> R:
        try:
            return await self._attempt(operation, 1)
        except Exception as error:
            self._worth_it(operation, error)  # counts what no table knows
            raise

    def _repeatable(self, operation: Operation[Any]) -> bool:
        return operation.repeatable or operation.name in self._repeat

    # -- deciding ------------------------------------------------------------------------------------

    def _verdict(self, error: BaseException) -> Verdict:
        verdict = classify(error)
        if self._retry_on is None or verdict.kind is Kind.EXHAUSTED:
            return verdict
        foreign = error.__cause__ if error.__cause__ is not None else error
        if isinstance(self._retry_on, tuple):
            says = True if isinstance(foreign, self._retry_on) else None
        else:
            says = self._retry_on(foreign)
        if says is None:
            return verdict
        if not says:
            return Verdict(Kind.PERMANENT)
        return verdict if verdict.kind is Kind.THROTTLED else Verdict(Kind.TEMPORARY, verdict.retry_after)

    def _worth_it(self, operation: Operation[Any], error: BaseException) -> bool:
        kind = self._verdict(error).kind
        if kind is Kind.UNKNOWN:
            self.stats.unknown_errors += 1
            emit("retry.unknown_error", self.name, None, error=type(error.__cause__ or error).__name__)
        return self._repeatable(operation) and kind in (Kind.TEMPORARY, Kind.THROTTLED)

    # -- trying again --------------------------------------------------------------------------------

    async def _again(self, operation: Operation[R], first: Exception) -> R:
        pending: Exception | None = first
        failed: BaseException = first  # most lately
        number = 0

        async def attempt() -> R:
            nonlocal pending, number
            number += 1
            if pending is not None:  # the attempt that brought us here
                error, pending = pending, None
                raise error
            return await self._attempt(operation, number)

        stopped = "attempts"

        def stop(state: RetryCallState) -> bool:
            nonlocal stopped
            if state.attempt_number >= self.attempts:
                return True
            left = remaining(self._clock)
            if left is not None and state.upcoming_sleep >= left:
                stopped = "deadline"
                return True
            if not self.budget.take():
                stopped = "budget"
                return True
            return False

        def before_sleep(state: RetryCallState) -> None:
            nonlocal failed
            assert state.outcome is not None
            error = state.outcome.exception()
            assert error is not None
            failed = error
            self._tell(operation, state.attempt_number, state.upcoming_sleep, error)

        retrying = AsyncRetrying(
            sleep=self._clock.sleep,
            stop=stop,
            wait=self._pause,
            retry=retry_if_exception(lambda error: isinstance(error, Exception) and self._worth_it(operation, error)),
            before_sleep=before_sleep,
            retry_error_callback=_last_error,
        )
        try:
            result: R | _GaveUp = await retrying(attempt)
        except (BreakerOpen, Overloaded) as refusal:  # it was not sent this time, but it was before
            result, stopped = _GaveUp(failed, number - 1), type(refusal).__name__
        if isinstance(result, _GaveUp):
            self.stats.exhausted += 1
            raise self._exhausted(operation, result, stopped) from (result.error.__cause__ or result.error)
        self.stats.recovered += 1
        return result

    def _pause(self, state: RetryCallState) -> float:
        """Full jitter (Brooker, "Exponential Backoff And Jitter", 2015); never less than the server asked for."""
        assert state.outcome is not None
        error = state.outcome.exception()
        assert error is not None
        verdict = self._verdict(error)
        base = self.throttled_base if verdict.kind is Kind.THROTTLED else self.base
        most = min(self.cap, base * 2 ** (state.attempt_number - 1))
        jittered = most * (self._clock.random_bits(_RANDOM_BITS) / (1 << _RANDOM_BITS))
        return float(max(jittered, verdict.retry_after or 0.0))

    def _tell(self, operation: Operation[Any], attempt: int, wait: float, error: BaseException) -> None:
        self.stats.retries += 1
        thread_id = next(iter(operation.threads), None)
        kind = self._verdict(error).kind
        member = getattr(error, "member", self.inner.name)
        emit("retry", self.name, thread_id, operation=operation.name, attempt=attempt, wait=wait, tier=member)
        if self._on_retry is not None:
            event = RetryEvent(operation.name, member, thread_id, attempt, self.attempts, wait, kind, error)
            try:
                self._on_retry(event)
            except Exception:
                logger.exception("%s: on_retry failed", self.name)

    def _exhausted(self, operation: Operation[Any], gave_up: _GaveUp, stopped: str) -> RetriesExhausted:
        member = getattr(gave_up.error, "member", self.inner.name)
        about = "".join(f" of thread {shorten(thread)}" for thread in operation.threads[:1])
        why = {
            "attempts": f"failed {gave_up.attempts} times",
            "deadline": f"failed, and the next pause would pass the deadline of {self.deadline:g} s",
            "budget": "failed, and the retry budget is used up (a long outage)",
            "BreakerOpen": "failed, and the breaker has opened since",
            "Overloaded": "failed, and was then turned away, because too many calls wait",
        }[stopped]
        cause = type(gave_up.error.__cause__ or gave_up.error).__name__
        safe = "it may or may not have taken effect; " if operation.changes else ""
        return RetriesExhausted(
            f"{member}: {operation.name}{about} {why} ({cause}): {safe}what was acknowledged before is untouched. "
            "Look at the member; the call can be made again",
            member=member,
            operation=operation.name,
            temporary=True,
        )

    def __repr__(self) -> str:
        defaults = {"attempts": 3, "deadline": 15.0, "base": 0.05, "throttled_base": 1.0, "cap": 5.0}
        changed = {what: getattr(self, what) for what, value in defaults.items() if getattr(self, what) != value}
        if (self.budget.ratio, self.budget.burst) != (RetryBudget().ratio, RetryBudget().burst):
            changed["budget"] = self.budget
        if self._repeat:
            changed["repeat"] = sorted(self._repeat)
        return construction(self, self.inner, **changed)


def _checked(retry_on: RetryOn | None) -> Decide | tuple[type[BaseException], ...] | None:
    """What a user gave as ``retry_on=``: a function, or classes (a class can be called, too)."""
    if retry_on is None or (callable(retry_on) and not isinstance(retry_on, type)):
        return retry_on
    classes = tuple(retry_on) if isinstance(retry_on, Iterable) else (retry_on,)
    if not all(isinstance(each, type) and issubclass(each, BaseException) for each in classes):
        raise StackConfigError(
            f"retry_on={shorten(retry_on)} is neither exception classes nor a function", hint="write (MyError,)"
        )
    return classes


@dataclass(frozen=True, slots=True)
class _GaveUp:
    error: BaseException
    attempts: int


def _last_error(state: RetryCallState) -> _GaveUp:
    assert state.outcome is not None
    error = state.outcome.exception()
    assert error is not None
    return _GaveUp(error, state.attempt_number)
