"""What ``scrub()`` promises to whoever calls it: what it tells, where it goes on, how fast it goes, what it refuses."""

from __future__ import annotations

import asyncio
import gc
from collections import Counter
from typing import Any

import pytest

from locus_tiered.core.errors import StackConfigError
from locus_tiered.layers.scrub_report import Progress
from locus_tiered.layers.scrub_steps import side_by_side
from locus_tiered.testing.fault_script import on
from tests.replication.rig import Process, Rig, scenario

THREADS = [f"t{number}" for number in range(6)]


async def lost_by_one(rig: Rig, p: Process) -> None:
    """Six threads; one replica has lost the two checkpoints of each."""
    for thread in THREADS:
        for mark in (1, 2):
            await p.save(mark, thread=thread)
    await p.rest()
    for thread in THREADS:
        await rig.stores[2].delete(thread)


def listed(p: Process) -> Counter[str]:
    """How often a replica was asked what it has of a thread."""
    return Counter({thread: len(p.links[0].matching("list_checkpoints", thread)) for thread in THREADS})


def now() -> float:
    return asyncio.get_running_loop().time()


@scenario
async def test_it_tells_how_far_it_has_come(rig: Rig) -> None:
    p = rig.process(journal="p")
    await lost_by_one(rig, p)
    seen: list[Progress] = []
    report = await p.stack.scrub(progress=seen.append)
    assert [(each.done, each.total, each.thread_id) for each in seen] == [
        (number, 6, thread) for number, thread in enumerate(THREADS, 1)
    ]
    assert all(each.report is report for each in seen)
    assert (report.threads, report.differed, report.copied, report.in_step) == (6, 6, 12, True)
    again = await p.stack.scrub()
    assert (again.threads, again.differed, again.copied, again.in_step) == (6, 0, 0, True)


@scenario
async def test_threads_are_told_in_order_although_a_later_one_is_done_first(rig: Rig) -> None:
    p = rig.process(journal="p")
    await lost_by_one(rig, p)
    p.links[2].inject(on("save", thread_id="t0", times=None).slow(5))
    seen: list[str] = []
    scrub = asyncio.create_task(p.stack.scrub(progress=lambda each: seen.append(each.thread_id)))
    await p.rest(4)
    assert seen == []
    for thread in THREADS[1:]:
        assert len(await rig.ids(2, thread)) == 2  # they did not wait for it
    await scrub
    assert seen == THREADS


@scenario
async def test_at_most_four_threads_are_compared_at_once(rig: Rig) -> None:
    p = rig.process(journal="p")
    await lost_by_one(rig, p)
    p.links[2].inject(on("save", times=None).slow(10))
    before = listed(p)
    scrub = asyncio.create_task(p.stack.scrub())
    await p.rest(5)
    assert sorted(listed(p) - before) == THREADS[:4]
    assert (await scrub).in_step


@scenario
async def test_one_that_was_stopped_goes_on_there_and_the_next_begins_at_the_beginning(rig: Rig) -> None:
    p = rig.process(journal="p")
    await lost_by_one(rig, p)
    seen: list[str] = []

    def stop(each: Progress) -> None:
        seen.append(each.thread_id)
        if each.thread_id == "t2":
            raise KeyError("enough")

    with pytest.raises(KeyError, match="enough"):
        await p.stack.scrub(progress=stop)
    assert seen == THREADS[:3]
    assert (await p.stack.scrub(progress=stop)).threads == 3
    assert seen == THREADS
    assert [len(await rig.ids(2, thread)) for thread in THREADS] == [2] * 6
    seen.clear()
    assert (await p.stack.scrub(progress=lambda each: seen.append(each.thread_id))).threads == 6
    assert seen == THREADS


@scenario
async def test_one_that_was_cancelled_goes_on_there(rig: Rig) -> None:
    p = rig.process(journal="p")
    await lost_by_one(rig, p)
    scrub = asyncio.create_task(p.stack.scrub(rate=0.1))
    await p.rest(25)
    scrub.cancel()
    with pytest.raises(asyncio.CancelledError):
        await scrub
    assert [len(await rig.ids(2, thread)) for thread in THREADS] == [2, 2, 2, 0, 0, 0]
    assert (await p.stack.scrub()).threads == 3
    assert [len(await rig.ids(2, thread)) for thread in THREADS] == [2] * 6


@scenario
async def test_a_second_one_beside_it_compares_everything(rig: Rig) -> None:
    p = rig.process(journal="p")
    await lost_by_one(rig, p)
    first = asyncio.create_task(p.stack.scrub(rate=0.1))
    await p.rest(25)
    second = await p.stack.scrub()
    assert (second.threads, second.in_step) == (6, True)
    assert ((await first).threads, (await first).in_step) == (6, True)


@scenario
async def test_two_at_once_copy_nothing_twice(rig: Rig) -> None:
    p = rig.process(journal="p")
    await lost_by_one(rig, p)
    p.links[2].inject(on("save", times=None).slow(1))
    before = len(p.links[2].matching("save"))
    reports = await asyncio.gather(p.stack.scrub(), p.stack.scrub())
    assert sum(report.copied for report in reports) == 12
    assert len(p.links[2].matching("save")) - before == 12


