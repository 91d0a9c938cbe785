"""What happens to a replica, or to what this process knows, while it is being asked."""

from __future__ import annotations

import asyncio

import pytest

from locus_tiered.core.errors import BackendError, QuorumError
from locus_tiered.core.ids import RESERVED
from locus_tiered.core.leaf import Leaf
from locus_tiered.core.operations import ListThreads
from locus_tiered.layers.replicated_options import Read
from locus_tiered.testing.fault_script import FaultKind, on
from locus_tiered.testing.reference import ReferenceCheckpointer
from locus_tiered.testing.simulation_history import state_of
from tests.replication.rig import Rig, scenario


@pytest.mark.parametrize("ours", [1, 2, 3, 12])
async def test_threads_of_the_stacks_own_hide_no_others(ours: int) -> None:
    store = ReferenceCheckpointer()
    await store.save(state_of(1), "t", "one")
    for number in range(ours):
        await store.save(state_of(2), f"{RESERVED}{number}", "one")
    assert await Leaf(store).handle(ListThreads(1)) == ["t"]


@scenario
async def test_a_replica_that_was_wiped_is_not_believed_whatever_was_written_last(rig: Rig) -> None:
    p = rig.process(journal="p")
    await p.save(1)
    await p.save(2, "draft", "other")
    await p.stack.delete("other")
    await p.rest(3601)
    await p.load()  # a new heartbeat: the threads of the stack's own are the latest of all
    await p.rest()
    assert (await rig.stores[0].list_threads())[-1] == "t"
    rig.wipe(2)
    q = rig.process(write_quorum="all", read="one")
    await q.load(thread="nothing")
    q.cut(0, 1)
    with pytest.raises(BackendError):
        await q.load()


@scenario
async def test_a_read_is_not_answered_with_less_than_this_process_saved_while_it_was_under_way(rig: Rig) -> None:
    p = rig.process(read="one")
    await p.save(1)
    await p.rest()
    for link in p.links:
        link.inject(on("load", thread_id="t").slow(5.0))
    slow = asyncio.ensure_future(p.load())
    await asyncio.sleep(1)
    await p.save(2)
    assert not slow.done()
    assert await slow == 2


@scenario
async def test_a_replica_whose_hints_give_way_while_it_is_asked_is_not_believed(rig: Rig) -> None:
    p = rig.process(read="one")
    await p.save(1)
    await p.rest()
    for link in p.links:
        link.inject(on("list_checkpoints", thread_id="t").slow(1.0))
    listed = asyncio.ensure_future(p.stack.list_checkpoints("t"))
    await asyncio.sleep(0.5)
    for replica in p.stack._replicas:
        replica.marked["t"] = "t"
    with pytest.raises(BackendError):
        await listed


@pytest.mark.parametrize("what", ["head", "list"])
def test_a_quorum_asks_lists_that_may_lose_something_last(what: str) -> None:
    @scenario
    async def story(rig: Rig) -> None:
        rig.careless = {0}
        p, q = rig.process(), rig.process(read="quorum")
        old = await p.save(1)
        q.links[1].inject(on("list_checkpoints", times=None).slow(0.2))
        await q.load()
        p.cut(2)  # a hint waits in a process that is not asked
        p.links[0].inject(on("save").lose_index_row())
        new = await p.save(2)
        q.links[0]._lost = p.links[0]._lost
        q.links[0].inject(on("load", times=None).stale_latest())  # nor does its own latest tell of it
        assert await rig.ids(1) == [new, old]
        if what == "head":
            assert await q.load() == 2
        else:
            assert await q.stack.list_checkpoints("t") == [new, old]

    story()


@pytest.mark.parametrize("read", ["one", "hedged"])
def test_a_name_is_not_read_older_than_before_though_something_else_is_the_newest(read: Read) -> None:
    @scenario
    async def story(rig: Rig) -> None:
        p, q = rig.process(), rig.process(read=read)
        await p.save(1, "draft")
        await p.rest()
        p.cut(0)
        await p.save(2, "draft")  # a hint waits in a process that is not asked
        await p.save(3, "plan")
        q.cut(0)
        assert (await q.load("draft"), await q.load()) == (2, 3)
        q.heal()
        q.cut(1)
        await q.rest()
        q.links[2].inject(on("load", times=None).slow(0.2))
        assert [await q.load("draft") for _ in range(3)] == [2, 2, 2]
        q.heal()
        await q.stack.delete("t", "draft")
        assert await q.load("draft") is None
        await p.stack.close()
        r = rig.process()
        await r.save(4, "draft")
        assert await q.load("draft") == 4

    story()


