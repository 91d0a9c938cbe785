"""What is copied where replicas differ, from which of them, and what is done about damage."""

from __future__ import annotations

import pytest

from locus_tiered.core.errors import CorruptCheckpoint, QuorumError
from locus_tiered.core.operations import Load
from locus_tiered.layers.tombstones import TOMBSTONES
from locus_tiered.testing.simulation_history import state_of
from tests.replication.rig import DAY, Rig, scenario, two


@scenario
async def test_the_newest_version_of_a_name_wins(rig: Rig) -> None:
    p = rig.process()
    await p.save(1, "draft")
    await p.rest()
    p.cut(2)
    await p.save(2, "draft")
    await p.forget()
    q = rig.process()
    assert (await q.stack.scrub()).in_step
    assert [await rig.marks(number) for number in range(3)] == [{"draft": 2}] * 3


@scenario
async def test_mending_never_replaces_a_version_that_is_newer(rig: Rig) -> None:
    p = rig.process()
    await p.save(1, "draft")
    old = await p.stack.handle(Load("t", "draft"))
    assert old is not None
    await p.save(2, "draft")
    await p.rest()
    for replica in p.stack._replicas:
        assert not await replica.mend("t", old)
        assert not await replica.remove("t", "t", old.entry)
    assert [await rig.marks(number) for number in range(3)] == [{"draft": 2}] * 3


@scenario
async def test_only_intact_copies_are_copied_and_damaged_ones_are_replaced(rig: Rig) -> None:
    p = rig.process()
    await p.save(1, "draft")
    await p.rest()
    await rig.damage(0, "draft")
    await rig.stores[2].delete("t", "draft")
    q = rig.process()
    report = await q.stack.scrub(deep=True)
    assert report.in_step
    for number in range(3):
        kept = await rig.stores[number].load("t", "draft")
        assert kept is not None
        assert kept.messages == state_of(1).messages
        assert kept.total_tokens_used == 1
    assert await q.load() == 1


@scenario
async def test_a_damaged_copy_that_is_read_is_replaced(rig: Rig) -> None:
    p = rig.process()
    name = await p.save(1)
    await p.rest()
    state = await rig.stores[0].load("t", name)
    assert state is not None
    await rig.stores[0].save(state.model_copy(update={"iteration": 7}), "t", name)
    assert await p.load(name) == 1
    await p.rest()
    mended = await rig.stores[0].load("t", name)
    assert mended is not None
    assert mended.iteration == 0


@scenario
async def test_an_envelope_that_is_damaged_is_replaced(rig: Rig) -> None:
    p = rig.process()
    await p.save(1, "draft")
    await p.rest()
    await rig.spoil(2, "draft")
    with pytest.raises(CorruptCheckpoint):
        await p.stack.replicas[2].load("t")
    report = await p.stack.scrub()
    assert report.in_step
    assert report.mended
    assert await p.stack.replicas[2].load("t") == await p.stack.load("t")


@scenario
async def test_a_newest_that_is_damaged_wherever_it_is_keeps_nobody_from_what_was_acknowledged(rig: Rig) -> None:
    p = await rig.half_saved(0)
    await p.forget()
    await rig.damage(0, "alone")
    for read in ("one", "quorum"):
        q = rig.process(read=read)
        assert await q.load() == 1
        report = await q.stack.scrub()
        assert not report.unreachable
        assert report.unmended
        assert await q.load() == 1


@scenario
async def test_what_only_a_replica_has_that_was_away_is_deleted_when_it_is_damaged(rig: Rig) -> None:
    p = await rig.half_saved(2)
    await p.forget()
    await rig.damage(2, "alone")
    q = rig.process(ahead=8 * DAY)
    q.cut(2)
    await q.save(3)
    await q.forget()
    r = rig.process(ahead=8 * DAY)
    assert await r.load() == 3
    report = await r.stack.scrub()
    assert report.in_step
    assert report.damaged
    assert "alone" not in await rig.ids(2)
    assert [replica.is_believed for replica in r.stack._replicas] == [True] * 3


@scenario
async def test_states_from_before_the_stack_are_copied_in_their_order(rig: Rig) -> None:
    for mark in (1, 2, 3):
        await rig.stores[0].save(state_of(mark), "t", f"old{mark}")
    p = rig.process()
    report = await p.stack.scrub()
    assert report.in_step
    assert report.deleted == 0
    assert [await rig.ids(number) for number in range(3)] == [["old3", "old2", "old1"]] * 3
    assert [await rig.latest(number) for number in range(3)] == [3] * 3
    for read in ("one", "quorum"):
        q = rig.process(read=read)
        assert await q.stack.list_checkpoints("t") == ["old3", "old2", "old1"]
        assert await q.load() == 3


@scenario
async def test_a_copy_whose_place_nobody_can_tell_keeps_its_thread_from_nothing_if_no_other_replica_has_it(
    rig: Rig,
) -> None:
    p = await rig.half_saved(2, "draft")
    await p.forget()
    await rig.spoil(2, "alone")
    q = rig.process(journal="q")
    await q.load(thread="other")
    q.cut(2)
    names = [await q.save(3)]
    q.heal()
    await q.rest()
    names.append(await q.save(4))
    for _ in range(3):
        await q.load()
        await q.rest()
    assert set(await rig.ids(2)) == {*names, "draft"}
    assert (await q.stack.scrub()).in_step


@scenario
async def test_a_damaged_tombstone_is_replaced_before_anything_is_compared(rig: Rig) -> None:
    p = rig.process()
    await p.save(1)
    await p.stack.delete("t")
    await p.rest()
    for name in await rig.ids(2, TOMBSTONES):
        await rig.damage(2, name, TOMBSTONES)
    q = rig.process(ahead=8 * DAY)
    q.cut(0)
    await q.save(2)
    await q.forget()
    r = rig.process(ahead=8 * DAY)
    assert await r.load() == 2
    assert not r.stack._replicas[0].is_believed
    assert (await r.stack.scrub()).in_step
    assert [await rig.ids(number) for number in range(3)] == [await rig.ids(1)] * 3


@scenario
async def test_a_damaged_listing_is_mended_though_the_others_have_missed_something_too(rig: Rig) -> None:
    p = await rig.half_saved(2, "draft", journal="p", hint_window="4KiB")
    await rig.spoil(2, "alone")
    for mark in range(3, 15):
        with pytest.raises(QuorumError):
            await p.save(mark, f"alone{mark}")
    assert p.stack._replicas[0].marked
    p.heal()
    await p.rest()
    for _ in range(3):
        await p.load(thread="other")
        await p.rest()
    assert (await p.stack.scrub()).in_step
    assert not any(replica.marked for replica in p.stack._replicas)


@two
async def test_a_tombstone_that_is_damaged_wherever_it_is_keeps_nobody_from_comparing(rig: Rig) -> None:
    p = rig.process(write_quorum="all")
    await p.save(1)
    await p.rest()
    p.cut(0)
    with pytest.raises(QuorumError):
        await p.stack.delete("t")
    await p.forget()
    for name in await rig.ids(1, TOMBSTONES):
        await rig.damage(1, name, TOMBSTONES)
    q = rig.process(write_quorum="all", ahead=8 * DAY)
    q.cut(0)
    with pytest.raises(QuorumError):
        await q.save(2)
    await q.forget()
    r = rig.process(write_quorum="all", ahead=8 * DAY)
    await r.load(thread="other")
    assert not r.stack._replicas[0].is_believed
    for _ in range(2):
        report = await r.stack.scrub()
    assert report.in_step
    assert await rig.ids(0) == await rig.ids(1)
