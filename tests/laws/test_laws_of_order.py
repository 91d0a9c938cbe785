"""Laws 1 to 4: one checkpointer, newest means last saved, reading changes nothing, deleted stays deleted."""

from __future__ import annotations

import asyncio
from uuid import uuid4

import pytest
from locus.memory.backends import FileCheckpointer, MemoryCheckpointer

from locus_tiered import (
    BoundedMemoryCheckpointer,
    CachedCheckpointer,
    DirectoryCheckpointer,
    Layer,
    TieredCheckpointer,
)
from locus_tiered.core.operations import Head, Load
from locus_tiered.testing.faults import FaultyCheckpointer, ReferenceCheckpointer, on
from tests.laws.parts import ITERATIONS, ManualClock, latest, stack, state


async def test_law_2_newest_is_the_last_saved_even_from_a_process_whose_clock_is_an_hour_behind():
    time, home = ManualClock(), ReferenceCheckpointer()
    ahead = stack(home, clock=time.clock(skew=3600))
    behind = stack(home, clock=time.clock())
    await ahead.save(state(1), "t")
    await behind.save(state(2), "t")  # without having looked at the thread
    assert await latest(ahead) == 2
    assert await latest(behind) == 2
    await ahead.save(state(3), "t")
    assert await latest(behind) == 3


async def test_law_2_a_bad_clock_poisons_one_thread_only():
    time, home = ManualClock(), ReferenceCheckpointer()
    await stack(home, clock=time.clock(skew=86_400)).save(state(1), "poisoned")
    honest = stack(home, clock=time.clock())
    await honest.save(state(2), "poisoned")
    await honest.save(state(3), "other")
    (poisoned,) = await honest.list_checkpoints("poisoned", limit=1)
    (other,) = await honest.list_checkpoints("other")
    assert poisoned > other
    assert other < (await stack(home, clock=time.clock(skew=1)).save(state(4), "third"))


@pytest.mark.parametrize("shape", ["stamp", "uuid", "name"])
async def test_law_2_an_id_saved_again_is_the_newest_for_everyone_on_a_home_that_orders_ties_by_name(shape):
    faulty = FaultyCheckpointer(script=[on("save", times=None).tie()])
    one, other = stack(faulty), stack(faulty)
    given = {"stamp": None, "uuid": uuid4().hex, "name": "draft"}[shape]
    first = await one.save(state(1), "t", given)
    await one.save(state(2), "t")
    assert await latest(other) == 2
    await one.save(state(3), "t", first)
    assert await latest(other) == 3
    assert (await other.list_checkpoints("t"))[0] == first
    assert len(await other.list_checkpoints("t")) == 2
    assert await latest(stack(faulty)) == 3  # a third process, which has seen nothing
    await other.save(state(4), "t", first)
    assert await latest(one) == 4
    assert await one.delete("t", first)
    assert await latest(other) == 2


async def test_law_2_an_agents_turn_on_a_home_with_ties_is_never_lost():
    faulty = FaultyCheckpointer(script=[on("save", times=None).tie()])
    checkpointer = stack(faulty)
    for turn in range(1, 6):
        listed: list[str] = []
        for iteration in range(3):
            listed.append(uuid4().hex)
            await checkpointer.save(state(iteration, **{ITERATIONS: list(listed)}), "t", listed[-1])
        await checkpointer.save(state(100 + turn), "t")
        for checkpoint_id in listed:
            await checkpointer.delete("t", checkpoint_id)
        assert await latest(checkpointer) == 100 + turn
        assert await latest(stack(faulty)) == 100 + turn
    assert len(await checkpointer.list_checkpoints("t")) == 5


async def test_law_2_a_stale_latest_of_the_home_is_not_believed():
    faulty = FaultyCheckpointer(script=[on("load", times=None).stale_latest()])
    checkpointer = stack(faulty)
    await checkpointer.save(state(1), "t")
    await checkpointer.save(state(2), "t")
    assert await latest(stack(faulty)) == 2


async def test_law_2_a_lost_index_row_does_not_hide_what_this_process_saved():
    faulty = FaultyCheckpointer(script=[on("save", at=2).lose_index_row()])
    checkpointer = CachedCheckpointer(faulty)
    await checkpointer.save(state(1), "t")
    await checkpointer.save(state(2), "t")
    assert await latest(checkpointer) == 2


async def test_law_2_a_floor_falls_when_another_process_deletes_the_newest():
    home = ReferenceCheckpointer()
    one, other = stack(home), stack(home)
    await one.save(state(1), "t")
    newest = await one.save(state(2), "t")
    assert await latest(one) == 2
    assert await other.delete("t", newest)
    assert await latest(one) == 1
    assert await other.delete("t")
    assert await latest(one) is None


async def test_law_2_states_from_before_the_stack_keep_their_order_below_every_stamped_one():
    home = MemoryCheckpointer()
    old = [await home.save(state(n), "t") for n in range(3)]
    checkpointer = stack(home)
    assert await latest(checkpointer) == 2
    assert await checkpointer.list_checkpoints("t") == old[::-1]
    new = await checkpointer.save(state(9), "t")
    assert await checkpointer.list_checkpoints("t") == [new, *old[::-1]]
    assert (await checkpointer.load("t", old[0])).iteration == 0
    assert await latest(stack(home)) == 9


