"""Writing to replicas: votes, the order of hints, and what the end of a process leaves."""

from __future__ import annotations

import asyncio

import pytest

from locus_tiered.core.errors import QuorumError
from locus_tiered.core.signals import Signal, listen
from locus_tiered.testing.fault_script import on
from tests.replication.rig import Process, Rig, scenario, two


@scenario
async def test_all_replicas_keep_a_save_under_the_one_id_that_was_answered(rig: Rig) -> None:
    p = rig.process()
    name = await p.save(1)
    await p.rest()
    assert [await rig.ids(number) for number in range(3)] == [[name]] * 3


@scenario
async def test_a_hint_is_no_vote(rig: Rig) -> None:
    p = rig.process(journal="p")
    await p.save(1)
    p.cut(1, 2)
    with pytest.raises(QuorumError) as raised:
        await p.save(2)
    assert set(raised.value.known) == {"r0", "r1", "r2"}


@scenario
async def test_a_save_is_acknowledged_by_two_of_three(rig: Rig) -> None:
    p = rig.process()
    await p.save(1)
    p.links[1].inject(on("save", thread_id="t", times=None).slow(2.0))
    p.links[2].inject(on("save", thread_id="t", times=None).slow(3.0))
    name = await p.save(2)
    assert sum([name in await rig.ids(number) for number in range(3)]) >= 2


@scenario
async def test_hints_arrive_in_the_order_of_the_writes(rig: Rig) -> None:
    p = rig.process(journal="p")
    await p.save(1, "draft")
    p.cut(2)
    for mark in (2, 3, 4):
        await p.save(mark, "draft")
        await p.save(10 + mark, f"other{mark}")
    p.heal()
    await p.rest()
    assert await rig.marks(2) == {"draft": 4, "other2": 12, "other3": 13, "other4": 14}
    assert p.saved(2)[1:7] == ["draft", "other2", "draft", "other3", "draft", "other4"]
    assert await rig.latest(2) == 14


@scenario
async def test_a_write_goes_behind_the_hints_before_it(rig: Rig) -> None:
    p = rig.process(journal="p")
    await p.save(1, "draft")
    await p.rest()
    p.links[2].inject(on("save", thread_id="u").slow(0.2))
    p.links[2].inject(on("save", thread_id="t").fail_before())
    await p.save(9, thread="u")
    await p.save(2, "before")  # a hint, which rests for longer than it takes the other save to show that all is well
    await p.rest(0.21)
    await p.save(3, "after")
    await p.rest()
    assert p.saved(2) == ["draft", "before", "after"]


@scenario
async def test_closing_waits_for_what_the_background_begins_meanwhile(rig: Rig) -> None:
    p = rig.process()
    await p.save(1)
    await p.rest()
    done: list[int] = []

    async def work(number: int) -> None:
        await asyncio.sleep(1.0)
        if number < 3:
            p.stack._in_background(work(number + 1))
        done.append(number)

    p.stack._in_background(work(1))
    await p.stack.close()
    assert done == [1, 2, 3]
    p.stack._in_background(asyncio.sleep(3600.0))
    began = asyncio.get_running_loop().time()
    await p.stack.close()
    assert asyncio.get_running_loop().time() - began == pytest.approx(5.0), "it is bounded"
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == {asyncio.current_task()}


@scenario
async def test_hints_outlive_the_process(rig: Rig) -> None:
    p = rig.process(journal="p")
    await p.save(1)
    p.cut(2)
    name = await p.save(2)
    await p.forget()
    q = rig.process(journal="p")
    assert await q.load() == 2
    await q.rest()
    assert name in await rig.ids(2)


@scenario
async def test_a_write_that_was_under_way_at_the_end_is_a_hint(rig: Rig) -> None:
    p = rig.process(journal="p")
    await p.save(1)
    p.links[2].inject(on("save", thread_id="t").hang())
    name = await p.save(2)
    await p.stack.close()
    assert name not in await rig.ids(2)
    q = rig.process(journal="p")
    await q.load()
    await q.rest()
    assert name in await rig.ids(2)


@scenario
async def test_writes_under_way_at_the_end_become_hints_in_their_order(rig: Rig) -> None:
    p = rig.process(journal="p")
    await p.save(1, "draft")
    p.links[2].inject(on("save", thread_id="t").hang())
    for mark in range(2, 12):
        await p.save(mark, "draft")
    await p.stack.close()
    q = rig.process(journal="p")
    await q.load()
    await q.rest()
    assert await rig.marks(2) == {"draft": 11}


@scenario
async def test_two_writers_of_one_thread_are_noticed_and_both_are_kept(rig: Rig) -> None:
    p, q = rig.process(), rig.process()
    await p.save(1)
    await q.load()
    heard: list[Signal] = []
    with listen(heard.append):
        names = [await p.save(2)]
        await q.rest(1.0)
        names.append(await q.save(3))
        assert await q.stack.list_checkpoints("t", 2) == names[::-1]
    assert [signal.kind for signal in heard if signal.kind == "replica.conflict"] == ["replica.conflict"]
    assert await p.load() == await q.load() == 3


@scenario
async def test_a_row_that_stands_for_a_comparison_keeps_nobody_busy(rig: Rig) -> None:
    p = rig.process(journal="p", hint_window="4KiB")
    await p.save(1)
    p.cut(2)
    for mark in range(2, 12):
        await p.save(mark)
    await p.forget()
    q = rig.process(journal="p", hint_window="4KiB")
    q.cut(2)
    await q.load()
    before = len(q.links[0].calls) + len(q.links[1].calls)
    made = 0

    def make(loop: asyncio.AbstractEventLoop, work: object, **options: object) -> asyncio.Task[None]:
        nonlocal made
        made += 1
        return asyncio.Task(work, loop=loop, **options)  # type: ignore[arg-type]

    asyncio.get_running_loop().set_task_factory(make)
    await q.rest(600.0)
    assert made < 2000
    assert len(q.links[0].calls) + len(q.links[1].calls) - before < 500


@two
async def test_a_hint_for_a_thread_that_is_to_be_compared_is_kept_all_the_same(rig: Rig) -> None:
    p = rig.process(journal="p")
    await p.save(1)
    await p.rest()
    p.links[1].inject(on("save", thread_id="t").hang())
    await p.save(2)
    await p.stack.close()  # the write under way is given up: nobody knows what the replica has
    p.cut(1)
    name = await p.save(3)
    await p.forget()
    q = rig.process(journal="p")
    await q.load()
    await q.rest()
    assert name in await rig.ids(1)


@scenario
async def test_who_saves_a_name_again_that_he_has_read_saves_above_it_whatever_the_clocks_say(rig: Rig) -> None:
    for name, look in (("draft", Process.load), ("plan", lambda each, _: each.stack.list_checkpoints("t"))):
        p, q = rig.process(ahead=3600.0), rig.process()
        await q.save(1, "other")
        await p.save(2, name)
        await p.rest()
        assert await look(q, name)
        q.cut(2)
        await q.save(3, name)
        await q.forget()
        r = rig.process()
        assert (await r.stack.scrub()).in_step
        assert [(await rig.marks(number))[name] for number in range(3)] == [3] * 3
        assert await r.load(name) == 3


@scenario
async def test_who_has_read_something_old_still_looks_at_the_newest_before_he_saves(rig: Rig) -> None:
    p, q = rig.process(ahead=3600.0), rig.process()
    await rig.process().save(1, "old")
    await p.save(2)
    await p.rest()
    assert await q.load("old") == 1
    await q.save(3)
    assert await rig.process().load() == 3
