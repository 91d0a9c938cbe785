"""``vacuum()`` of replicas, and replicas that delete only whole threads."""

from __future__ import annotations

import asyncio
import shutil
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import TestCase

import pytest
from locus.core.protocols import CheckpointerCapabilities
from locus.core.state import AgentState

from locus_tiered import WriteBehindCheckpointer
from locus_tiered.core.clock import SYSTEM, Clock
from locus_tiered.core.errors import BackendError, CapabilityMissing, QuorumError
from locus_tiered.core.ids import RESERVED
from locus_tiered.core.leaf import Leaf
from locus_tiered.core.stamp import StampClock
from locus_tiered.layers.scrub_report import ScrubReport
from locus_tiered.layers.tombstones import TOMBSTONES, Tombstones
from locus_tiered.testing.fault_script import FaultKind, on
from locus_tiered.testing.faults import FaultyCheckpointer
from locus_tiered.testing.reference import ReferenceCheckpointer
from locus_tiered.testing.simulation_history import state_of
from locus_tiered.testing.virtual_time import EPOCH
from tests.replication.rig import DAY, Process, Rig, scenario


def later(p: Process, days: float) -> None:
    p.clock.wall += days * DAY
    p.clock.monotonic += days * DAY


async def threads(rig: Rig, number: int) -> list[str]:
    """The threads of users that a replica itself holds."""
    return sorted(name for name in rig.stores[number].stored if not name.startswith(RESERVED))


# -- what goes, and what stays ----------------------------------------------------------------------------------------


@scenario
async def test_age_is_that_of_the_stamp_and_is_the_same_in_every_replica(rig: Rig) -> None:
    p = rig.process()
    await p.save(1, thread="old")
    await p.save(2, "name", thread="both")
    await p.save(3, thread="both")
    await p.rest()
    later(p, 40)
    await p.save(4, thread="both")
    await p.save(5, "name", thread="both")  # saved again: as young as its last version
    await p.save(6, thread="young")
    await p.rest()
    assert await p.stack.vacuum(30) == 2
    await p.rest()
    assert [await threads(rig, number) for number in range(3)] == [["both", "young"]] * 3
    assert await rig.everywhere("both") == [[5, 4]] * 3
    assert await p.load(thread="old") is None
    assert sorted(await p.stack.list_threads()) == ["both", "young"]
    assert await p.stack.vacuum(30) == 0
    assert [link.count("vacuum") for link in p.links] == [0] * 3, "a store knows only when a copy arrived there"


@scenario
async def test_a_vacuum_of_everything_leaves_replicas_that_are_believed(rig: Rig) -> None:
    p = rig.process()
    await p.save(1)
    await p.rest()
    assert await p.stack.vacuum(0) == 1
    assert await p.stack.list_threads() == []
    await p.save(2, thread="u")
    p.cut(0, 1, 2)
    with pytest.raises(QuorumError):
        await p.save(3, thread="u")
    p.heal()
    await p.rest()
    await p.save(4, thread="u")
    assert await p.load(thread="u") == 4
    assert (await p.stack.scrub()).in_step
    assert [replica.fenced for replica in p.stack._replicas] == [False] * 3


@scenario
async def test_tombstones_are_not_vacuumed(rig: Rig) -> None:
    p = rig.process()
    await p.save(1, "one")
    await p.save(2, "two")
    await p.rest()
    p.cut(2)
    assert await p.stack.delete("t", "one")
    await p.forget()  # and its hints
    q = rig.process(ahead=8 * DAY)
    for store in rig.stores:
        store._clock = q.clock.clock().wall  # for their own vacuum, should anybody call it
    await q.save(3, thread="young")
    assert await q.stack.vacuum(7) == 1
    await q.stack.scrub()
    assert await q.load("one") is None
    assert await rig.everywhere() == [[]] * 3


