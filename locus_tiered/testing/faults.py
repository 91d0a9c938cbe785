"""A checkpointer that goes wrong on purpose, exactly when told to.

:class:`FaultyCheckpointer` is a plain ``BaseCheckpointer``, foreign to any stack, around another one. It
plays a script of faults (``fault_script``) and keeps a log of every call::

    far = FaultyCheckpointer(script=[on("save").fail_after()])
    stack = TieredCheckpointer(BoundedMemoryCheckpointer(), RetryingCheckpointer(far))
    await stack.save(state, "thread-1")

    assert far.count("save") == 2
    assert far.max_in_flight("thread-1") == 1

It promises that the same seed and the same calls give the same faults, that no fault happens unasked, that
``CancelledError`` always leaves at once, and that nothing waits for real time: hung calls are released and
late effects land when the test says so, and slowness goes through the injected ``sleep``.

It does not judge: what a stack must make of a fault is for the test to say. A late effect does not count as
in flight once its caller was answered.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from copy import deepcopy
from itertools import groupby
from typing import Any, TypeVar

from locus.core.protocols import CheckpointerCapabilities
from locus.core.state import AgentState
from locus.memory.checkpointer import BaseCheckpointer

from locus_tiered.testing.damage import damaged
from locus_tiered.testing.fault_engine import Due, FaultEngine, note
from locus_tiered.testing.fault_script import Call, Fault, FaultKind, InjectedFault, on
from locus_tiered.testing.reference import ReferenceCheckpointer

__all__ = ["Call", "Fault", "FaultKind", "FaultyCheckpointer", "InjectedFault", "ReferenceCheckpointer", "on"]

T = TypeVar("T")

_ALL = 1_000_000
"""More checkpoints than any thread of a test has; the SDK's own word for all."""


