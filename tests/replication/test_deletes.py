"""What was deleted stays deleted, whichever replica missed it and whatever clocks say."""

from __future__ import annotations

import asyncio
from unittest.mock import patch

import pytest

from locus_tiered.core.errors import QuorumError
from locus_tiered.layers.tombstones import TOMBSTONES
from locus_tiered.testing.fault_script import on
from tests.replication.rig import KeepsTheLatest, OwnLatest, Rig, scenario, two


@scenario
async def test_a_deleted_thread_stays_deleted_though_a_replica_missed_it(rig: Rig) -> None:
    p = rig.process()
    await p.save(1)
    await p.rest()
    p.cut(2)
    assert await p.stack.delete("t")
    await p.forget()
    assert await rig.ids(2)
    q = rig.process()
    assert (await q.stack.scrub()).in_step
    assert [await rig.ids(number) for number in range(3)] == [[]] * 3
    assert await q.load() is None


@scenario
async def test_a_deleted_checkpoint_stays_deleted_though_a_replica_missed_it(rig: Rig) -> None:
    p = rig.process()
    await p.save(1, "keep")
    await p.save(2, "drop")
    await p.rest()
    p.cut(2)
    assert await p.stack.delete("t", "drop")
    await p.forget()
    q = rig.process()
    assert (await q.stack.scrub()).in_step
    assert [await rig.ids(number) for number in range(3)] == [["keep"]] * 3
    assert [await rig.latest(number) for number in range(3)] == [1] * 3


@scenario
async def test_a_delete_is_above_what_it_deletes_whatever_the_clocks_say(rig: Rig) -> None:
    p = rig.process(ahead=3600.0)
    await p.save(1)
    await p.rest()
    q = rig.process()
    q.cut(2)
    assert await q.stack.delete("t")
    await q.forget()
    r = rig.process()
    assert (await r.stack.scrub()).in_step
    assert [await rig.ids(number) for number in range(3)] == [[]] * 3


@scenario
async def test_who_looks_first_saves_above_a_delete_whatever_the_clocks_say(rig: Rig) -> None:
    p, q = rig.process(ahead=3600.0), rig.process()
    await q.save(1)
    await p.stack.delete("t")
    assert await q.load() is None
    q.cut(2)
    name = await q.save(2)
    await q.forget()
    r = rig.process()
    assert (await r.stack.scrub()).in_step
    assert [await rig.ids(number) for number in range(3)] == [[name]] * 3


@scenario
async def test_a_tombstone_never_goes_back(rig: Rig) -> None:
    p, q = rig.process(ahead=3600.0), rig.process()
    await p.save(1, "draft")
    await p.rest()
    p.cut(2)
    await p.stack.delete("t")
    await p.forget()
    await q.stack.delete("t")  # once more, by a clock that is behind: its own stamp is below that of the state
    rig.stores[2].stored.setdefault("t", {})
    r = rig.process()
    assert (await r.stack.scrub()).in_step
    assert [await rig.ids(number) for number in range(3)] == [[]] * 3


@scenario
async def test_a_read_by_quorum_brings_back_nothing_that_was_deleted(rig: Rig) -> None:
    p = rig.process()
    name = await p.save(1)
    await p.rest()
    p.cut(2)
    await p.stack.delete("t")
    await p.forget()
    q = rig.process(read="quorum")
    q.cut(0)  # whom it asks are one that has heard of the delete and the one that has not
    for _ in range(4):
        assert await q.load() is None
        assert await q.load(name) is None
        assert not await q.stack.exists("t", name)
        assert await q.stack.list_checkpoints("t") == []
    assert await rig.ids(0) == await rig.ids(1) == []


@scenario
async def test_steps_of_a_turn_are_not_brought_back(rig: Rig) -> None:
    p = rig.process()
    step = "0123456789abcdef0123456789abcdef"
    await p.save(1, step, turn=(step,))
    name = await p.save(2)
    await p.rest()
    p.cut(2)
    await p.stack.delete("t", step)
    await p.forget()
    q = rig.process()
    q.links[2].inject(on("load", thread_id="t").fail_before())  # nobody can tell what it is: nothing is decided
    await q.stack.scrub()
    assert step not in await rig.ids(0)
    await q.rest()
    assert (await q.stack.scrub()).in_step
    assert [await rig.ids(number) for number in range(3)] == [[name]] * 3