@scenario
async def test_a_copy_in_a_rebuilt_replica_is_as_old_as_the_others(rig: Rig) -> None:
    p = rig.process()
    await p.save(1)
    await p.rest()
    later(p, 40)
    await p.save(2, thread="young")
    await p.rest()
    rig.wipe(2)
    q = rig.process(ahead=40 * DAY)
    await q.load(thread="young")
    assert (await q.stack.scrub()).in_step
    assert await threads(rig, 2) == ["t", "young"]
    assert await q.stack.vacuum(30) == 1
    await q.rest()
    assert (await q.stack.scrub()).copied == 0
    assert [await threads(rig, number) for number in range(3)] == [["young"]] * 3


@scenario
async def test_what_a_replica_missed_does_not_come_back(rig: Rig) -> None:
    for days in (8, 40):  # the tombstone of the second is old enough itself to be removed by the scrub that needs it
        thread = f"{days} days"
        p = rig.process()
        await p.save(1, thread=thread)
        await p.save(2, thread=f"{thread}, both")
        await p.rest()
        later(p, days)
        await p.save(3, thread=f"{thread}, both")
        await p.rest()
        p.cut(2)
        assert await p.stack.vacuum(days - 1) == 2
        await p.forget()  # and its hints
        q = rig.process(ahead=days * DAY)
        assert thread in await threads(rig, 2)
        await q.load(thread=f"{thread}, both")
        report = await q.stack.scrub()
        assert (report.copied, report.in_step) == (2, True), "the tombstones alone"
        assert await rig.everywhere(thread) == [[]] * 3
        assert await rig.everywhere(f"{thread}, both") == [[3]] * 3


@scenario
async def test_a_state_from_before_the_stack_has_no_age(rig: Rig) -> None:
    for store in rig.stores:
        await store.save(state_of(1), "t", "before")
    p = rig.process()
    await p.save(2)
    await p.save(3)
    await p.rest()
    later(p, 40)
    assert await p.stack.vacuum(30) == 2
    await p.rest()
    assert await rig.everywhere() == [[1]] * 3
    assert await p.load() == 1
    await rig.stores[2].delete("t", "before")
    assert (await rig.process(ahead=40 * DAY).stack.scrub()).copied == 1, "no tombstone buries it"


# -- others meanwhile -------------------------------------------------------------------------------------------------


@scenario
async def test_what_is_saved_meanwhile_stays(rig: Rig) -> None:
    p = rig.process()
    for mark in (1, 2):
        await p.save(mark)
    await p.rest()
    later(p, 40)
    await p.load()
    q = rig.process(ahead=40 * DAY)
    await q.load()
    for link in p.links:
        link.inject(on("save", thread_id=TOMBSTONES, times=None).slow(1.0))
    vacuum = asyncio.create_task(p.stack.vacuum(30))
    await asyncio.sleep(0.5)  # it has looked, and found nothing young
    await q.save(3)
    await asyncio.sleep(0.1)
    mine = asyncio.create_task(p.save(4))
    assert await vacuum == 2
    await mine
    await p.rest()
    assert await rig.everywhere() == [[4, 3]] * 3
    assert await p.load() == await q.load() == 4
    assert (await p.stack.scrub()).differed == 0


@scenario
async def test_a_young_save_that_one_replica_has_missed_keeps_its_thread(rig: Rig) -> None:
    p = rig.process()
    await p.save(1)
    await p.rest()
    q = rig.process(journal="q", ahead=40 * DAY)
    q.cut(2)
    await q.save(2)
    later(p, 40)
    for link in p.links[:2]:
        link.inject(
            on("list_checkpoints", thread_id="t", times=None).slow(0.1)
        )  # the one that knows less is asked first
    assert await p.stack.vacuum(30) == 1
    await p.rest()
    assert await p.load() == 2
    assert (await rig.everywhere())[:2] == [[2], [2]]