async def test_law_3_loading_an_old_checkpoint_moves_no_head_in_any_tier(tmp_path):
    near = FileCheckpointer(tmp_path / "near")
    home = FileCheckpointer(tmp_path / "home")
    ids = [await stack(home).save(state(n), "t") for n in range(4)]
    checkpointer = TieredCheckpointer(near, home)
    assert await latest(checkpointer) == 3
    for checkpoint_id, number in zip(ids, range(4), strict=True):
        assert (await checkpointer.load("t", checkpoint_id)).iteration == number
        assert await latest(checkpointer) == 3
        assert await latest(near) == 3  # for readers who do not use the stack, too
        assert await latest(home) == 3


async def test_law_3_filling_our_own_stores_with_old_checkpoints_moves_nothing(tmp_path):
    home = ReferenceCheckpointer()
    ids = [await stack(home).save(state(n), "t") for n in range(4)]
    memory, directory = BoundedMemoryCheckpointer(), DirectoryCheckpointer(tmp_path)
    checkpointer = TieredCheckpointer(memory, directory, home)
    assert await latest(checkpointer) == 3
    for checkpoint_id in ids:
        await checkpointer.load("t", checkpoint_id)
    for store in (memory, directory):
        assert (await store.handle(Head("t"))).id == ids[-1]
        assert await store.list_checkpoints("t") == ids[::-1]


class LateAnswer(Layer):
    """Answers its first load from what was there when it was asked, but only when told to."""

    def __init__(self, inner):
        super().__init__(inner)
        self.asked, self.answer = asyncio.Event(), asyncio.Event()

    async def handle(self, operation):
        found = await self.inner.handle(operation)
        if isinstance(operation, Load) and not self.asked.is_set():
            self.asked.set()
            await self.answer.wait()
        return found


@pytest.mark.parametrize("what", ["checkpoint", "thread"])
async def test_law_4_a_fill_that_raced_a_delete_is_dropped(tmp_path, what):
    home = BoundedMemoryCheckpointer()
    await home.save(state(1), "t")
    newest = await home.save(state(2), "t")
    memory, directory, late = BoundedMemoryCheckpointer(), DirectoryCheckpointer(tmp_path), LateAnswer(home)
    checkpointer = TieredCheckpointer(memory, directory, late)
    load = asyncio.create_task(checkpointer.load("t", newest))
    await late.asked.wait()
    assert await checkpointer.delete("t", newest if what == "checkpoint" else None)
    late.answer.set()
    assert (await load).iteration == 2  # it was there when it was asked for
    assert await checkpointer.load("t", newest) is None
    assert await latest(checkpointer) == (1 if what == "checkpoint" else None)
    for store in (memory, directory):
        assert await store.load("t", newest) is None
    assert checkpointer.stats.dropped_fills == 1


async def test_law_4_vacuum_and_copy_fence_the_near_tiers(tmp_path):
    time = ManualClock()
    home = DirectoryCheckpointer(tmp_path / "home", clock=time.clock())
    checkpointer = stack(home, tmp_path / "near", clock=time.clock())
    old = await checkpointer.save(state(1), "t")
    time.advance(40 * 86_400)
    new = await checkpointer.save(state(2), "t")
    assert await checkpointer.vacuum(older_than_days=30) == 1
    assert await checkpointer.load("t", old) is None
    assert await checkpointer.exists("t", old) is False
    assert await checkpointer.list_checkpoints("t") == [new]
    assert await checkpointer.copy_thread("t", "u")
    assert await latest(checkpointer, "u") == 2
    assert await checkpointer.delete("u")
    assert await latest(checkpointer, "t") == 2


async def test_copying_onto_a_thread_makes_the_copies_its_newest_and_keeps_their_order():
    home = ReferenceCheckpointer()
    checkpointer = stack(home)
    source = [await checkpointer.save(state(n), "source", f"s{n}" if n % 2 else None) for n in range(4)]
    mine = await checkpointer.save(state(50), "dest")
    assert await checkpointer.copy_thread("source", "dest")
    for reader in (checkpointer, stack(home)):
        assert await reader.list_checkpoints("dest") == [*source[::-1], mine]
        assert await latest(reader, "dest") == 3
        assert await reader.list_checkpoints("source") == source[::-1]
    await checkpointer.save(state(60), "dest")
    assert await latest(stack(home), "dest") == 60
    assert await latest(stack(home), "source") == 3
    assert not await checkpointer.copy_thread("nothing", "dest")


async def test_a_copy_is_newer_than_what_another_process_saved_since_this_one_looked(tmp_path):
    one, other = DirectoryCheckpointer(tmp_path), DirectoryCheckpointer(tmp_path)
    await other.save(state(1), "dest")
    await one.save(state(2), "source")
    await one.save(state(3), "dest")
    assert await other.copy_thread("source", "dest")
    assert await latest(one, "dest") == await latest(other, "dest") == 2


@pytest.mark.parametrize("by_whom", ["this process", "another process"])
@pytest.mark.parametrize("what", ["checkpoint", "thread"])
async def test_an_id_that_was_saved_again_deleted_and_saved_again_is_the_newest(by_whom, what):
    home = ReferenceCheckpointer()
    checkpointer, other = stack(home), stack(home)
    first = await checkpointer.save(state(1), "t")
    await checkpointer.save(state(2), "t", first)
    deleter = checkpointer if by_whom == "this process" else other
    await deleter.delete("t", first if what == "checkpoint" else None)
    await checkpointer.save(state(3), "t")
    await checkpointer.save(state(4), "t", first)
    assert await latest(checkpointer) == 4
    assert await latest(stack(home)) == 4
