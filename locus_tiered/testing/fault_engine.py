"""How the faults of ``FaultyCheckpointer`` happen: the script is played, calls are logged, hang and land.

:class:`FaultEngine` is the half of it that knows nothing of checkpoints: what a test says (``partition``,
``release``, ``land``...), what it asks (``count``, ``max_in_flight``...), and the way of one call through its
faults.

Everything bound to an event loop is made by the call that needs it: an engine outlives any loop.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from dataclasses import dataclass
from itertools import count
from random import Random
from typing import Any, TypeVar

from locus_tiered.testing.fault_script import Call, Fault, FaultKind, Outcome, Script

__all__ = ["RAISES", "Apply", "Due", "FaultEngine", "note"]

T = TypeVar("T")
Due = Mapping[FaultKind, Fault]
Apply = Callable[[Due, Call], Coroutine[Any, Any, T]]

RAISES: Any = object()
"""Stands for an answer that an operation does not have."""
_PARTITIONS = frozenset({FaultKind.FAIL_BEFORE, FaultKind.FAIL_AFTER, FaultKind.HANG, FaultKind.NONE_ON_OUTAGE})


def note(call: Call, kind: FaultKind) -> None:
    """Log that a fault took effect."""
    call.faults = (*call.faults, kind)


def _wake(future: asyncio.Future[Any], answer: object) -> None:
    """Resolve a future of any loop, from any thread; one that is done or whose loop is gone stays so."""

    def resolve() -> None:
        if future.done():
            return
        if isinstance(answer, Exception):
            future.set_exception(answer)
        else:
            future.set_result(answer)

    loop = future.get_loop()
    if not loop.is_closed():
        loop.call_soon_threadsafe(resolve)


@dataclass(slots=True, eq=False)
class _Late:
    """An effect that has not landed yet, and the caller who may still wait for it."""

    call: Call
    apply: Callable[[], Coroutine[Any, Any, Any]]
    remaining: int | None
    context: contextvars.Context
    caller: asyncio.Future[Any] | None = None


class FaultEngine:
    """See ``FaultyCheckpointer``, which is this with the methods of a checkpointer."""

    def __init__(
        self,
        script: Iterable[Fault],
        seed: int,
        rates: Mapping[FaultKind, float] | None,
        sleep: Callable[[float], Awaitable[object]],
    ) -> None:
        self.calls: list[Call] = []
        self._script = Script(script, seed, rates)
        self._sleep = sleep
        self._random = Random(f"choices/{seed}")
        self._order = count(1)
        self._partition: Fault | None = None
        self._hung: dict[asyncio.Future[None], Fault] = {}
        self._late: list[_Late] = []
        self._landing: set[asyncio.Task[None]] = set()
        self._watchers: list[tuple[int, asyncio.Future[None]]] = []

    # -- what the test says ------------------------------------------------------------------------

    def inject(self, *faults: Fault) -> None:
        """Add faults; their calls are counted from now on."""
        self._script.add(*faults)

    def clear(self) -> None:
        """No more faults: forget script and rates, heal. What hangs or is late stays so.

        :meth:`release` and :meth:`land` are for those.
        """
        self._script.clear()
        self.heal()

    def partition(self, kind: FaultKind = FaultKind.FAIL_BEFORE) -> None:
        """Cut the connection until :meth:`heal`: every call but ``close`` meets this fault.

        ``FAIL_AFTER`` is the one-way cut: requests arrive, answers do not.
        """
        if kind not in _PARTITIONS:
            raise ValueError(f"a partition is one of {sorted(kind.value for kind in _PARTITIONS)}")
        self._partition = Fault(kind=kind, times=None)

    def heal(self) -> None:
        """Join the connection again; calls that hung in the partition go on."""
        cut, self._partition = self._partition, None
        for future in [future for future, fault in self._hung.items() if fault is cut]:
            _wake(future, None)

    def release(self, most: int | None = None) -> int:
        """Let hung calls go on, the oldest first, at most so many; answers how many."""
        chosen = list(self._hung)[:most]
        for future in chosen:
            _wake(future, None)
        return len(chosen)

    async def land(self, most: int | None = None, *, newest_first: bool = False) -> int:
        """Let late effects land, in the order of their calls or the reverse; answers how many.

        A caller that still waits gets the result. An effect that fails with nobody waiting is gone, as it is
        in a thread.
        """
        chosen = (self._late[::-1] if newest_first else self._late[:])[:most]
        for late in chosen:
            await self._settle(late)
        return len(chosen)

    async def until_hung(self, calls: int = 1, *, within: float = 10.0) -> None:
        """Return once so many calls hang (``HANG``, or ``LATE_APPLY`` with its caller waiting).

        ``within`` is a safety net in real seconds: ``TimeoutError`` rather than a test that never ends.
        """
        if self.hung < calls:
            watcher = asyncio.get_running_loop().create_future()
            self._watchers.append((calls, watcher))
            async with asyncio.timeout(within):
                await watcher

    @property
    def hung(self) -> int:
        """How many calls hang now."""
        waiting = (late.caller for late in self._late if late.caller is not None)
        return len(self._hung) + sum(not caller.done() for caller in waiting)

    @property
    def late(self) -> int:
        """How many effects have not landed yet."""
        return len(self._late)

    # -- what the test asks ------------------------------------------------------------------------

    def matching(self, operation: str | None = None, thread_id: str | None = None) -> list[Call]:
        """The calls so far of this operation on this thread (``None``: any)."""
        return [
            call
            for call in self.calls
            if operation in (None, call.operation) and (thread_id is None or thread_id in call.threads)
        ]

    def count(self, operation: str | None = None, thread_id: str | None = None) -> int:
        """How many such calls."""
        return len(self.matching(operation, thread_id))

    def in_flight(self, thread_id: str | None = None) -> int:
        """How many calls on this thread (``None``: altogether) have not ended."""
        return sum(call.ended is None for call in self.matching(None, thread_id))

    def max_in_flight(self, thread_id: str | None = None) -> int:
        """The most calls on this thread (``None``: altogether) that were ever under way at once."""
        steps = [(call.started, 1) for call in self.matching(None, thread_id)]
        steps += [(call.ended, -1) for call in self.matching(None, thread_id) if call.ended is not None]
        now = most = 0
        for _, step in sorted(steps):
            now += step
            most = max(most, now)
        return most

    # -- how a call goes ---------------------------------------------------------------------------

    async def _call(
        self,
        operation: str,
        threads: tuple[str, ...],
        checkpoint: str | None,
        apply: Apply[T],
        *,
        nothing: T = RAISES,
        late: T = RAISES,
        freeze: Callable[[], None] = lambda: None,
    ) -> T:
        """One call from the outside: logged, faulted, and afterwards the late effects that are due.

        ``apply`` does the work; ``nothing`` is the answer of a backend that hides its outage, ``late`` the
        one that is given before a late effect; ``freeze`` makes ``apply`` use its arguments as they are now.
        """
        call = Call(operation, threads, checkpoint, next(self._order))
        self.calls.append(call)
        due = self._script.due(operation, threads)
        if self._partition is not None and self._partition.matches(operation, threads):
            due[self._partition.kind] = self._partition
        try:
            result = await self._through(call, due, apply, nothing, late, freeze)
        except asyncio.CancelledError:
            self._end(call, "cancelled")
            raise
        except Exception as error:
            self._end(call, "raised", error)
            await self._land_due()
            raise
        self._end(call, "returned")
        await self._land_due()
        return result

    def _end(self, call: Call, outcome: Outcome, error: Exception | None = None) -> None:
        call.ended, call.outcome = next(self._order), outcome
        call.error = None if error is None else type(error).__name__
        for effect in self._late:
            if effect.remaining is not None and effect.call is not call:
                effect.remaining -= 1

    async def _through(
        self,
        call: Call,
        due: Due,
        apply: Apply[T],
        nothing: T,
        late: T,
        freeze: Callable[[], None],
    ) -> T:
        def happens(kind: FaultKind) -> Fault | None:
            if kind in due:
                note(call, kind)
            return due.get(kind)

        if fault := happens(FaultKind.SLOW):
            await self._sleep(fault.seconds)
        if fault := happens(FaultKind.HANG):
            await self._hang(fault)
        if fault := happens(FaultKind.FAIL_BEFORE):
            raise fault.exception(call.operation, call.threads)
        if fault := happens(FaultKind.NONE_ON_OUTAGE):
            if nothing is RAISES:
                raise fault.exception(call.operation, call.threads)
            return nothing
        if fault := happens(FaultKind.LATE_APPLY):
            freeze()
            effect = _Late(call, lambda: apply(due, call), fault.after, contextvars.copy_context())
            self._late.append(effect)
            if fault.answer == "raise":
                raise fault.exception(call.operation, call.threads)
            if fault.answer == "return":
                return late
            effect.caller = asyncio.get_running_loop().create_future()
            self._tell_watchers()
            answer: T = await effect.caller
            return answer
        result = await apply(due, call)
        if fault := happens(FaultKind.FAIL_AFTER):
            raise fault.exception(call.operation, call.threads)
        return result

    async def _hang(self, fault: Fault) -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._hung[future] = fault
        self._tell_watchers()
        try:
            await future
        finally:
            del self._hung[future]

    def _tell_watchers(self) -> None:
        for calls, watcher in self._watchers[:]:
            if self.hung >= calls:
                self._watchers.remove((calls, watcher))
                _wake(watcher, None)

    async def _land_due(self) -> None:
        for effect in self._late[:]:
            if effect.remaining is not None and effect.remaining <= 0:
                await self._settle(effect)

    async def _settle(self, effect: _Late) -> None:
        """Apply an effect as the one who asked for it: in his context, whoever is cancelled meanwhile."""
        if effect not in self._late:
            return
        self._late.remove(effect)

        async def land() -> None:
            try:
                result = await effect.apply()
            except Exception as error:  # noqa: BLE001 - it is the caller's to see, or nobody's
                result = error
            effect.call.landed = next(self._order)
            if effect.caller is not None:
                _wake(effect.caller, result)

        task = asyncio.get_running_loop().create_task(land(), context=effect.context)
        self._landing.add(task)
        task.add_done_callback(self._landing.discard)
        await asyncio.shield(task)
