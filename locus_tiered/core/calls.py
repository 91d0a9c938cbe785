"""Calls on a foreign checkpointer: errors become ours, first calls go alone, empty answers are doubted."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import nullcontext
from threading import Lock
from typing import Any, TypeVar, cast

from locus.memory.checkpointer import BaseCheckpointer

from locus_tiered.core.classification import classify
from locus_tiered.core.errors import BackendError, CapabilityMissing, LocusTieredError, shorten, told_cause
from locus_tiered.core.lanes import PerLoop
from locus_tiered.core.traits import Traits

__all__ = ["Calls"]

T = TypeVar("T")

_TURN_SECONDS = 0.002
_CHANGES = ("save", "delete", "copy_thread", "vacuum")


class _Gate:
    """Lets the first call of an event loop run alone, and the first that changes something (it may make the bucket)."""

    def __init__(self) -> None:
        self.open = self.open_to_changes = False
        self.lock = asyncio.Lock()


class _Turnstile:
    """Lets the calls of one event loop in at a time; another loop waits until they have ended."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._owner: int | None = None
        self._inside = 0

    async def enter(self) -> bool:
        """Come in; answers whether another loop was inside last."""
        mine = id(asyncio.get_running_loop())
        while True:
            with self._lock:
                changed = self._owner not in (None, mine)
                if not changed or not self._inside:
                    self._owner = mine
                    self._inside += 1
                    return changed
            await asyncio.sleep(_TURN_SECONDS)

    def leave(self) -> None:
        """Go out."""
        with self._lock:
            self._inside -= 1


class Calls:
    """How one leaf calls its backend. ``member`` tells the leaf's name."""

    def __init__(self, member: Callable[[], str], traits: Traits) -> None:
        self._member = member
        self._traits = traits
        self._gates: PerLoop[_Gate] = PerLoop(_Gate)
        self._turnstile = _Turnstile() if traits.one_loop_at_a_time else None
        self._careful = traits.first_call_alone or traits.scope is not None or traits.one_loop_at_a_time

    async def make(
        self,
        operation: str,
        thread_id: str | None,
        method: Callable[..., Awaitable[T]],
        *arguments: Any,
        empty: Any = None,
    ) -> T:
        """Make one call of a backend's method; whatever it raises becomes an error of ours that names this member.

        ``empty`` is the answer of a backend in which nothing was ever saved, where that is an error of its own.
        """
        try:
            if self._careful:
                return await self._carefully(operation in _CHANGES, thread_id, method, *arguments)
            return await method(*arguments)
        except LocusTieredError:
            raise  # a stack inside another checkpointer inside this stack
        except NotImplementedError as error:
            raise CapabilityMissing(f"{operation}: {self._member()} does not implement it") from error
        except Exception as error:
            if empty is not None and self._traits.absent is not None and self._traits.absent(error):
                return cast("T", empty)
            raise self._failed(operation, thread_id, error) from error

    async def _carefully(
        self, changes: bool, thread_id: str | None, method: Callable[..., Awaitable[T]], *arguments: Any
    ) -> T:
        """The call in the scope that its thread needs, in its event loop's turn, alone if it is the first there."""
        scope, turnstile = self._traits.scope, self._turnstile
        with nullcontext() if scope is None or thread_id is None else scope(thread_id):
            if turnstile is None:
                return await self._through_gate(changes, method, *arguments)
            if await turnstile.enter():
                gate = self._gates.get()
                gate.open = gate.open_to_changes = False  # the other loop's calls have dropped what this one had opened
            try:
                return await self._through_gate(changes, method, *arguments)
            finally:
                turnstile.leave()

    async def _through_gate(self, changes: bool, method: Callable[..., Awaitable[T]], *arguments: Any) -> T:
        gate = self._gates.get()
        if not self._traits.first_call_alone or (gate.open_to_changes if changes else gate.open):
            return await method(*arguments)
        async with gate.lock:
            result = await method(*arguments)
        gate.open = True
        gate.open_to_changes = gate.open_to_changes or changes
        gate.lock = asyncio.Lock()  # a lock that was waited for would keep its event loop alive
        return result

    def _failed(self, operation: str, thread_id: str | None, error: Exception) -> BackendError:
        about = "" if thread_id is None else f" of thread {shorten(thread_id)}"
        safe = "what was acknowledged before is untouched"
        if operation in _CHANGES:
            safe = f"this {operation} was not acknowledged and may or may not have taken effect; {safe}"
        member = self._member()
        return BackendError(
            f"{member} failed during {operation}{about} ({told_cause(error)}): {safe}. See the cause; try again "
            "when the member is back",
            member=member,
            operation=operation,
            temporary=classify(error).temporary,
        )

    def senseless(self, operation: str, thread_id: str, answer: object) -> BackendError:
        """The error for an answer of a type that the contract does not know."""
        member = self._member()
        return BackendError(
            f"{member} answered {operation} of thread {shorten(thread_id)} with a {type(answer).__name__}, which the "
            "contract does not know; nothing was changed. See the contract kit for backend authors",
            member=member,
            operation=operation,
            temporary=False,
        )

    async def close(self, backend: BaseCheckpointer, timeout: float) -> None:
        """Close the backend, in at most so many seconds."""
        try:
            async with asyncio.timeout(timeout):
                await backend.close()
        except LocusTieredError:
            raise
        except Exception as error:
            raise self._failed("close", None, error) from error

    async def sure(self, operation: str, thread_id: str | None, empty: bool) -> None:
        """Where nothing may also mean "not reached": raise unless the backend can be reached (law 7)."""
        if not empty or not self._traits.none_is_unknown or self._traits.probe is None:
            return
        if not await self.make(operation, thread_id, self._traits.probe):
            member = self._member()
            about = "" if thread_id is None else f" of thread {shorten(thread_id)}"
            raise BackendError(
                f"{member} cannot be reached, so its empty answer to {operation}{about} means nothing; the data is as "
                "it was. Try again when it is back",
                member=member,
                operation=operation,
                temporary=True,
            )

    def forget_loop(self) -> None:
        """The backend lets go of this event loop: its next call here is a first one again."""
        self._gates.drop()
