"""What a trace of the real servers showed: a hint overtook an earlier write that was still under way."""

from __future__ import annotations

import asyncio
from pathlib import Path
from uuid import uuid4

import pytest
from locus.core.messages import Message
from locus.core.state import AgentState

from locus_tiered import GuardedCheckpointer, ReplicatedCheckpointer
from locus_tiered.core.checkpoint import ITERATION_KEY
from locus_tiered.testing import FaultyCheckpointer, ReferenceCheckpointer, on
from locus_tiered.testing.simulation_world import inline_journals
from locus_tiered.testing.virtual_time import run_virtual, virtual_clock


def state(*iterations: str) -> AgentState:
    return AgentState(messages=(Message.user("hello"),), metadata={ITERATION_KEY: list(iterations)})


@pytest.mark.parametrize("journal", [True, False])
def test_the_hint_of_a_delete_waits_for_the_save_that_hangs(tmp_path: Path, journal: bool):
    async def story() -> None:
        clock = virtual_clock()
        stores = [FaultyCheckpointer(ReferenceCheckpointer()) for _ in range(3)]
        stack = ReplicatedCheckpointer(
            *(GuardedCheckpointer(store, timeout=2.0, breaker=None, clock=clock) for store in stores),
            names=["a", "b", "c"],
            journal=tmp_path / "hints" if journal else None,
            clock=clock,
        )
        await stack.save(state(), "t")
        await stack.deliver()
        slow, name = stores[2], uuid4().hex
        slow.inject(on("save", thread_id="t").hang())
        slow.inject(on("save", thread_id="other").fail_before(ConnectionError()))
        await stack.save(state(name), "t", name)  # hangs at c, is acknowledged by a and b
        await stack.save(state(), "other")  # c is left alone from now on
        await asyncio.sleep(0.01)
        assert await stack.delete("t", name)
        await asyncio.sleep(3)  # the save is given up
        slow.clear()
        slow.release()
        await asyncio.sleep(30)
        await stack.deliver()
        changes = [call.operation for call in slow.matching(thread_id="t") if call.checkpoint_id == name]
        assert changes[-1] == "delete", changes
        assert [name in await store.inner.list_checkpoints("t", 100) for store in stores] == [False] * 3
        assert not await stack.exists("t", name)
        await stack.close()

    with inline_journals():
        run_virtual(story)


def test_of_two_replicas_a_hint_that_stands_in_for_a_slow_save_is_the_only_one(tmp_path: Path):
    async def story() -> None:
        clock = virtual_clock()
        stores = [FaultyCheckpointer(ReferenceCheckpointer()) for _ in range(2)]
        stack = ReplicatedCheckpointer(
            *(GuardedCheckpointer(store, timeout=2.0, breaker=None, clock=clock) for store in stores),
            names=["a", "b"],
            journal=tmp_path / "hints",
            clock=clock,
        )
        await stack.save(state(), "t")
        await stack.deliver()
        slow, name = stores[1], uuid4().hex
        slow.inject(on("save", thread_id="t").hang())
        await stack.save(state(name), "t", name)
        assert await stack.delete("t", name)
        await asyncio.sleep(3)
        slow.clear()
        slow.release()
        await asyncio.sleep(30)
        await stack.deliver()
        changes = [call.operation for call in slow.matching(thread_id="t") if call.checkpoint_id == name]
        assert [each for each in changes if each in ("save", "delete")] == ["save", "save", "delete"]
        assert [name in await store.inner.list_checkpoints("t", 100) for store in stores] == [False] * 2
        assert not await stack.exists("t", name)
        await stack.close()

    with inline_journals():
        run_virtual(story)