@scenario
async def test_two_at_once_harm_nobody(rig: Rig) -> None:
    p, q = rig.process(), rig.process()
    for number in range(6):
        await p.save(number, thread=f"t{number}")
        await p.save(10 + number, thread="both")
    await p.rest()
    for process in (p, q):
        later(process, 40)
    await p.save(20, thread="both")
    await p.rest()
    for number, link in enumerate((*p.links, *q.links)):
        link.inject(on("delete", times=None).slow(0.01 * number))
    counts = await asyncio.gather(p.stack.vacuum(30), q.stack.vacuum(30))
    assert 12 <= sum(counts) <= 24
    await p.rest()
    assert [await threads(rig, number) for number in range(3)] == [["both"]] * 3
    assert await rig.everywhere("both") == [[20]] * 3


@scenario
async def test_of_two_replicas_both_must_be_in_step(plain: Rig) -> None:
    rig = Rig(plain.place, replicas=2)
    p = rig.process(journal="p")
    await p.save(1, "draft")
    await p.rest()
    p.links[1].inject(on("save", thread_id="t").slow(20.0))
    await p.save(2, "draft")  # one vote, and a hint for the slow one
    later(p, 1)
    with pytest.raises(QuorumError, match="; 0 checkpoints were deleted before"):
        await p.stack.vacuum(0.5)
    await p.rest(120.0)
    assert await rig.everywhere() == [[2]] * 2
    assert await p.stack.vacuum(0.5) == 1
    await p.rest()
    assert await rig.everywhere() == [[]] * 2


# -- when something fails ---------------------------------------------------------------------------------------------


@scenario
async def test_an_error_says_how_much_was_deleted_and_that_stays_deleted(rig: Rig) -> None:
    p = rig.process(journal="p")
    for number in range(6):
        await p.save(number, thread=f"t{number}")
    await p.rest()
    later(p, 40)
    for link in p.links[:2]:
        link.inject(on("delete", thread_id="t5", times=None).fail_before())
    with pytest.raises(QuorumError, match=r"stopped at thread 't5'.*; 5 checkpoints were deleted before, and stay"):
        await p.stack.vacuum(30)
    q = rig.process(ahead=40 * DAY)
    assert [await q.load(thread=f"t{number}") for number in range(5)] == [None] * 5
    await q.stack.scrub()
    assert [await threads(rig, number) for number in range(3)] == [[]] * 3, "its tombstone was laid: it rolls forward"


@scenario
async def test_nothing_is_deleted_while_too_few_can_be_asked(rig: Rig) -> None:
    p = rig.process()
    await p.save(1)
    await p.rest()
    later(p, 40)
    await p.load()
    p.cut(0, 1)
    with pytest.raises(QuorumError, match="Nothing was deleted"):
        await p.stack.vacuum(30)
    p.heal()
    assert await rig.everywhere() == [[1]] * 3


@scenario
async def test_a_thread_that_is_damaged_keeps_no_other_from_being_vacuumed(rig: Rig) -> None:
    p = rig.process()
    for thread in ("a", "b", "c"):
        await p.save(1, "draft", thread=thread)
    await p.rest()
    for number in range(3):
        await rig.spoil(number, "draft", "b")
    q = rig.process(ahead=40 * DAY)
    with pytest.raises(BackendError, match="'b' for one: they stay; 2 checkpoints were deleted"):
        await q.stack.vacuum(30)
    await q.rest()
    assert [await threads(rig, number) for number in range(3)] == [["b"]] * 3


@scenario
async def test_a_comparison_leaves_the_tombstones_that_hints_of_others_still_need(rig: Rig) -> None:
    p = rig.process(journal="p")
    await p.save(1)
    await p.rest()
    p.cut(2)
    await p.save(2, "draft")
    await p.forget()
    q = rig.process()
    assert await q.stack.delete("t")
    await q.rest()
    assert (await q.stack.scrub()).in_step
    again = rig.process(journal="p")
    assert await again.load(thread="other") is None
    await again.rest()
    await again.stack.scrub()
    assert await rig.everywhere() == [[]] * 3
    assert await q.load("draft") is None


