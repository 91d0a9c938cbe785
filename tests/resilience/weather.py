"""A store in bad weather, and a caller with patience: what the state machine of retry and guard stands on.

:class:`Stormy` is a far store that fails before and after it did what it was asked, is slow, hangs, and does things
late. :class:`Patient` is whoever calls the stack: when a call fails he waits for better weather, looks behind the
stack at what became of it, and tells the machine that. So the machine, which knows nothing of faults, can hold the
stack against a plain dictionary.

**What is legal when a change fails.** It took effect, or it did not; a look behind the stack tells which once the
weather has cleared, and from then on it must stay so. A failed save that took effect is the newest checkpoint. A read
that fails must say so by an error; one that answers must be right, in any weather.

**What a late effect may do.** An effect whose call still hangs belongs to the guard, which must let nothing of its
thread overtake it: nothing here helps it with that. An effect whose call has *failed* already (a connection that was
cut while the server was still at work) is out of any client's reach: it may land after newer saves of its thread,
whose order is then for the stamps to keep, but not after a change of the very checkpoint that it is about.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from random import Random
from typing import Any, TypeVar

from locus.core.protocols import CheckpointerCapabilities
from locus.core.state import AgentState
from locus.memory.checkpointer import BaseCheckpointer

from locus_tiered.core.envelope import Envelope
from locus_tiered.core.errors import BackendError
from locus_tiered.core.ids import IdRule
from locus_tiered.testing.fault_script import Answer, Script
from locus_tiered.testing.faults import Fault, FaultKind, FaultyCheckpointer, ReferenceCheckpointer

__all__ = ["Declined", "Patient", "Stormy", "everything_ended"]

T = TypeVar("T")

RATES = {FaultKind.FAIL_BEFORE: 0.08, FaultKind.FAIL_AFTER: 0.08, FaultKind.SLOW: 0.06, FaultKind.HANG: 0.02}
"""Chances per call. Slow is a second, which is more than the guard allows."""
LATE = 0.1
"""The chance of a change to take effect late."""


class Declined(Exception):
    """A save failed, and nothing came of it."""


class _Weather(Script):
    """The faults of chance, while it is not calm."""

    def __init__(self, seed: int, answers: tuple[Answer, ...]) -> None:
        super().__init__((), seed, RATES)
        self.calm = 0
        self._chance, self._late, self._answers = Random(f"late/{seed}"), LATE, answers

    def clear(self) -> None:
        super().clear()
        self._late = 0.0

    def due(self, operation: str, threads: tuple[str, ...]) -> dict[FaultKind, Fault]:
        if self.calm:
            return {}
        due = super().due(operation, threads)
        if operation in ("save", "delete") and self._chance.random() < self._late:
            answer = self._chance.choice(self._answers)
            due[FaultKind.LATE_APPLY] = Fault(
                kind=FaultKind.LATE_APPLY, answer=answer, after=self._chance.randint(1, 8)
            )
        return due


class Stormy(FaultyCheckpointer):
    """A far store in bad weather. ``answers``: what the caller of a late change is told meanwhile."""

    def __init__(self, far: ReferenceCheckpointer, seed: int, answers: tuple[Answer, ...] = ("hang", "raise")) -> None:
        super().__init__(far, seed=seed)
        self.far = far
        self._script = self.weather = _Weather(seed, answers)
        self._changing: Counter[str] = Counter()
        self.complaints: list[str] = []

    async def save(
        self,
        state: AgentState,
        thread_id: str,
        checkpoint_id: str | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> str:
        async with self._change("save", thread_id, checkpoint_id):
            return await super().save(state, thread_id, checkpoint_id, metadata)

    async def delete(self, thread_id: str, checkpoint_id: str | None = None) -> bool:
        async with self._change("delete", thread_id, checkpoint_id):
            return await super().delete(thread_id, checkpoint_id)

    @asynccontextmanager
    async def _change(self, what: str, thread: str, name: str | None) -> AsyncIterator[None]:
        self._changing[thread] += 1
        if self._changing[thread] > 1:
            self.complaints.append(f"{what} of {thread!r} was sent while another change of it was under way")
        try:
            for effect in self._late[:]:
                orphaned = effect.call.outcome == "raised" and thread in effect.call.threads
                if orphaned and (name is None or effect.call.checkpoint_id in (None, name)):
                    await self._settle(effect)
            yield
        finally:
            self._changing[thread] -= 1

    @asynccontextmanager
    async def clearing(self) -> AsyncIterator[None]:
        """Good weather: all that hangs or is late has landed, breakers are ready to close, nothing new goes wrong."""
        self.weather.calm += 1
        try:
            for _ in range(3):  # what lands may let in what waited for it
                self.release()
                await self.land()
                await asyncio.sleep(61)
            yield
        finally:
            self.weather.calm -= 1

    def find(self, thread: str, mark: int) -> str | None:
        """The id under which the save with this mark is stored."""
        for stored, kept in self.far.stored.items():
            for name, text in kept.items():
                data = json.loads(text.state)
                envelope = Envelope.read(data.get("metadata"))
                owner = envelope.thread if envelope else (IdRule.decode(stored) or stored)
                if data.get("total_tokens_used") == mark and owner == thread:
                    return envelope.id if envelope else (IdRule.decode(name) or name)
        return None


class Patient(BaseCheckpointer):
    """Somebody who calls a stack over a :class:`Stormy` store, and does not take a failure for an answer."""

    seen: Counter[str] = Counter()
    """What happened to all of them."""

    def __init__(self, stack: BaseCheckpointer, stormy: Stormy) -> None:
        self.stack, self.stormy = stack, stormy

    async def _insist(self, call: Callable[[], Awaitable[T]]) -> T:
        """A call that can be made again: it answers rightly, or raises; in good weather it answers."""
        try:
            return await call()
        except BackendError as error:
            self.seen[f"failed: {type(error).__name__}"] += 1
        async with self.stormy.clearing():
            for _ in range(5):
                try:
                    return await call()
                except BackendError:  # somebody else's call is the probe, or was on its way when the weather cleared
                    await asyncio.sleep(61)
            return await call()

    async def what_became_of(self, thread: str, mark: int) -> str | None:
        """The id of a save of which nobody knows whether it took effect, once that is settled."""
        async with self.stormy.clearing():
            found = self.stormy.find(thread, mark)
        self.seen["declined" if found is None else "took effect all the same"] += 1
        return found

    async def save(
        self,
        state: AgentState,
        thread_id: str,
        checkpoint_id: str | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> str:
        mark = state.total_tokens_used
        try:
            return await self.stack.save(state, thread_id, checkpoint_id, metadata)
        except BackendError as error:
            self.seen[f"failed: {type(error).__name__}"] += 1
        found = await self.what_became_of(thread_id, mark)
        if found is None:
            raise Declined
        return found

    async def load(self, thread_id: str, checkpoint_id: str | None = None) -> AgentState | None:
        return await self._insist(lambda: self.stack.load(thread_id, checkpoint_id))

    async def list_checkpoints(self, thread_id: str, limit: int = 10) -> list[str]:
        return await self._insist(lambda: self.stack.list_checkpoints(thread_id, limit))

    async def delete(self, thread_id: str, checkpoint_id: str | None = None) -> bool:
        return await self._insist(lambda: self.stack.delete(thread_id, checkpoint_id))

    async def exists(self, thread_id: str, checkpoint_id: str | None = None) -> bool:
        return await self._insist(lambda: self.stack.exists(thread_id, checkpoint_id))

    async def search(self, query: str, limit: int = 10) -> list[dict[str, Any]]:
        return await self._insist(lambda: self.stack.search(query, limit))

    async def query_by_metadata(self, key: str, value: Any, limit: int = 100) -> list[dict[str, Any]]:
        return await self._insist(lambda: self.stack.query_by_metadata(key, value, limit))

    async def get_metadata(self, thread_id: str, checkpoint_id: str | None = None) -> dict[str, Any] | None:
        return await self._insist(lambda: self.stack.get_metadata(thread_id, checkpoint_id))

    async def vacuum(self, older_than_days: int = 30) -> int:
        return await self._insist(lambda: self.stack.vacuum(older_than_days))

    async def copy_thread(self, source_thread_id: str, dest_thread_id: str) -> bool:
        return await self._insist(lambda: self.stack.copy_thread(source_thread_id, dest_thread_id))

    async def list_threads(self, limit: int = 100, pattern: str = "*") -> list[str]:
        return await self._insist(lambda: self.stack.list_threads(limit, pattern))

    async def list_with_metadata(self, limit: int = 100) -> list[dict[str, Any]]:
        return await self._insist(lambda: self.stack.list_with_metadata(limit))

    async def close(self) -> None:
        await self.stack.close()

    @property
    def capabilities(self) -> CheckpointerCapabilities:
        return self.stack.capabilities

    @property
    def deletes_single_checkpoints(self) -> bool:
        return self.stack.deletes_single_checkpoints


async def everything_ended(*stores: Stormy) -> None:
    """What must hold when an example is over, everything was closed, and what hung has been let go."""
    for store in stores:
        async with store.clearing():
            pass
        assert store.complaints == []
    left = {task for task in asyncio.all_tasks() if task is not asyncio.current_task()}
    assert not left, f"tasks left behind: {left}"
