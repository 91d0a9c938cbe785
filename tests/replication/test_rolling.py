"""One replica comes back, and the next one goes away at once, as when they are restarted one after the other."""

from __future__ import annotations

from typing import Any

import pytest
from locus.core.state import AgentState

from locus_tiered.core.errors import QuorumError
from locus_tiered.core.ids import RESERVED
from locus_tiered.testing.fault_script import FaultKind, on
from locus_tiered.testing.reference import ReferenceCheckpointer
from tests.replication.rig import Process, Rig, scenario


async def long_away(p: Process, number: int = 0) -> None:
    """Have a replica fail for so long that it is left alone for half a minute at a time, and come back just now."""
    p.cut(number)
    for _ in range(5):
        await p.rest(40.0)
        await p.save(1, "draft")
    assert p.stack._replicas[number].is_resting
    p.heal()


@scenario
async def test_a_replica_that_is_back_is_written_to_where_a_quorum_needs_it(rig: Rig) -> None:
    p = rig.process(journal="p")
    await p.save(1)
    await long_away(p)
    p.cut(1)
    await p.save(7)
    assert list((await rig.marks(0)).values()) == [7, 1, 1], "with what it missed, in order"
    await p.save(8, thread="u")
    assert await p.load() == 7
    assert await p.stack.delete("t")
    assert await p.load() is None
    p.heal()
    await p.rest()
    assert await rig.everywhere() == [[]] * 3
    assert await rig.everywhere("u") == [[8]] * 3


@scenario
async def test_a_delete_needs_it_as_much(rig: Rig) -> None:
    p = rig.process(journal="p")
    await p.save(1)
    await long_away(p)
    p.cut(1)
    assert await p.stack.delete("t")
    assert await rig.ids(0) == await rig.ids(2) == []
    p.heal()
    await p.rest()
    assert await rig.everywhere() == [[]] * 3


@scenario
async def test_of_two_replicas_the_one_that_is_back_takes_what_the_other_cannot(rig: Rig) -> None:
    rig.stores = rig.stores[:2]
    p = rig.process(journal="p")
    await p.save(1)
    await p.save(2, thread="u")
    await long_away(p)
    p.cut(1)
    await p.save(7, thread="u")
    assert list((await rig.marks(0, "u")).values()) == [7, 2]
    with pytest.raises(QuorumError):
        await p.save(3)  # it missed something of that one: alone, it cannot tell whether that is deleted meanwhile
    p.heal()
    await p.rest()
    assert await rig.everywhere("u") == [[7, 2]] * 2
    assert await rig.everywhere() == [[3, 1, 1]] * 2


@scenario
async def test_where_all_are_needed_nobody_waits_for_the_pause_to_end(rig: Rig) -> None:
    p = rig.process(journal="p", write_quorum="all")
    await p.save(1)
    p.cut(0)
    for mark in range(2, 6):
        await p.rest(40.0)
        with pytest.raises(QuorumError):
            await p.save(mark)
    assert p.stack._replicas[0].is_resting
    p.heal()
    await p.save(7)
    assert await rig.everywhere() == [[7, 5, 4, 3, 2, 1]] * 3


@scenario
async def test_nobody_waits_for_one_that_hangs_where_another_is_back(rig: Rig) -> None:
    p = rig.process(journal="p")
    await p.save(1, thread="u")
    await long_away(p)
    p.links[1].partition(FaultKind.HANG)
    began = p.clock.clock().monotonic()
    await p.save(7, thread="u")
    assert p.clock.clock().monotonic() - began < 1.0
    assert list((await rig.marks(0, "u")).values()) == [7, 1]
    p.heal()
    await p.rest()
    assert await rig.everywhere("u") == [[7, 1]] * 3


@scenario
async def test_two_that_are_away_are_not_asked_for_every_write_more_than_before(rig: Rig) -> None:
    p = rig.process(journal="p")
    await p.save(1)
    await long_away(p)
    p.cut(0, 1)
    for mark in (2, 3):
        with pytest.raises(QuorumError):
            await p.save(mark)
    before = [len(link.calls) for link in p.links]
    for mark in range(10):
        with pytest.raises(QuorumError, match=r"r0: is being left alone; a hint waits for it"):
            await p.save(mark)
    asked = [len(link.calls) - count for link, count in zip(p.links, before, strict=True)]
    assert asked[0] <= 10 and asked[1] <= 10, "one look each, and no write"
    p.heal()
    await p.rest()
    found = await rig.everywhere()
    assert found == [found[0]] * 3


@scenario
async def test_one_that_comes_back_empty_has_no_vote(rig: Rig) -> None:
    p = rig.process(journal="p")
    await p.save(1)
    await long_away(p)
    rig.wipe(0)
    p.cut(1)
    with pytest.raises(QuorumError, match="r0"):
        await p.save(7)
    p.heal()
    await p.rest()
    assert (await p.stack.scrub()).unreachable == set()
    assert await rig.everywhere() == [[7, 1, 1]] * 3


@scenario
async def test_one_that_missed_more_than_is_kept_has_no_vote_for_what_it_did_not_get(rig: Rig) -> None:
    p = rig.process(journal="p", hint_window="4KiB")
    await p.save(1)
    p.cut(0)
    for mark in range(2, 12):
        await p.rest(40.0)
        await p.save(mark)
    assert p.stack._replicas[0].marked
    p.heal()
    await p.rest(0.1)  # nobody has looked at it since
    p.cut(1)
    with pytest.raises(QuorumError):
        await p.save(12)
    p.heal()
    await p.rest()
    assert await rig.everywhere() == [list(range(12, 0, -1))] * 3


class Refusing(ReferenceCheckpointer):
    """Refuses one state, for good."""

    async def save(self, state: AgentState, thread_id: str, *rest: Any, **more: Any) -> str:
        if state.total_tokens_used == 7:
            raise NotImplementedError("not that one")
        return await super().save(state, thread_id, *rest, **more)


@scenario
async def test_one_that_refuses_a_write_when_it_is_back_has_no_vote_for_it(rig: Rig) -> None:
    rig.stores[0] = Refusing()
    p = rig.process(journal="p")
    await p.save(1)
    await long_away(p)
    p.cut(1)
    with pytest.raises(QuorumError):
        await p.save(7)


@scenario
async def test_who_is_asked_late_takes_nothing_that_is_older_than_what_he_has(rig: Rig) -> None:
    p = rig.process(journal="p")
    await p.save(1, "draft", "u")
    await long_away(p)
    p.links[0].inject(on("load", thread_id=f"{RESERVED}heartbeat").slow(4.0))
    p.links[1].inject(on("save", thread_id="u").slow(3.0))
    p.links[2].inject(on("save", thread_id="u").slow(3.0))
    await p.save(7, "draft", "u")  # r0 is looked at because the others take so long; they come first all the same
    replica = p.stack._replicas[0]
    replica.flusher.worked()
    await p.save(8, "draft", "u")
    await p.rest()
    assert await rig.everywhere("u") == [[8]] * 3
    assert p.saved(0, "u")[-1] == "draft"


@scenario
async def test_replicas_are_restarted_one_after_the_other(rig: Rig) -> None:
    p = rig.process(journal="p")
    await p.save(0)
    for number in (0, 1, 2, 0, 1, 2):
        p.cut(number)
        for mark in range(10):
            await p.save(mark, f"{number}-{mark}")
            await p.rest(2.0)
        p.heal()
    await p.rest()
    first = await rig.ids(0)
    assert len(first) == 31
    assert [await rig.ids(number) for number in range(3)] == [first] * 3
