"""Reading from replicas: nobody is answered with less than he has seen, whoever answers."""

from __future__ import annotations

import pytest

from locus_tiered.core.errors import BackendError, QuorumError
from locus_tiered.testing.fault_script import FaultKind, on
from locus_tiered.testing.simulation_history import state_of
from tests.replication.rig import Rig, scenario


@scenario
async def test_one_replica_that_has_nothing_is_no_answer(rig: Rig) -> None:
    p = rig.process(journal="p")
    await p.save(1, thread="other")
    await p.rest()
    p.cut(2)
    name = await p.save(2)
    q = rig.process()
    await q.load(thread="other")
    q.cut(0, 1)
    for ask in (
        lambda: q.load(),
        lambda: q.load(name),
        lambda: q.stack.exists("t"),
        lambda: q.stack.exists("t", name),
    ):
        with pytest.raises(BackendError):
            await ask()
    q.heal()
    await q.rest()
    q.cut(0)
    assert await q.load() == 2
    assert await q.load(name) == 2


@scenario
async def test_what_was_seen_is_never_answered_with_less(rig: Rig) -> None:
    p = rig.process(journal="p")
    await p.save(1)
    p.cut(2)
    await p.save(2)
    q = rig.process()
    assert await q.load() == 2
    q.cut(0, 1)
    with pytest.raises(BackendError):
        await q.load()
    q.heal()
    await q.rest()
    q.cut(0)
    assert await q.load() == 2


@scenario
async def test_what_was_loaded_by_id_is_never_answered_with_less(rig: Rig) -> None:
    p = rig.process(journal="p")
    await p.save(1, "draft")
    p.cut(2)
    await p.save(2, "draft")
    q = rig.process()
    assert await q.load("draft") == 2
    q.cut(0, 1)
    with pytest.raises(BackendError):
        await q.load("draft")


@scenario
async def test_a_replica_on_which_a_write_is_still_under_way_is_not_believed(rig: Rig) -> None:
    p = rig.process()
    await p.save(1)
    await p.rest()
    p.links[2].inject(on("save", thread_id="t").hang())
    name = await p.save(2)
    p.cut(0, 1)
    with pytest.raises(BackendError):
        await p.load()
    with pytest.raises(BackendError):
        await p.load(name)
    p.heal()
    p.links[2].release()
    await p.rest()
    assert name in await rig.ids(2)


@scenario
async def test_what_a_hint_holds_is_read_from_it(rig: Rig) -> None:
    p = rig.process(journal="p")
    first = await p.save(1)
    p.cut(2)
    await p.save(2)
    p.heal()
    p.links[2].inject(on("save", times=None).fail_before())
    p.cut(0, 1)
    await p.rest(0.6)
    assert await p.load(first) == 1
    assert await p.load() == 2


@scenario
async def test_a_copy_that_came_late_is_not_the_newest_for_anybody(rig: Rig) -> None:
    p = rig.process()
    await p.save(1)
    await p.rest()
    p.cut(2)
    names = [await p.save(mark) for mark in (2, 3, 4)]
    await p.forget()
    q = rig.process()
    await q.load()
    last = await q.save(5)
    await q.rest(0.5)
    assert (await q.stack.scrub()).in_step
    assert q.saved(2)[: 1 + len(names)] == [last, *names]  # oldest first
    assert [await rig.latest(number) for number in range(3)] == [5] * 3
    assert set(await rig.ids(2)) == set(await rig.ids(0))


@scenario
async def test_a_hint_that_came_late_is_not_the_newest_for_anybody(rig: Rig) -> None:
    p, q = rig.process(journal="p"), rig.process()
    await p.save(1)
    await q.load()
    p.cut(2)
    await p.save(2)
    await q.load()
    await q.save(3)
    p.heal()
    await p.rest()
    assert [await rig.latest(number) for number in range(3)] == [3] * 3


@scenario
async def test_a_read_by_quorum_mends_before_it_answers(rig: Rig) -> None:
    p = rig.process()
    await p.save(1)
    await p.rest()
    p.cut(0)
    name = await p.save(2)
    await p.forget()
    q = rig.process(read="quorum")
    assert await q.load() == 2
    assert sum([name in await rig.ids(number) for number in range(3)]) >= 2
    await q.rest()
    assert [name in await rig.ids(number) for number in range(3)] == [True] * 3