# -- replicas that delete only whole threads --------------------------------------------------------------------------


class Whole(ReferenceCheckpointer):
    """Deletes only whole threads."""

    deletes_single_checkpoints = False  # type: ignore[assignment]

    async def delete(self, thread_id: str, checkpoint_id: str | None = None) -> bool:
        if checkpoint_id is not None:
            raise NotImplementedError("whole threads only")
        return await super().delete(thread_id)


@scenario
async def test_one_that_deletes_only_whole_threads_refuses_single_ones_for_all(rig: Rig) -> None:
    rig.stores[2] = Whole()
    p = rig.process(journal="p")
    await p.save(1, "one")
    await p.save(2, "two")
    await p.rest()
    assert not p.stack.deletes_single_checkpoints
    before = [len(link.calls) for link in p.links]
    with pytest.raises(CapabilityMissing, match=r"'deletes_single_checkpoints', which r2 lacks.*nothing was deleted"):
        await p.stack.delete("t", "one")
    assert [len(link.calls) for link in p.links] == before
    await p.rest()
    assert await rig.everywhere() == [[2, 1]] * 3
    assert (await p.stack.scrub()).differed == 0
    assert await p.stack.delete("t")
    await p.rest()
    assert await rig.everywhere() == [[]] * 3


@scenario
async def test_where_one_deletes_only_whole_threads_what_is_old_beside_young_stays(rig: Rig) -> None:
    rig.stores[2] = Whole()
    p = rig.process(journal="p")
    await p.save(1, thread="old")
    await p.save(2, thread="both")
    await p.rest()
    later(p, 40)
    await p.save(3, thread="both")
    assert await p.stack.vacuum(30) == 1
    await p.rest()
    assert await rig.everywhere("old") == [[]] * 3
    assert await rig.everywhere("both") == [[3, 2]] * 3
    assert (await p.stack.scrub()).differed == 0


@scenario
async def test_nobody_stays_fenced_for_what_a_replica_can_never_delete(rig: Rig) -> None:
    p = rig.process()
    for thread in ("gone", "both"):
        await p.save(1, "one", thread=thread)
        await p.save(2, "two", thread=thread)
    await p.rest()
    p.cut(2)
    await p.stack.delete("gone")
    await p.stack.delete("both", "one")
    await p.forget()  # and its hints
    plain, rig.stores[2] = rig.stores[2], Whole()
    rig.stores[2].stored, rig.stores[2]._arrivals = plain.stored, plain._arrivals
    q = rig.process()
    await q.load(thread="both")
    q.stack._replicas[0].fenced = True
    report = await q.stack.scrub()
    assert (report.unmended, report.deleted, report.unreachable) == (1, 2, set())
    assert [replica.fenced for replica in q.stack._replicas] == [False] * 3
    assert await rig.everywhere("gone") == [[]] * 3, "all of it is to go, which it can"
    await q.rest()
    before = [len(link.calls) for link in q.links]
    await q.rest(300.0)
    assert [len(link.calls) for link in q.links] == before, "it is not tried again and again"


@scenario
async def test_old_tombstones_stay_where_they_cannot_be_deleted_one_by_one(rig: Rig) -> None:
    rig.stores[2] = Whole()
    p = rig.process(journal="p")
    await p.save(1)
    await p.stack.delete("t")
    await p.rest()
    held = await rig.stores[0].list_checkpoints(TOMBSTONES)
    assert len(held) == 1
    later(p, 40)
    assert (await p.stack.scrub()).in_step
    await p.rest()
    assert [await store.list_checkpoints(TOMBSTONES) for store in rig.stores] == [held] * 3
    assert all(replica.in_step for replica in p.stack._replicas), "a delete that never can be would be a dead letter"
    assert await p.stack.scrub() == ScrubReport()