@scenario
async def test_while_a_replica_is_fenced_it_begins_at_the_beginning_and_ends_the_fence(rig: Rig) -> None:
    p = rig.process(journal="p")
    await lost_by_one(rig, p)
    rig.wipe(2)
    q = rig.process(journal="q")
    scrub = asyncio.create_task(q.stack.scrub(rate=0.1))
    await q.rest(25)
    assert q.stack._replicas[2].fenced
    scrub.cancel()
    with pytest.raises(asyncio.CancelledError):
        await scrub
    assert q.stack._replicas[2].fenced
    assert (await q.stack.scrub()).threads == 6
    assert not q.stack._replicas[2].fenced


@scenario
async def test_a_rate_is_so_many_threads_a_second(rig: Rig) -> None:
    p = rig.process(journal="p")
    await lost_by_one(rig, p)
    times: list[float] = []
    began = now()
    await p.stack.scrub(rate=0.5, progress=lambda each: times.append(now() - began))
    assert times == pytest.approx([0, 2, 4, 6, 8, 10], abs=0.1)


@scenario
async def test_only_the_threads_that_were_asked_for(rig: Rig) -> None:
    p = rig.process(journal="p")
    await lost_by_one(rig, p)
    report = await p.stack.scrub(threads=["t4", "t1", "t4", "nowhere"])
    assert (report.threads, report.differed, report.copied, report.in_step) == (3, 2, 4, True)
    assert [len(await rig.ids(2, thread)) for thread in THREADS] == [0, 2, 0, 0, 2, 0]
    empty = await p.stack.scrub(threads=[])
    assert (empty.threads, empty.in_step) == (0, True)
    assert (await p.stack.scrub()).copied == 8  # what was asked for by name is no place to go on from


@scenario
async def test_bad_limits_are_refused_before_anything_is_asked(rig: Rig) -> None:
    p = rig.process(journal="p")
    for rate in (0, -1.0, float("nan"), float("inf"), True, "2"):
        with pytest.raises(StackConfigError, match="rate="):
            await p.stack.scrub(rate=rate)  # type: ignore[arg-type]
    with pytest.raises(StackConfigError, match="one id"):
        await p.stack.scrub(threads="t1")
    assert not any(link.calls for link in p.links)


@scenario
async def test_what_is_saved_while_it_compares_is_left_to_who_saves_it(rig: Rig) -> None:
    p, q = rig.process(journal="p"), rig.process(journal="q")
    await lost_by_one(rig, p)
    q.links[2].inject(on("save", thread_id="t0", times=None).slow(8))
    p.links[2].inject(on("save", thread_id="t0", times=None).slow(1))
    scrub = asyncio.create_task(p.stack.scrub(threads=["t0"]))
    await p.rest(0.5)
    news = await q.save(9, thread="t0")
    assert (await scrub).copied == 2
    assert news not in p.saved(2, "t0")
    await p.rest()
    assert (await rig.ids(2, "t0"))[0] == news


# -- side by side -----------------------------------------------------------------------------------------------------


async def test_side_by_side_keeps_to_its_bound_and_tells_in_order() -> None:
    at_work: Counter[str] = Counter()
    told: list[int] = []
    gates = [asyncio.Event() for _ in range(5)]

    async def work(number: int) -> None:
        at_work["now"] += 1
        at_work["most"] = max(at_work["most"], at_work["now"])
        await gates[number].wait()
        at_work["now"] -= 1

    task = asyncio.create_task(side_by_side(5, work, at_once=2, done=told.append))
    for number in (1, 2, 0, 4):
        gates[number].set()
        for _ in range(5):
            await asyncio.sleep(0)
        assert told == {1: [], 2: [], 0: [0, 1, 2], 4: [0, 1, 2]}[number]
    gates[3].set()
    await task
    assert (told, at_work["most"]) == ([0, 1, 2, 3, 4], 2)


async def test_side_by_side_of_nothing() -> None:
    async def work(number: int) -> None:
        raise AssertionError(number)

    await side_by_side(0, work, at_once=2, done=work)  # type: ignore[arg-type]


@pytest.mark.parametrize("cancelled", [True, False])
async def test_side_by_side_ends_what_is_under_way_when_it_fails_or_is_cancelled(cancelled: bool) -> None:
    ended: list[int] = []
    gate = asyncio.Event()

    async def work(number: int) -> None:
        try:
            if number > 0:
                await gate.wait()
                raise OSError("one of them, and another one")
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            raise ValueError("and one that ends badly") from None
        finally:
            ended.append(number)

    told: list[int] = []
    unheard: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: unheard.append(context))
    task = asyncio.create_task(side_by_side(9, work, at_once=3, done=told.append))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    if cancelled:
        task.cancel()
    else:
        gate.set()
    with pytest.raises(asyncio.CancelledError if cancelled else OSError):
        await task
    assert (sorted(ended), told) == ([0, 1, 2], [])
    del task
    gc.collect()
    assert not unheard