class FaultyCheckpointer(FaultEngine, BaseCheckpointer):
    """``inner`` with faults.

    Args:
        inner: The checkpointer that does the work; a :class:`ReferenceCheckpointer` of its own by default.
        script: The faults to play; more can follow with :meth:`inject`.
        seed: Where all chance comes from: the rates, and which value is damaged.
        rates: Chance per call and kind, e.g. ``{FaultKind.FAIL_BEFORE: 0.05}``.
        sleep: What ``SLOW`` awaits, with the seconds.

    ``calls`` is the log, in order of start. ``inner`` may be used directly, to look or to change behind the
    faults' back.
    """

    def __init__(
        self,
        inner: BaseCheckpointer | None = None,
        *,
        script: Iterable[Fault] = (),
        seed: int = 0,
        rates: Mapping[FaultKind, float] | None = None,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        super().__init__(script, seed, rates, sleep)
        self.inner: BaseCheckpointer = ReferenceCheckpointer() if inner is None else inner
        # The index of a careless backend: ids that are not listed, the time of each save, threads with ties.
        self._lost: dict[str, set[str]] = {}
        self._times: dict[str, dict[str, int]] = {}
        self._tied: set[str] = set()

    @property
    def capabilities(self) -> CheckpointerCapabilities:
        return self.inner.capabilities

    @property
    def deletes_single_checkpoints(self) -> bool:
        return self.inner.deletes_single_checkpoints

    async def save(
        self,
        state: AgentState,
        thread_id: str,
        checkpoint_id: str | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> str:
        # The id that the caller of a late save is told before it landed.
        name = f"{self._random.getrandbits(128):032x}" if checkpoint_id is None else checkpoint_id

        def freeze() -> None:
            nonlocal state, checkpoint_id, metadata
            state, checkpoint_id, metadata = deepcopy(state), name, deepcopy(metadata)

        async def apply(due: Due, call: Call) -> str:
            body = state
            if FaultKind.DAMAGED_BODY in due:
                body = damaged(state, self._random)
                note(call, FaultKind.DAMAGED_BODY)
            saved = await self.inner.save(body, thread_id, checkpoint_id, metadata)
            self._index(thread_id, saved, due, call)
            return saved

        return await self._call("save", (thread_id,), checkpoint_id, apply, late=name, freeze=freeze)

    async def load(self, thread_id: str, checkpoint_id: str | None = None) -> AgentState | None:
        async def apply(due: Due, call: Call) -> AgentState | None:
            if FaultKind.WRONG_THREAD in due:
                for other in self._others(thread_id):
                    if (found := await self.inner.load(other)) is not None:
                        note(call, FaultKind.WRONG_THREAD)
                        return found
            if FaultKind.STALE_LATEST in due and checkpoint_id is None:
                newest = await self.inner.list_checkpoints(thread_id, 2)
                if newest:
                    note(call, FaultKind.STALE_LATEST)
                    return await self.inner.load(thread_id, newest[1]) if len(newest) == 2 else None
            state = await self.inner.load(thread_id, checkpoint_id)
            if FaultKind.DAMAGED_BODY in due and state is not None:
                note(call, FaultKind.DAMAGED_BODY)
                return damaged(state, self._random)
            return state

        return await self._call("load", (thread_id,), checkpoint_id, apply, nothing=None)

    async def list_checkpoints(self, thread_id: str, limit: int = 10) -> list[str]:
        async def apply(due: Due, call: Call) -> list[str]:
            if FaultKind.WRONG_THREAD in due:
                for other in self._others(thread_id):
                    if found := await self.inner.list_checkpoints(other, limit):
                        note(call, FaultKind.WRONG_THREAD)
                        return found
            if not self._lost.get(thread_id) and thread_id not in self._tied:
                return await self.inner.list_checkpoints(thread_id, limit)
            return self._as_indexed(thread_id, await self.inner.list_checkpoints(thread_id, _ALL))[:limit]

        return await self._call("list_checkpoints", (thread_id,), None, apply, nothing=[])

    async def delete(self, thread_id: str, checkpoint_id: str | None = None) -> bool:
        async def apply(due: Due, call: Call) -> bool:
            return await self.inner.delete(thread_id, checkpoint_id)

        return await self._call("delete", (thread_id,), checkpoint_id, apply, nothing=False, late=True)

    async def exists(self, thread_id: str, checkpoint_id: str | None = None) -> bool:
        async def apply(due: Due, call: Call) -> bool:
            return await self.inner.exists(thread_id, checkpoint_id)

        return await self._call("exists", (thread_id,), checkpoint_id, apply, nothing=False)

    async def close(self) -> None:
        async def apply(due: Due, call: Call) -> None:
            await self.inner.close()

        await self._call("close", (), None, apply)

    async def search(self, query: str, limit: int = 10) -> list[dict[str, Any]]:
        async def apply(due: Due, call: Call) -> list[dict[str, Any]]:
            return await self.inner.search(query, limit)

        return await self._call("search", (), None, apply, nothing=[])

    async def query_by_metadata(self, key: str, value: Any, limit: int = 100) -> list[dict[str, Any]]:
        async def apply(due: Due, call: Call) -> list[dict[str, Any]]:
            return await self.inner.query_by_metadata(key, value, limit)

        return await self._call("query_by_metadata", (), None, apply, nothing=[])

    async def get_metadata(self, thread_id: str, checkpoint_id: str | None = None) -> dict[str, Any] | None:
        async def apply(due: Due, call: Call) -> dict[str, Any] | None:
            if FaultKind.WRONG_THREAD in due:
                for other in self._others(thread_id):
                    if (found := await self.inner.get_metadata(other)) is not None:
                        note(call, FaultKind.WRONG_THREAD)
                        return found
            return await self.inner.get_metadata(thread_id, checkpoint_id)

        return await self._call("get_metadata", (thread_id,), checkpoint_id, apply, nothing=None)

    async def vacuum(self, older_than_days: int = 30) -> int:
        async def apply(due: Due, call: Call) -> int:
            return await self.inner.vacuum(older_than_days)

        return await self._call("vacuum", (), None, apply, late=0)

    async def copy_thread(self, source_thread_id: str, dest_thread_id: str) -> bool:
        async def apply(due: Due, call: Call) -> bool:
            return await self.inner.copy_thread(source_thread_id, dest_thread_id)

        return await self._call("copy_thread", (source_thread_id, dest_thread_id), None, apply, late=True)

    async def list_threads(self, limit: int = 100, pattern: str = "*") -> list[str]:
        async def apply(due: Due, call: Call) -> list[str]:
            return await self.inner.list_threads(limit, pattern)

        return await self._call("list_threads", (), None, apply, nothing=[])

    async def list_with_metadata(self, limit: int = 100) -> list[dict[str, Any]]:
        async def apply(due: Due, call: Call) -> list[dict[str, Any]]:
            lost = {(thread, name) for thread, names in self._lost.items() for name in names}
            if not lost:
                return await self.inner.list_with_metadata(limit)
            rows = await self.inner.list_with_metadata(_ALL)
            return [row for row in rows if (row.get("thread_id"), row.get("checkpoint_id")) not in lost][:limit]

        return await self._call("list_with_metadata", (), None, apply, nothing=[])

    # -- the careless index ------------------------------------------------------------------------

    def _others(self, thread: str) -> list[str]:
        """The other threads saved so far, in an order of chance."""
        others = [name for name in self._times if name != thread]
        return self._random.sample(others, len(others))

    def _index(self, thread: str, checkpoint: str, due: Due, call: Call) -> None:
        """Note a save that was applied: whether it is listed, and its time (shared, in a tie)."""
        times = self._times.setdefault(thread, {})
        last = max(times.values(), default=0)
        if FaultKind.TIE in due and times:
            note(call, FaultKind.TIE)
            self._tied.add(thread)
        else:
            last += 1
        times[checkpoint] = last
        lost = self._lost.setdefault(thread, set())
        lost.discard(checkpoint)
        if FaultKind.LOST_INDEX_ROW in due:
            note(call, FaultKind.LOST_INDEX_ROW)
            lost.add(checkpoint)

    def _as_indexed(self, thread: str, ids: list[str]) -> list[str]:
        """``ids``, newest first, as this index has them."""
        lost, times = self._lost.get(thread, set()), self._times.get(thread, {})
        # What was saved behind our back has a time of its own: a negative one, for no tie is negative.
        moments = {name: times.get(name, -position) for position, name in enumerate(ids, 1)}
        listed = (name for name in ids if name not in lost)
        return [name for _, tied in groupby(listed, key=moments.__getitem__) for name in sorted(tied)]

    def __repr__(self) -> str:
        return f"FaultyCheckpointer({self.inner!r})"