class Choosy(ReferenceCheckpointer):
    """Refuses saves for a while, for good each."""

    refuses = False

    async def save(self, state: AgentState, thread_id: str, *rest: Any, **more: Any) -> str:
        if self.refuses and thread_id == "t":
            raise NotImplementedError("not that one")
        return await super().save(state, thread_id, *rest, **more)


@scenario
async def test_a_hint_that_can_never_be_delivered_is_told_of_and_a_comparison_ends_it(rig: Rig) -> None:
    rig.stores[0] = store = Choosy()
    p = rig.process(journal="p")
    await p.save(1)
    await p.rest()
    store.refuses = True
    with TestCase().assertLogs("locus_tiered.layers.flusher", "ERROR") as said:
        await p.save(2)
        await p.rest()
    line = said.output[0]
    assert "r0: a save of thread 't' can never be applied (CapabilityMissing)" in line
    assert "until scrub() has compared it" in line
    assert await p.load() == 2, "it is not believed"
    assert not p.stack._replicas[0].in_step
    await p.save(3, "draft")
    await p.rest()
    assert await p.stack.delete("t", "draft")
    assert not await p.stack.exists("t", "draft"), "whatever the hint says"
    store.refuses = False
    assert (await p.stack.scrub()).copied == 1
    assert await rig.everywhere() == [[2, 1]] * 3
    assert p.stack._replicas[0].in_step


class Unlisted(ReferenceCheckpointer):
    """Does not list its threads."""

    @property
    def capabilities(self) -> CheckpointerCapabilities:
        return replace(super().capabilities, list_threads=False)


@scenario
async def test_who_cannot_list_threads_cannot_vacuum_and_is_named(rig: Rig) -> None:
    rig.stores = [Unlisted() for _ in range(3)]
    p = rig.process()
    await p.save(1)
    verdict = p.stack.explain()["vacuum"]
    assert (verdict.granted, verdict.member) == (False, "r0")
    assert "lists its threads" in verdict.reason
    assert not p.stack.capabilities.vacuum
    with pytest.raises(CapabilityMissing, match=r"vacuum\(\) needs the capability 'vacuum', which r0 lacks"):
        await p.stack.vacuum(0)
    rig.stores[1] = ReferenceCheckpointer()
    assert rig.process().stack.capabilities.vacuum, "one that lists them is enough"


# -- when nobody knows better -----------------------------------------------------------------------------------------


@scenario
async def test_replicas_that_have_all_been_wiped_are_as_good_as_new(rig: Rig) -> None:
    p = rig.process(journal="p")
    await p.save(1)
    await p.rest()
    for number in range(3):
        rig.wipe(number)
    await p.save(2, thread="u")
    await p.rest()
    p.cut(0, 1, 2)
    with pytest.raises(QuorumError):
        await p.save(3, "name", thread="u")
    p.heal()
    await p.rest()
    await p.save(4, "name", thread="u")
    await p.rest()
    assert await rig.everywhere("u") == [[4, 2]] * 3
    assert [replica.is_believed for replica in p.stack._replicas] == [True] * 3


@scenario
async def test_an_outage_that_looks_like_nothing_makes_nobody_believed(rig: Rig) -> None:
    p = rig.process(journal="p")
    await p.save(1)
    await p.rest()
    later(p, 0.1)
    for link in p.links:
        link.partition(FaultKind.NONE_ON_OUTAGE)
    with pytest.raises(QuorumError):
        await p.load()
    p.heal()
    await p.rest(120.0)
    with suppress(QuorumError):
        await p.load()  # they are looked at again
    await p.rest()
    assert await p.load() == 1


