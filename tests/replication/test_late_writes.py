"""Writes that a store carries out after they were given up on; and what is written while replicas are compared."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import uuid4

import pytest

from locus_tiered.layers.scrub import Scrubber
from locus_tiered.testing.fault_script import on
from tests.replication.rig import OwnLatest, Process, Rig, scenario


async def late(rig: Rig, number: int, name: str) -> None:
    """A replica carries out a save only now."""
    for store in rig.stores[:number]:
        state = await store.load("t", name)
        if state is not None:
            await rig.stores[number].save(state, "t", name)
            return
    raise AssertionError("nobody has it")


def give_up_one_save(p: Process, number: int = 2) -> None:
    p.links[number].inject(on("save", thread_id="t").fail_before(TimeoutError()))


# -- writes that are carried out late ---------------------------------------------------------------------------------


@scenario
async def test_a_save_that_is_carried_out_late_does_not_stay_the_newest(rig: Rig) -> None:
    p = rig.process(journal="p")
    await p.save(1)
    give_up_one_save(p)
    name = await p.save(2)
    newest = await p.save(3)
    await p.rest(3)
    assert newest in await rig.ids(2)
    await late(rig, 2, name)
    assert await rig.latest(2) == 2
    await p.rest(10)
    assert await rig.latest(2) == 3


def test_it_does_not_where_a_store_keeps_a_copy_of_what_it_was_given_last() -> None:
    @scenario
    async def story(plain: Rig) -> None:
        rig = Rig(plain.place, store=OwnLatest)
        p = rig.process(journal="p")
        await p.save(1)
        give_up_one_save(p)
        name = await p.save(2)
        await p.save(3)
        await p.rest(3)
        await late(rig, 2, name)
        assert await rig.latest(2) == 2
        await p.rest(10)
        assert await rig.latest(2) == 3

    story()


@pytest.mark.parametrize("whole", [True, False])
def test_a_save_that_is_carried_out_late_does_not_bring_back_what_was_deleted(whole: bool) -> None:
    @scenario
    async def story(rig: Rig) -> None:
        p = rig.process(journal="p")
        await p.save(1)
        give_up_one_save(p)
        name = await p.save(2)
        await p.rest(3)
        copy = await rig.stores[2].load("t", name)
        assert copy is not None
        await p.stack.delete("t", None if whole else name)
        await p.rest(1)
        assert name not in await rig.ids(2)
        await rig.stores[2].save(copy, "t", name)
        await p.rest(10)
        assert name not in await rig.ids(2)
        assert await rig.latest(2) == (None if whole else 1)

    story()


@scenario
async def test_a_step_of_a_turn_that_is_carried_out_late_is_deleted_again(rig: Rig) -> None:
    p = rig.process(journal="p")
    await p.save(1)
    give_up_one_save(p)
    step = uuid4().hex
    await p.save(2, step, turn=(step,))
    await p.rest(3)
    copy = await rig.stores[2].load("t", step)
    assert copy is not None
    await p.save(3)
    await p.stack.delete("t", step)
    await p.rest(1)
    await rig.stores[2].save(copy, "t", step)
    assert await rig.latest(2) == 2
    await p.rest(10)
    assert step not in await rig.ids(2)
    assert await rig.latest(2) == 3


@scenario
async def test_the_next_process_looks_for_what_a_former_one_gave_up_on(rig: Rig) -> None:
    p = rig.process(journal="p")
    await p.save(1)
    give_up_one_save(p)
    name = await p.save(2)
    await p.save(3)
    await p.forget()
    q = rig.process(journal="p")
    await q.load()
    await q.rest(3)
    assert await rig.latest(2) == 3
    await late(rig, 2, name)
    await q.rest(10)
    assert await rig.latest(2) == 3


@scenario
async def test_a_loop_that_is_closed_leaves_the_look_to_the_next_operation(rig: Rig) -> None:
    p = rig.process(journal="p")
    await p.save(1)
    give_up_one_save(p)
    name = await p.save(2)
    await p.save(3)
    await p.rest(3)
    await p.stack.close()
    await late(rig, 2, name)
    await p.load(thread="other")
    await p.rest(10)
    assert await rig.latest(2) == 3


@scenario
async def test_a_repair_that_was_given_up_on_is_looked_for_as_well(rig: Rig) -> None:
    p = rig.process(journal="p")
    await p.save(1)
    name = await p.save(2)
    await p.rest()
    await rig.stores[2].delete("t", name)
    give_up_one_save(p)
    assert (await p.stack.scrub()).unreachable == {"r2"}
    await p.save(3)
    await p.rest(3)
    await late(rig, 2, name)
    assert await rig.latest(2) == 2
    await p.rest(10)
    assert await rig.latest(2) == 3


@scenario
async def test_a_scrub_does_not_wait_for_the_look(rig: Rig) -> None:
    p = rig.process(journal="p")
    await p.save(1)
    give_up_one_save(p)
    name = await p.save(2)
    await p.save(3)
    await p.rest(3)
    await late(rig, 2, name)
    report = await p.stack.scrub()
    assert report.in_step
    assert report.mended == 1
    assert await rig.latest(2) == 3


@scenario
async def test_there_is_one_look_for_a_thread_and_none_while_the_replica_is_away(rig: Rig) -> None:
    p = rig.process(journal="p")
    await p.save(1)
    await p.rest()
    looks: list[str] = []
    one = Scrubber.one

    async def counted(thread_id: str) -> Any:
        looks.append(thread_id)
        return await one(p.stack._scrubber, thread_id)

    p.stack._scrubber.one = counted  # type: ignore[method-assign]
    p.cut(2)
    for mark in range(2, 30):
        await p.save(mark)
        await p.rest(1)
    await p.rest(600)
    assert looks == []
    p.heal()
    await p.rest(120)
    assert looks == ["t"]
    assert not p.stack._replicas[2].far.given_up
    assert len(await rig.ids(2)) == 29


@scenario
async def test_what_was_never_sent_is_not_looked_for(rig: Rig) -> None:
    p = rig.process(journal="p")
    await p.save(1)
    await p.rest()
    p.cut(2)
    await p.save(2)
    await p.save(3, thread="other")
    assert list(p.stack._replicas[2].far.given_up) == [p.stack._key("t")]


@scenario
async def test_what_a_stopped_store_had_in_its_buffers_does_not_stay_the_newest(rig: Rig) -> None:
    p = rig.process(journal="p")
    await p.save(1)
    stopped = p.links[2]
    stopped.inject(on("save", thread_id="t", times=2).apply_late(answer="raise", error=TimeoutError()))
    for mark in (2, 3):
        await p.save(mark)
        await p.rest(1)
    await p.save(4)
    await p.rest(3)
    assert await rig.latest(2) == 4
    assert await stopped.land() == 2
    assert await rig.latest(2) == 2
    await p.rest(10)
    assert await rig.latest(2) == 4


# -- what is written while replicas are compared ----------------------------------------------------------------------


async def emptied(rig: Rig, p: Process, count: int, seconds: float) -> list[str]:
    """A thread that one replica has lost, and that takes ``seconds`` for every copy; its ids, oldest first."""
    names = [await p.save(mark) for mark in range(1, count + 1)]
    await p.rest()
    await rig.stores[2].delete("t")
    p.links[2].inject(on("save", thread_id="t", times=None).slow(seconds))
    return names


def now() -> float:
    return asyncio.get_running_loop().time()


@scenario
async def test_a_save_waits_for_no_copy(rig: Rig) -> None:
    p = rig.process(journal="p")
    names = await emptied(rig, p, 20, 1.0)
    scrub = asyncio.create_task(p.stack.scrub())
    await p.rest(3.5)
    waited = []
    for mark in range(21, 26):
        began = now()
        names.append(await p.save(mark))
        waited.append(now() - began)
        await p.rest(0.7)
    assert max(waited) < 0.1
    report = await scrub
    assert report.in_step
    assert report.differed == report.threads == 1
    await p.rest()
    assert [set(await rig.ids(number)) for number in range(3)] == [set(names)] * 3
    assert [await rig.latest(number) for number in range(3)] == [25] * 3


@scenario
async def test_what_is_deleted_between_two_copies_is_not_copied(rig: Rig) -> None:
    p = rig.process(journal="p")
    names = await emptied(rig, p, 12, 1.0)
    scrub = asyncio.create_task(p.stack.scrub())
    await p.rest(3.5)
    gone = {names[0], names[5], names[10]}
    for name in sorted(gone):
        assert await p.stack.delete("t", name)
    assert (await scrub).in_step
    await p.rest()
    assert [set(await rig.ids(number)) for number in range(3)] == [set(names) - gone] * 3


@scenario
async def test_a_step_of_a_turn_that_ends_between_two_copies_is_not_copied(rig: Rig) -> None:
    p = rig.process(journal="p")
    names = [await p.save(mark) for mark in range(1, 6)]
    step = uuid4().hex
    await p.save(6, step, turn=(step,))
    await p.rest()
    await rig.stores[2].delete("t")
    p.links[2].inject(on("save", thread_id="t", times=None).slow(1.0))
    scrub = asyncio.create_task(p.stack.scrub())
    await p.rest(2.5)
    names.append(await p.save(7))
    await p.stack.delete("t", step)
    assert (await scrub).in_step
    await p.rest()
    assert [set(await rig.ids(number)) for number in range(3)] == [set(names)] * 3
    assert [await rig.latest(number) for number in range(3)] == [7] * 3


@scenario
async def test_a_thread_that_is_deleted_between_two_copies_stays_deleted(rig: Rig) -> None:
    p = rig.process(journal="p")
    await emptied(rig, p, 12, 1.0)
    scrub = asyncio.create_task(p.stack.scrub())
    await p.rest(3.5)
    assert await p.stack.delete("t")
    assert (await scrub).in_step
    await p.rest()
    assert [await rig.ids(number) for number in range(3)] == [[]] * 3
    assert await p.load() is None


@scenario
async def test_a_name_that_is_saved_again_between_two_copies_keeps_its_newest_version(rig: Rig) -> None:
    p = rig.process(journal="p")
    await p.save(1, "draft")
    await emptied(rig, p, 8, 1.0)
    scrub = asyncio.create_task(p.stack.scrub())
    for mark in (100, 101, 102):
        await p.rest(1.5)
        await p.save(mark, "draft")
    assert (await scrub).in_step
    await p.rest()
    assert [(await rig.marks(number))["draft"] for number in range(3)] == [102] * 3
    assert [await rig.latest(number) for number in range(3)] == [102] * 3


@scenario
async def test_what_cannot_be_copied_does_not_keep_the_rest_from_it(rig: Rig) -> None:
    p = rig.process(journal="p")
    names = await emptied(rig, p, 6, 1.0)
    p.links[2].inject(on("save", thread_id="t", at=2).fail_before(TimeoutError()))
    scrub = asyncio.create_task(p.stack.scrub())
    await p.rest(1.5)
    for mark in range(7, 10):
        names.append(await p.save(mark))
        await p.rest(0.5)
    report = await scrub
    assert report.unreachable == {"r2"}
    assert set(await rig.ids(2)) == set(names) - {names[1]}


@scenario
async def test_a_deep_scrub_lets_saves_in_too(rig: Rig) -> None:
    p = rig.process(journal="p")
    for mark in range(1, 21):
        await p.save(mark)
    await p.rest()
    for link in p.links:
        link.inject(on("load", thread_id="t", times=None).slow(0.5))
    scrub = asyncio.create_task(p.stack.scrub(deep=True))
    await p.rest(4)
    began = now()
    await p.save(21)
    assert now() - began < 0.1
    assert not scrub.done()
    assert (await scrub).in_step


@scenario
async def test_a_scrub_that_is_cancelled_between_two_copies_leaves_the_newest_right(rig: Rig) -> None:
    p = rig.process(journal="p")
    await p.save(1)
    await p.rest()
    await emptied(rig, p, 12, 1.0)
    newest = await p.save(20)
    await p.rest(3)
    assert await rig.ids(2) == [newest]
    scrub = asyncio.create_task(p.stack.scrub())
    await p.rest(3.5)
    scrub.cancel()
    with pytest.raises(asyncio.CancelledError):
        await scrub
    await p.rest()
    assert await rig.latest(2) == 20


async def copied_beside_writes(rig: Rig, pause: float | None) -> int:
    """How much of 60 checkpoints, 0.2 s each, a scrub copies in 10 s, with a write of 0.2 s every ``pause`` seconds."""
    p = rig.process(journal="p")
    await emptied(rig, p, 60, 0.2)
    p.links[2].inject(on("save", thread_id="other", times=None).slow(0.2))
    before = len(p.saved(2))
    scrub = asyncio.create_task(p.stack.scrub())
    for mark in range(1 if pause is None else int(10 / pause)):
        if pause is not None:
            await p.save(mark, thread="other")
        await p.rest(pause or 10)
    copied = len(p.saved(2)) - before
    assert (await scrub).in_step
    assert len(await rig.ids(2)) == 60
    return copied


@scenario
async def test_a_scrub_takes_half_of_the_time_while_writes_are_under_way(rig: Rig) -> None:
    assert 15 < await copied_beside_writes(rig, 0.15) < 30


@scenario
async def test_a_scrub_takes_most_of_the_time_where_little_is_written(rig: Rig) -> None:
    assert 40 < await copied_beside_writes(rig, 2.0) < 50


@scenario
async def test_a_scrub_takes_all_of_the_time_where_nothing_is_written(rig: Rig) -> None:
    assert 45 < await copied_beside_writes(rig, None) < 55


@scenario
async def test_what_another_process_is_saving_is_not_taken_from_a_replica_that_is_rebuilt(rig: Rig) -> None:
    p, q = rig.process(journal="p"), rig.process(journal="q")
    for mark in (1, 2, 3):
        await p.save(mark)
    await q.load()
    await p.rest()
    rig.wipe(2)
    for process in (p, q):
        process.cut(2)
        await process.load(thread="other")
        await process.save(0, thread="other")
        process.heal()
        await process.rest()
    assert p.stack._replicas[2].fenced
    for link in q.links[:2]:
        link.inject(on("save", thread_id="t").slow(5.0))
    saving = asyncio.create_task(q.save(4))
    await p.rest(1)
    assert len(await rig.ids(2)) == 1
    await p.stack.scrub()
    name = await saving
    assert [name in await rig.ids(number) for number in range(3)] == [True] * 3
    await p.rest()
    assert (await p.stack.scrub()).in_step
    assert [await rig.latest(number) for number in range(3)] == [4] * 3
    assert len(await rig.ids(2)) == 4


@scenario
async def test_what_is_saved_meanwhile_is_not_copied_as_well(rig: Rig) -> None:
    p = rig.process(journal="p")
    await emptied(rig, p, 6, 2.0)
    scrub = asyncio.create_task(p.stack.scrub())
    names = []
    for mark in range(7, 14):
        await p.rest(1.9)
        names.append(await p.save(mark))
    assert (await scrub).in_step
    await p.rest()
    saved = p.saved(2)
    assert [saved.count(name) for name in names[:-1]] == [1] * 6
    assert [await rig.latest(number) for number in range(3)] == [13] * 3


@scenario
async def test_what_is_deleted_while_it_is_read_to_be_copied_is_not_sent(rig: Rig) -> None:
    p = rig.process(journal="p")
    await p.save(1)
    name = await p.save(2)
    await p.save(3)
    await p.rest()
    await rig.stores[2].delete("t", name)
    for link in p.links[:2]:
        link.inject(on("load", thread_id="t", times=None).slow(2.0))
    sent = p.saved(2).count(name)
    scrub = asyncio.create_task(p.stack.scrub())
    await p.rest(1)
    assert await p.stack.delete("t", name)
    assert (await scrub).in_step
    assert p.saved(2).count(name) == sent
    assert [name in await rig.ids(number) for number in range(3)] == [False] * 3