@scenario
async def test_a_list_by_quorum_holds_the_newest_version_of_a_name(rig: Rig) -> None:
    p = rig.process()
    await p.save(1, "draft")
    await p.rest()
    p.cut(2)
    await p.stack.delete("t", "draft")
    await p.save(2, "draft")
    await p.forget()
    q = rig.process(read="quorum")
    q.cut(1)
    q.links[2].inject(on("list_checkpoints", thread_id="t", times=None).slow(0.3))  # the older version comes last
    assert await q.stack.list_checkpoints("t") == ["draft"]


@scenario
async def test_a_newest_that_is_gone_does_not_hide_what_lies_below_it(rig: Rig) -> None:
    p = rig.process()
    await p.save(1)
    await p.rest()
    p.cut(1)
    await p.save(2)
    await p.forget()
    q = rig.process()
    await q.load()
    q.cut(1, 2)
    with pytest.raises(QuorumError):
        await q.save(3)
    await q.forget()
    r = rig.process(read="quorum")
    await r.load(thread="other")
    # The first two that answer are the one that has what nobody can load, and the one that has missed the save.
    r.links[2].inject(on("list_checkpoints", thread_id="t").slow(1.0))
    r.links[0].inject(on("load", thread_id="t").fail_before())
    assert await r.load() == 2


@scenario
async def test_a_hint_does_not_hide_what_somebody_else_has_saved_since(rig: Rig) -> None:
    p, q = rig.process(journal="p", read="quorum"), rig.process()
    await p.save(1, "draft")
    await p.save(1, "other")
    await q.load()
    await p.rest()
    p.links[1].inject(on("save", thread_id="t").fail_before(), on("delete", thread_id="t").fail_before())
    await p.save(2, "draft")
    await p.stack.delete("t", "other")
    q.cut(0)
    await q.save(3, "draft")
    await q.save(4, "other")
    p.cut(2)
    with pytest.raises(QuorumError):
        await p.load("draft")  # of the one that failed a moment ago nobody knows yet whether it came back empty
    assert {row.kind for row in p.stack._replicas[1].rows("t")} == {"save", "delete"}
    assert await p.load("draft") == 3
    assert await p.load("other") == 4
    assert await p.stack.exists("t", "other")
    assert await p.stack.list_checkpoints("t") == ["other", "draft"]


@scenario
async def test_reading_a_state_from_before_the_stack_makes_it_the_newest_nowhere(rig: Rig) -> None:
    for store in rig.stores:
        for mark in (1, 2, 3):
            if not (mark == 1 and store is rig.stores[2]):
                await store.save(state_of(mark), "t", f"old{mark}")
    p = rig.process(read="quorum")
    for _ in range(2):
        p.cut(0)
        assert await p.load("old1") == 1
        p.heal()
        assert [await rig.latest(number) for number in range(3)] == [3] * 3


@scenario
async def test_a_replica_that_cannot_be_reached_does_not_say_that_there_are_no_threads(rig: Rig) -> None:
    p = rig.process()
    assert await p.stack.list_threads() == []
    await p.save(1)
    await p.rest()
    for link in p.links[:2]:
        link.partition(FaultKind.NONE_ON_OUTAGE)
    assert await p.stack.list_threads() == ["t"]
    assert len(await p.stack.list_with_metadata()) == 1
    p.links[2].partition(FaultKind.NONE_ON_OUTAGE)
    with pytest.raises(BackendError):
        await p.stack.list_threads()


@scenario
async def test_the_hint_of_a_threads_delete_does_not_hide_what_somebody_else_has_saved_since(rig: Rig) -> None:
    p, q = rig.process(journal="p", read="quorum"), rig.process()
    await p.save(1)
    await p.rest()
    p.links[1].inject(on("delete", thread_id="t").fail_before())
    await p.stack.delete("t")
    await q.load()
    q.cut(0)
    name = await q.save(2)
    p.cut(2)
    with pytest.raises(QuorumError):
        await p.load(name)  # of the one that failed a moment ago nobody knows yet whether it came back empty
    assert [row.kind for row in p.stack._replicas[1].rows("t")] == ["delete"]
    assert await p.load(name) == 2
    assert await p.stack.exists("t", name)
    assert await p.load() == 2
