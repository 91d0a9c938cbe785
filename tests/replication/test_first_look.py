"""Who is believed when a process begins while not every replica can be reached."""

from __future__ import annotations

import pytest

from locus_tiered.core.errors import BackendError, QuorumError
from locus_tiered.core.ids import RESERVED
from locus_tiered.testing.fault_script import on
from tests.replication.rig import Rig, scenario


@scenario
async def test_a_wiped_replica_that_is_reached_alone_is_not_believed_and_not_made_look_in_use(rig: Rig) -> None:
    p = rig.process(journal="p")
    await p.save(1, thread="other")
    await p.rest()
    p.cut(1)
    await p.save(2)
    await p.forget()
    rig.wipe(2)
    q = rig.process(journal="q")
    q.cut(0, 1)
    for _ in range(2):
        with pytest.raises(QuorumError):
            await q.load()
        with pytest.raises(BackendError):
            await q.stack.list_threads()
        with pytest.raises(QuorumError):
            await q.save(3, thread="new")
        await q.rest(5)
    r = rig.process()
    assert await r.load() == 2
    assert [replica.fenced for replica in r.stack._replicas] == [False, False, True]
    q.heal()
    await q.rest()
    assert await q.load() == 2
    assert [replica.fenced for replica in q.stack._replicas] == [False, False, True]
    assert (await q.stack.scrub()).in_step
    assert not any(replica.fenced for replica in q.stack._replicas)


@scenario
async def test_two_new_replicas_are_new_together_although_one_comes_late(rig: Rig) -> None:
    rig.stores = rig.stores[:2]
    p = rig.process(journal="p")
    p.cut(1)
    with pytest.raises(QuorumError):
        await p.save(1)
    p.heal()
    await p.rest()
    await p.save(1)
    assert await p.load() == 1
    assert [await rig.ids(number) for number in range(2)] == [await rig.ids(0)] * 2
    await p.rest(7200)
    await p.save(2)
    assert not any(replica.fenced for replica in p.stack._replicas)


@scenario
async def test_of_two_the_wiped_one_is_found_out_as_soon_as_the_other_is_back(rig: Rig) -> None:
    rig.stores = rig.stores[:2]
    p = rig.process(journal="p")
    await p.save(1)
    await p.forget()
    rig.wipe(0)
    q = rig.process(journal="q")
    q.cut(1)
    with pytest.raises(QuorumError):
        await q.load()
    q.heal()
    await q.rest()
    assert await q.load() == 1
    await q.rest()
    assert [replica.fenced for replica in q.stack._replicas] == [True, False]


@scenario
async def test_one_that_could_not_take_its_first_heartbeat_was_not_away(rig: Rig) -> None:
    p = rig.process(journal="p")
    p.cut(2)
    p.links[1].inject(on("save", thread_id=f"{RESERVED}heartbeat").fail_before())
    with pytest.raises(QuorumError):
        await p.load()
    await p.rest(1)
    for mark in range(3):
        await p.save(mark)
        await p.rest(5)
    assert not p.stack._replicas[1].fenced
    assert await rig.stores[1].list_checkpoints(f"{RESERVED}heartbeat") == ["heartbeat"]


@scenario
async def test_a_new_stack_begins_without_the_third(rig: Rig) -> None:
    p = rig.process(journal="p")
    p.cut(2)
    assert await p.load() is None
    await p.save(1)
    assert await p.load() == 1
    p.heal()
    await p.rest()
    q = rig.process(read="quorum")
    assert await q.load() == 1