@scenario
async def test_a_hint_of_a_former_life_brings_back_nothing_that_was_deleted(rig: Rig) -> None:
    p = rig.process(journal="p")
    await p.save(1)
    p.cut(2)
    await p.save(2)
    await p.forget()
    q = rig.process()
    assert await q.stack.delete("t")
    assert (await q.stack.scrub()).in_step
    r = rig.process(journal="p")
    assert await r.load() is None
    await r.rest()
    assert [await rig.ids(number) for number in range(3)] == [[]] * 3


def test_replicas_that_keep_a_latest_of_their_own_have_the_right_one_after_deletes() -> None:
    @scenario
    async def story(plain: Rig) -> None:
        rig = Rig(plain.place, store=OwnLatest)
        p = rig.process()
        await p.save(1, "first")
        await p.save(2, "second")
        await p.rest()
        await p.stack.delete("t", "second")
        await p.rest(5.0)
        assert [await rig.latest(number) for number in range(3)] == [1] * 3

    story()


@two
async def test_a_delete_behind_its_slow_tombstone_has_a_hint_of_its_own(rig: Rig) -> None:
    p = rig.process(journal="p")
    await p.save(1)
    await p.rest()
    p.links[1].inject(on("save", thread_id=TOMBSTONES).hang())
    await p.stack.delete("t")
    assert await p.load() is None
    p.links[1].release()
    await p.rest()
    assert [await rig.ids(number) for number in range(2)] == [[], []]


async def saved_while_deleted(rig: Rig, name: str | None) -> None:
    p, q = rig.process(), rig.process(ahead=3600.0)
    await p.save(1, name)
    await p.rest()
    await q.load()
    p.cut(0)
    q.cut(2)
    for link in p.links:
        link.inject(on("save", thread_id=TOMBSTONES).slow(1.0))
    deleting = asyncio.ensure_future(p.stack.delete("t", name))
    await asyncio.sleep(0.5)
    await q.save(2, name)
    await deleting
    await p.forget()
    await q.forget()
    r = rig.process()
    assert (await r.stack.scrub()).in_step
    assert [await rig.ids(number) for number in range(3)] == [[]] * 3


@scenario
async def test_a_delete_covers_what_was_saved_above_it_while_it_was_under_way(rig: Rig) -> None:
    await saved_while_deleted(rig, None)


@scenario
async def test_a_delete_of_a_name_covers_what_was_saved_above_it_while_it_was_under_way(rig: Rig) -> None:
    await saved_while_deleted(rig, "draft")


@scenario
async def test_a_delete_looks_around_where_one_vote_is_enough(rig: Rig) -> None:
    p = rig.process(ahead=3600.0, write_quorum=1)
    await p.save(1)
    await p.rest()
    p.cut(1, 2)
    await p.save(2)
    await p.forget()
    q = rig.process(write_quorum=1)
    q.links[0].inject(on("list_checkpoints", thread_id="t", at=2).slow(1.0))  # another one votes first
    await q.stack.delete("t")
    await q.forget()
    r = rig.process(write_quorum=1)
    assert (await r.stack.scrub()).in_step
    assert [await rig.ids(number) for number in range(3)] == [[]] * 3


@scenario
async def test_a_process_is_not_told_of_what_it_has_deleted_by_a_replica_that_takes_its_time(rig: Rig) -> None:
    p = rig.process()
    await p.save(1, "draft")
    await p.save(2)
    await p.rest()
    p.links[2].inject(on("delete", thread_id="t").apply_late(answer="return"))
    await p.stack.delete("t", "draft")
    assert "draft" in await rig.ids(2)
    p.links[1].partition()  # the late one is asked
    assert not await p.stack.exists("t", "draft")
    assert await p.load("draft") is None
    assert await p.load() == 2
    p.heal()
    await p.links[2].land()


@scenario
async def test_who_has_found_a_tombstone_is_not_told_of_what_lies_below_it(rig: Rig) -> None:
    p = rig.process(journal="p")
    await p.save(1, "draft")
    await p.save(2)
    await p.rest()
    p.cut(2)
    await p.save(3, "draft")
    await p.save(4)
    q = rig.process()
    await q.load()
    q.cut(2)
    await q.stack.delete("t", "draft")
    await q.forget()
    p.links[2].heal()
    await p.rest(2.0)  # the hint is not sent: it was deleted meanwhile
    assert (await rig.marks(2))["draft"] == 1
    p.cut(0)
    assert await p.load("draft") is None
    assert not await p.stack.exists("t", "draft")
    assert "draft" not in await p.stack.list_checkpoints("t")


