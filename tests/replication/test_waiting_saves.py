"""A save that waits behind a delete is above it: nothing that is acknowledged after it is taken for deleted.

The stamp of a save is that of its call. That of a delete is therefore not the moment at which its turn comes: a caller
may have left it (a deadline), and what he saves next would lie below it. Nor is it the moment at which another layer
hears of it: what is written behind comes later than what was saved since.
"""

from __future__ import annotations

import asyncio

import pytest
from locus.memory.checkpointer import BaseCheckpointer

from locus_tiered import (
    BoundedMemoryCheckpointer,
    ReplicatedCheckpointer,
    Tier,
    TieredCheckpointer,
    WriteBehindCheckpointer,
)
from locus_tiered.core.ids import RESERVED
from locus_tiered.testing.fault_script import on
from locus_tiered.testing.simulation_history import state_of
from tests.replication.rig import Process, Rig, scenario

STEPS = ("list_checkpoints", "exists", "load", "save", "delete")
"""What a delete does at a replica; each is slow once."""
SHAPES = ("alone", "tiered", "behind", "behind, journal", "tiered behind")


def _stack(shape: str, p: Process, rig: Rig) -> BaseCheckpointer:
    clock, near = p.clock.clock(), BoundedMemoryCheckpointer("1MiB")
    if shape == "tiered":
        return TieredCheckpointer(near, p.stack, clock=clock)
    if shape == "tiered behind":
        return TieredCheckpointer(near, Tier(p.stack, write="behind"), journal=rig.place / "j", clock=clock)
    if shape.startswith("behind"):
        ack = "journal" if shape.endswith("journal") else "turn"
        return WriteBehindCheckpointer(p.stack, journal=rig.place / "j", ack=ack, clock=clock)
    return p.stack


async def _newest(stack: BaseCheckpointer, name: str | None = None) -> int | None:
    state = await stack.load("t", name)
    return None if state is None else state.total_tokens_used


@pytest.mark.parametrize("shape", SHAPES)
def test_what_is_saved_after_a_delete_that_its_caller_has_left_stays(shape: str) -> None:
    for step in STEPS:
        for name in (None, "draft"):

            @scenario
            async def story(rig: Rig, step: str = step, name: str | None = name) -> None:
                p = rig.process()
                stack = _stack(shape, p, rig)
                await stack.save(state_of(1), "t", "draft")
                for link in p.links:
                    link.inject(on(step, times=3).slow(1.0))
                left = asyncio.ensure_future(stack.delete("t", name))
                await asyncio.sleep(0.01)
                left.cancel()
                await stack.save(state_of(2), "t", name)
                assert await _newest(stack) == 2, (step, name)
                await asyncio.sleep(60)
                assert await _newest(stack) == 2, (step, name)
                assert await rig.everywhere() == [[2]] * 3, (step, name)
                await stack.close()

            story()


@pytest.mark.parametrize("shape", SHAPES)
def test_what_is_saved_after_a_delete_stays(shape: str) -> None:
    for name in (None, "draft"):

        @scenario
        async def story(rig: Rig, name: str | None = name) -> None:
            p = rig.process()
            stack = _stack(shape, p, rig)
            for mark in (1, 2, 3):
                await stack.save(state_of(mark), "t", name)
                if mark == 2:
                    await asyncio.sleep(60)
                assert await stack.delete("t", name)
                assert await _newest(stack) is None
            await stack.save(state_of(4), "t", name)
            assert await _newest(stack) == 4
            await asyncio.sleep(60)
            assert await _newest(stack) == 4
            assert await _newest(rig.process().stack) == 4
            assert await rig.everywhere() == [[4]] * 3
            await stack.close()

        story()


@scenario
async def test_a_save_is_above_a_delete_that_has_found_what_another_process_saved_meanwhile(rig: Rig) -> None:
    p, q = rig.process(), rig.process()
    await p.save(1)
    p.links[0].inject(on("list_checkpoints", thread_id="t").slow(5.0))
    p.links[1].inject(on("list_checkpoints", thread_id="t").slow(5.0))
    left = asyncio.ensure_future(p.stack.delete("t"))
    await asyncio.sleep(0.01)
    left.cancel()
    await q.save(2)
    await asyncio.sleep(0.01)  # of two clocks nobody can say more
    await p.save(3)
    await p.rest()
    assert await p.load() == await q.load() == 3
    assert await rig.everywhere() == [[3]] * 3


@pytest.mark.parametrize("shape", ["alone", "tiered", "behind", "behind, journal"])
def test_a_save_goes_above_a_delete_that_has_found_something_above_both(shape: str) -> None:
    @scenario
    async def story(rig: Rig) -> None:
        p, q = rig.process(), rig.process()
        stack = _stack(shape, p, rig)
        await stack.save(state_of(1), "t", "draft")
        for link in p.links:
            link.inject(on("list_checkpoints", thread_id="t").slow(5.0))
        left = asyncio.ensure_future(stack.delete("t"))
        await asyncio.sleep(0.01)
        left.cancel()
        saving = asyncio.ensure_future(stack.save(state_of(2), "t", "draft"))
        await asyncio.sleep(0.01)
        await q.save(3, "other")
        await saving
        assert await _newest(stack, "draft") == 2
        await p.rest()
        assert await _newest(stack, "draft") == await q.load("draft") == 2
        assert all(2 in marks for marks in await rig.everywhere())
        await stack.close()

    story()


@scenario
async def test_a_replica_of_several_layers_hears_when_a_delete_was_asked_for(rig: Rig) -> None:
    p = rig.process()
    legs = [
        WriteBehindCheckpointer(link, journal=rig.place / f"leg-{n}", ack="journal", clock=p.clock.clock())
        for n, link in enumerate(p.links)
    ]
    stack = ReplicatedCheckpointer(*legs, clock=p.clock.clock())
    await stack.save(state_of(1), "t", "draft")
    await stack.delete("t")
    await stack.save(state_of(2), "t", "draft")
    assert not any(each.startswith(RESERVED) for each in await stack.list_threads())
    await asyncio.sleep(60)
    assert await _newest(stack) == 2
    assert await rig.everywhere() == [[2]] * 3
    await stack.close()


@scenario
async def test_what_is_late_at_a_replica_of_replicas_is_put_above_nothing(plain: Rig) -> None:
    rig = Rig(plain.place, replicas=5)
    p = rig.process()
    clock = p.clock.clock()
    inner = ReplicatedCheckpointer(*p.links[:3], clock=clock, journal=rig.place / "inner")
    outer = ReplicatedCheckpointer(inner, *p.links[3:], clock=clock, journal=rig.place / "outer")
    await outer.save(state_of(1), "t")
    await p.rest()
    for link in p.links[:3]:
        link.inject(on("list_checkpoints", thread_id="t", times=3).slow(1.0))
    await outer.delete("t")
    await outer.save(state_of(2), "t")
    await outer.delete("t")  # the note of this one arrives while the first one is under way
    await p.rest()
    assert await _newest(outer) is None
    await outer.scrub()
    assert await _newest(outer) is None
    assert await rig.everywhere() == [[]] * 5
    await outer.close()