@scenario
async def test_a_list_lacks_nothing_that_an_earlier_one_had(rig: Rig) -> None:
    p, q = rig.process(), rig.process(read="one")
    first = await p.save(1)
    await p.rest()
    p.cut(0)
    second = await p.save(2)  # a hint waits in a process that is not asked
    await p.rest(1)
    r = rig.process()
    third = await r.save(3)
    assert await rig.ids(0) == [third, first]
    q.cut(0)
    assert await q.stack.list_checkpoints("t") == [third, second, first]
    q.heal()
    await q.rest()
    for number in (1, 2):
        q.links[number].inject(on("list_checkpoints", times=None).slow(0.2))
    assert [await q.stack.list_checkpoints("t") for _ in range(3)] == [[third, second, first]] * 3
    await r.stack.delete("t", second)
    assert [await q.stack.list_checkpoints("t") for _ in range(3)] == [[third, first]] * 3
    asked = len(q.links[1].calls)
    assert [await q.stack.list_checkpoints("t") for _ in range(3)] == [[third, first]] * 3
    assert len(q.links[1].calls) == asked  # the fastest alone is believed again


@scenario
async def test_a_read_by_quorum_believes_no_hint_for_what_somebody_has_deleted(rig: Rig) -> None:
    p = rig.process(write_quorum="all")
    q = rig.process(write_quorum="all", read="quorum")
    old = await p.save(1)
    for link in q.links:
        link.inject(on("save", thread_id="t", times=None).fail_before())
    for mark, name in ((2, "draft"), (3, "plan")):
        with pytest.raises(QuorumError):
            await q.save(mark, name)  # it rolls forward
    assert await q.stack.list_checkpoints("t") == ["plan", "draft", old]
    assert [await q.load(name) for name in ("draft", "plan", None)] == [2, 3, 3]
    for name in ("plan", "draft"):
        await p.stack.delete("t", name)
    for _ in range(2):
        assert [await q.load(name) for name in ("draft", "plan", None)] == [None, None, 1]
        assert [await q.stack.exists("t", name) for name in ("draft", "plan")] == [False, False]
        assert await q.stack.list_checkpoints("t") == [old]
        for link in q.links:
            link.clear()
        await q.rest()
    assert await rig.ids(0) == [old]


@scenario
async def test_what_was_told_before_something_that_turns_out_to_be_gone_is_not_gone_behind(rig: Rig) -> None:
    p, q, r = rig.process(), rig.process(read="one"), rig.process()
    await p.save(1)
    await p.rest()
    p.cut(2)
    await p.save(2)  # hints wait in processes that are not asked
    assert await q.load() == 2
    r.cut(1, 2)
    await p.rest(1)
    with pytest.raises(QuorumError):
        await r.save(3)
    assert await rig.latest(0) == 3
    q.links[0].inject(on("load", times=None).fail_before())
    q.links[1].inject(on("list_checkpoints").fail_before())
    with pytest.raises(QuorumError, match="nothing newer than this process has seen"):
        await q.load()
    q.links[0].clear()
    await q.rest(5)
    assert await q.load() in (2, 3)


@scenario
async def test_nothing_is_begun_for_a_stack_that_was_closed(rig: Rig) -> None:
    p = rig.process(journal="p")
    await p.save(1, "draft")
    await p.save(2)
    await p.rest()
    await p.stack.delete("t", "draft")
    for link in p.links:
        link.partition(FaultKind.HANG)
    await p.rest(1.5)  # what is to be compared after a delete is being compared, and hangs
    await p.stack.close()
    left = [task.get_coro().__qualname__ for task in asyncio.all_tasks()]  # type: ignore[union-attr]
    assert not [name for name in left if "LatestLooks" in name or "suspect" in name], left
    p.heal()
    await p.rest()
    assert await p.load() == 2


@scenario
async def test_nor_is_a_look_for_a_comparison_that_did_not_come_to_its_end(rig: Rig) -> None:
    p = rig.process(journal="p")
    await p.save(1)
    await p.rest()
    p.stack._suspect("t", "t")
    for link in p.links:
        link.partition(FaultKind.HANG)
    await p.rest(1.5)
    await p.stack.close()
    left = [task.get_coro().__qualname__ for task in asyncio.all_tasks()]  # type: ignore[union-attr]
    assert not [name for name in left if "LatestLooks" in name or "suspect" in name], left