@scenario
async def test_what_was_read_is_not_mended_once_this_process_has_deleted_it(rig: Rig) -> None:
    step = "0123456789abcdef0123456789abcdef"
    p = rig.process(write_quorum=1, read="quorum")
    await p.save(1, step, turn=(step,))
    await p.rest()
    for store in rig.stores[1:]:
        await store.delete("t", step)
    p.links[1].inject(on("save", thread_id="t").slow(1.0))  # mended first, and slowly; the other one after it
    reading = asyncio.ensure_future(p.load())
    await asyncio.sleep(0.5)
    await p.stack.delete("t", step)
    await asyncio.wait([reading])  # it may not be able to tell
    reading.exception()
    assert [await rig.ids(number) for number in (0, 2)] == [[], []]


def test_nothing_is_left_of_a_deleted_thread_for_readers_without_this_library() -> None:
    @scenario
    async def story(plain: Rig) -> None:
        rig = Rig(plain.place, store=KeepsTheLatest)
        p = rig.process()
        await p.save(1)
        await p.save(2)
        await p.rest()
        p.cut(2)
        await p.stack.delete("t")
        await p.forget()
        assert await rig.latest(2) == 2
        q = rig.process()
        assert (await q.stack.scrub()).in_step
        assert [await rig.latest(number) for number in range(3)] == [None] * 3

    story()


@scenario
async def test_a_delete_that_too_few_have_taken_rolls_forward(rig: Rig) -> None:
    p = rig.process(write_quorum="all")
    await p.save(1, "draft")
    await p.save(2, "other")
    await p.rest()
    for link in p.links:
        link.inject(on("delete", thread_id="t", times=None).fail_before())
    with pytest.raises(QuorumError):
        await p.stack.delete("t", "draft")
    await p.forget()
    q = rig.process()
    await q.stack.tombstones.among([("t", "draft")])
    assert (await q.stack.scrub(deep=True)).in_step
    assert [await rig.ids(number) for number in range(3)] == [["other"]] * 3


@scenario
async def test_a_tombstone_stays_above_one_that_is_laid_by_who_could_not_ask_for_it(rig: Rig) -> None:
    p = rig.process(ahead=3600.0)
    await p.save(1, "draft")
    await p.rest()
    p.cut(2)
    await p.stack.delete("t", "draft")
    await p.forget()
    q = rig.process()
    q.cut(2)
    nobody = QuorumError("nobody answers", known={}, member="q", operation="exists")
    with patch.object(q.stack.tombstones, "among", side_effect=nobody):
        await q.stack.delete("t", "draft")
    await q.forget()
    r = rig.process()
    assert (await r.stack.scrub()).in_step
    assert [await rig.ids(number) for number in range(3)] == [[]] * 3


@scenario
async def test_that_too_few_can_be_asked_about_deletes_is_no_failure_of_who_gets_the_hint(rig: Rig) -> None:
    p = rig.process(journal="p")
    await p.save(1)
    await p.rest()
    p.cut(2)
    await p.save(2)
    p.heal()
    p.cut(0, 1)
    await p.rest(10.0)
    replica = p.stack._replicas[2]
    failures = replica.flusher.failures
    await p.rest(120.0)
    assert replica.rows("t")
    assert replica.flusher.failures == failures


@scenario
async def test_a_step_that_only_one_replica_still_has_is_deleted_though_nobody_can_read_what_it_was(rig: Rig) -> None:
    step = "1f" * 16
    p = rig.process()
    await p.save(1, step, turn=(step,))
    await p.save(2)
    await p.rest()
    await rig.damage(2, step)
    for store in rig.stores[:2]:
        await store.delete("t", step)
    p.cut(1)
    report = await p.stack.scrub(deep=True)
    assert not report.in_step
    assert step in await rig.ids(2)  # whoever cannot be asked may have it
    p.heal()
    await p.rest()
    report = await p.stack.scrub(deep=True)
    assert report.in_step
    assert await rig.ids(0) == await rig.ids(2)
