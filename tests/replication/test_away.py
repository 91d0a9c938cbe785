"""A replica that was away, or lost everything: not believed until it was compared."""

from __future__ import annotations

import asyncio

import pytest

from locus_tiered.core.errors import BackendError, QuorumError
from locus_tiered.core.ids import RESERVED
from locus_tiered.testing.fault_script import on
from tests.replication.rig import DAY, Rig, scenario


@scenario
async def test_a_replica_that_was_away_for_too_long_is_not_believed_and_has_no_vote(rig: Rig) -> None:
    p = rig.process()
    await p.save(1)
    p.cut(2)
    p.clock.wall += 8 * DAY
    p.clock.monotonic += 8 * DAY
    await p.save(2)
    q = rig.process(ahead=8 * DAY)
    assert await q.load() == 2
    r = rig.process(ahead=8 * DAY)
    await r.load(thread="other")
    r.cut(0, 1)
    with pytest.raises(BackendError):
        await r.load()
    r.heal()
    await r.rest()
    r.cut(0)
    with pytest.raises(QuorumError):
        await r.save(3)


@scenario
async def test_a_replica_that_comes_back_empty_is_not_believed(rig: Rig) -> None:
    p = rig.process(journal="p")
    await p.save(1)
    await p.rest()
    p.cut(1, 2)
    rig.wipe(2)
    with pytest.raises(BackendError):
        await p.save(2, thread="other")
    p.heal()
    await p.rest()
    p.cut(0, 1)
    with pytest.raises(BackendError):
        await p.load()
    p.heal()
    await p.rest()
    report = await p.stack.scrub()
    assert report.in_step
    p.cut(0, 1)
    assert await p.load() == 1


@scenario
async def test_a_process_believes_a_replica_again_that_another_process_has_scrubbed(rig: Rig) -> None:
    p = rig.process()
    await p.save(1)
    await p.rest()
    rig.wipe(2)
    q, r = rig.process(), rig.process()
    await q.load()
    await r.load()
    assert (await q.stack.scrub()).in_step
    await r.rest(90)
    await r.load()
    await r.rest(1)
    r.cut(0)
    assert await r.load("nothing") is None  # it takes two


@scenario
async def test_two_lost_replicas_of_three_are_rebuilt_from_the_third(rig: Rig) -> None:
    p = rig.process()
    names = [await p.save(mark) for mark in (1, 2)]
    await p.rest()
    for number in (1, 2):
        rig.wipe(number)
    q = rig.process()
    assert await q.load() == 2
    assert (await q.stack.scrub()).in_step
    assert [await rig.ids(number) for number in range(3)] == [names[::-1]] * 3
    q.cut(0)
    assert await q.load() == 2


@scenario
async def test_a_thread_whose_hints_outgrew_their_window_is_compared_also_by_the_next_process(rig: Rig) -> None:
    p = rig.process(journal="p", hint_window="4KiB")
    await p.save(1)
    p.cut(2)
    names = [await p.save(mark) for mark in range(2, 12)]
    await p.forget()
    q = rig.process(journal="p", hint_window="4KiB")
    await q.load(thread="other")
    q.cut(0, 1)
    with pytest.raises(BackendError):
        await q.load()
    q.heal()
    await q.rest()
    for _ in range(3):
        assert await q.load() == 11
        await q.rest()
    assert set(names) <= set(await rig.ids(2))
    assert await rig.latest(2) == 11
    q.cut(0, 1)
    assert await q.load() == 11


@scenario
async def test_tombstones_whose_hints_outgrew_their_window_are_compared_too(rig: Rig) -> None:
    p = rig.process(journal="p", hint_window="4KiB")
    await p.save(1)
    p.cut(2)
    for number in range(12):
        await p.save(number, f"name{number}")
        await p.stack.delete("t", f"name{number}")
    p.heal()
    for _ in range(3):
        await p.rest()
        await p.load()
    p.cut(0, 1)
    assert await p.load() == 1


@scenario
async def test_what_only_a_replica_has_that_was_away_is_put_aside_there(rig: Rig) -> None:
    p = await rig.half_saved(2)
    await p.forget()
    q = rig.process(ahead=8 * DAY)
    q.cut(2)
    await q.save(3)
    await q.forget()
    r = rig.process(ahead=8 * DAY)
    assert await r.load() == 3
    report = await r.stack.scrub()
    assert report.in_step
    assert report.quarantined == 1
    assert "alone" not in await rig.ids(2)
    assert list((await rig.marks(2, f"{RESERVED}quarantine")).values()) == [2]


@scenario
async def test_two_processes_that_start_on_empty_replicas_believe_them_all(rig: Rig) -> None:
    p, q = rig.process(), rig.process()
    await asyncio.gather(p.save(1, thread="a"), q.save(2, thread="b"))
    await q.rest(120.0)
    assert await q.load(thread="a") == 1
    await q.rest(2.0)
    for process in (p, q):
        assert [replica.is_believed for replica in process.stack._replicas] == [True] * 3


@scenario
async def test_nobody_stays_fenced_for_what_is_damaged_wherever_it_is(rig: Rig) -> None:
    p = rig.process()
    await p.save(1, "draft")
    await p.save(2)
    await p.rest()
    rig.wipe(2)
    for number in (0, 1):
        await rig.damage(number, "draft")
    q = rig.process()
    await q.load()
    report = await q.stack.scrub()
    assert not report.in_step
    await q.load()
    await q.rest(1.0)
    assert [replica.is_believed for replica in q.stack._replicas] == [True] * 3


@scenario
async def test_a_replica_that_is_away_keeps_nobody_looking_at_the_others(rig: Rig) -> None:
    p = rig.process(journal="p")
    await p.save(1, "draft")
    await p.save(2)
    await p.rest()
    p.links[2].inject(on(times=None).fail_before())
    await p.stack.delete("t", "draft")
    await p.rest()
    before = [len(link.matching("list_checkpoints", "t")) for link in p.links[:2]]
    await p.rest(600.0)
    assert [len(link.matching("list_checkpoints", "t")) for link in p.links[:2]] == before


@scenario
async def test_a_thread_that_nobody_lists_any_more_is_compared_where_a_replica_had_missed_something(rig: Rig) -> None:
    p = rig.process(journal="p", hint_window="4KiB")
    await p.save(1)
    p.cut(2)
    for mark in range(2, 12):
        await p.save(mark)
    q = rig.process()
    await q.stack.delete("t")
    p.heal()
    assert p.stack._replicas[2].marked
    assert (await p.stack.scrub()).in_step
    assert not p.stack._replicas[2].marked