@scenario
async def test_of_lost_replicas_the_union_is_right(rig: Rig) -> None:
    p = rig.process()
    await p.save(1)
    await p.save(2, thread="u")
    await p.rest()
    await rig.stores[0].delete("t")
    await rig.stores[1].delete("u")
    rig.wipe(2)
    p.stack._heartbeats._last_fenced = p.clock.clock().monotonic()  # nobody looks again for a minute
    for replica in p.stack._replicas:
        replica.fenced = replica.lost = True
    report = await p.stack.scrub()
    assert report.in_step
    assert (report.deleted, report.quarantined) == (0, 0)
    assert [replica.fenced for replica in p.stack._replicas] == [False] * 3
    for thread, mark in (("t", 1), ("u", 2)):
        assert await rig.everywhere(thread) == [[mark]] * 3


# -- one store, without replication -----------------------------------------------------------------------------------


async def test_a_stores_own_vacuum_leaves_the_tombstones_that_are_still_needed() -> None:
    days = [0.0]
    clock = Clock(wall=lambda: EPOCH + days[0] * DAY)
    store = FaultyCheckpointer(ReferenceCheckpointer(clock=clock.wall))
    leaf = Leaf(store, clock=clock)
    leaf.put_in_order()
    stamps, tombstones = StampClock(clock), Tombstones(leaf, clock, tidies=False)
    laid = {}
    for thread, day in (("t20", 0), ("t12", 8), ("t8", 12), ("t0", 20)):
        days[0] = day
        laid[thread, None] = stamps.issue(thread)
        await tombstones.lay(thread, None, laid[thread, None])
        await store.save(state_of(1), thread)
    assert await tombstones.among(laid) == laid
    assert await leaf.vacuum(30) == 0
    assert store.count("load", TOMBSTONES) <= 2 * len(laid), "none of the stack's own is that old"
    assert await leaf.vacuum(7) == 6
    assert sorted(await leaf.list_threads()) == ["t0"]
    del laid["t20", None]
    assert await tombstones.among(laid) == laid
    days[0] += 0.001
    assert await leaf.vacuum(0) == 4
    assert await leaf.list_threads() == []
    assert await tombstones.among(laid) == laid
    store.inject(on("vacuum").fail_after())
    with pytest.raises(BackendError):
        await leaf.vacuum(0)
    assert await tombstones.among(laid) == laid, "it may have been carried out"


async def test_a_vacuum_that_is_given_up_on_puts_back_what_it_took_away() -> None:
    store = FaultyCheckpointer(ReferenceCheckpointer())
    leaf = Leaf(store)
    leaf.put_in_order()
    stamps, tombstones = StampClock(), Tombstones(leaf, SYSTEM, tidies=False)
    await tombstones.lay("t", None, stamp := stamps.issue("t"))
    store.inject(on("vacuum").hang())
    vacuum = asyncio.create_task(leaf.vacuum(0))
    await store.until_hung()
    vacuum.cancel()
    with pytest.raises(asyncio.CancelledError):
        await vacuum
    store.release()
    await leaf.close()
    assert await tombstones.among([("t", None)]) == {("t", None): stamp}
    assert store.count("save", TOMBSTONES) == 2


async def test_a_vacuum_does_not_bring_back_what_was_deleted_after_a_crash(tmp_path: Path) -> None:
    home = FaultyCheckpointer(ReferenceCheckpointer())
    one = WriteBehindCheckpointer(home, journal=tmp_path / "one", ack="journal")
    await one.save(state_of(1), "t")
    await one.flush()
    home.partition()
    await one.save(state_of(2), "t", "draft")
    shutil.copytree(tmp_path / "one", tmp_path / "crashed", ignore=shutil.ignore_patterns("*-shm"))
    home.heal()
    await one.close()
    other = WriteBehindCheckpointer(home, journal=tmp_path / "other")
    assert await other.delete("t")
    assert await other.vacuum(0) >= 0
    again = WriteBehindCheckpointer(home, journal=tmp_path / "crashed", ack="journal")
    assert await again.load("t") is None
    await again.flush()
    assert await home.list_checkpoints("t") == []
    await again.close()
    await other.close()
