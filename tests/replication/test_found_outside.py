"""What somebody found who tried to break replication from outside, each in its shortest story."""

from __future__ import annotations

import asyncio
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
from locus.core.protocols import CheckpointerCapabilities

from locus_tiered.core.errors import JournalError, LocusTieredError, QuorumError
from locus_tiered.core.ids import RESERVED
from locus_tiered.layers.tombstones import TOMBSTONES
from locus_tiered.testing.fault_script import on
from locus_tiered.testing.reference import ReferenceCheckpointer
from locus_tiered.testing.simulation_world import inline_journals
from locus_tiered.testing.virtual_time import VirtualTimeLoop, run_virtual
from tests.replication.rig import DAY, OwnLatest, Rig, scenario


def now() -> float:
    return asyncio.get_running_loop().time()


# -- hints -----------------------------------------------------------------------------------------------------------


@scenario
async def test_hints_without_a_place_outlive_close(rig: Rig) -> None:
    p = rig.process()
    await p.save(1)
    await p.rest()
    p.cut(2)
    new = await p.save(2)
    await p.stack.close()
    assert p.stack.hints_waiting[2]() == 1
    p.heal()
    assert await p.load() == 2
    await p.rest()
    assert (await rig.ids(2))[0] == new
    assert p.stack.hints_waiting[2]() == 0
    await p.stack.close()


def test_an_event_loop_sees_hints_that_another_one_has_left_since() -> None:
    with (
        tempfile.TemporaryDirectory() as place,
        inline_journals(),
        asyncio.Runner(loop_factory=VirtualTimeLoop) as one,
        asyncio.Runner(loop_factory=VirtualTimeLoop) as other,
    ):
        rig = Rig(Path(place))
        p = rig.process()
        one.run(p.save(1, "draft"))
        assert other.run(p.load("draft")) == 1
        p.links[0].inject(on("save", thread_id="t", times=None).fail_before())
        one.run(p.save(2, "draft"))
        one.run(p.save(3, "plan"))
        p.links[0].clear()
        p.links[0].inject(on("save", thread_id="t", times=None).slow(600))  # the hints are on their way
        for link in p.links[1:]:
            link.inject(on("load", thread_id="t", times=None).slow(5))
        other.run(p.rest())
        assert [other.run(p.load("draft")) for _ in range(3)] == [2, 2, 2]
        assert other.run(p.load()) == 3
        other.run(p.stack.close())
        one.run(p.stack.close())


@scenario
async def test_hints_that_cannot_be_opened_keep_nobody_from_the_other_replicas(rig: Rig) -> None:
    p = rig.process(journal="p")
    old = await p.save(1)
    await p.stack.close()
    hints = rig.place / "q"
    hints.mkdir()
    q = rig.process(journal="q")
    place = q.stack._replicas[2]._path
    assert place is not None
    place.write_text("no directory")
    assert await q.load() == 1
    new = await q.save(2)
    assert await q.stack.list_checkpoints("t") == [new, old]
    assert not q.stack._replicas[2].is_believed
    q.cut(0, 1)
    with pytest.raises(QuorumError) as raised:
        await q.load("nothing")
    assert raised.value.known["r2"] == "not believed: its hints cannot be opened"
    q.heal()
    await q.stack.close()
    place.unlink()
    assert await q.load() == 2
    assert q.stack._replicas[2].is_believed


@scenario
async def test_where_no_hints_can_be_opened_it_says_so(rig: Rig) -> None:
    (rig.place / "q").write_text("no directory")
    q = rig.process(journal="q")
    with pytest.raises(JournalError, match="journal"):
        await q.load()


@scenario
async def test_a_replica_whose_hints_were_damaged_is_not_believed_until_all_was_compared(rig: Rig) -> None:
    p = rig.process(journal="p")
    await p.save(1, "draft")
    await p.rest()
    p.cut(0)
    await p.save(2, "draft")
    await p.save(3, thread="other")
    await p.stack.close()
    for file in (rig.place / "p").rglob("*"):
        if file.is_file() and file.stat().st_size > 4096:
            kept = file.read_bytes()[:100]
            file.write_bytes(kept + b"\x5a" * (file.stat().st_size - 100))
    q = rig.process(journal="p")
    q.links[1].inject(on("load", times=None).slow(0.5))
    q.links[2].inject(on("load", times=None).slow(0.5))
    assert await q.load("draft") == 2
    assert sorted(await q.stack.list_threads()) == ["other", "t"]
    assert q.stack._replicas[0].has_holes
    assert (await q.stack.scrub()).in_step
    assert q.stack._replicas[0].is_believed
    assert await rig.marks(0) == {"draft": 2}


@scenario
async def test_a_hint_that_was_away_for_days_brings_back_nothing_though_all_was_compared_since(rig: Rig) -> None:
    p, q = rig.process(journal="p"), rig.process(journal="q")
    await p.save(1)
    p.cut(2)
    gone = await p.save(2)
    await p.forget()
    await q.stack.delete("t", gone)
    await q.rest()
    assert (await q.stack.scrub()).in_step  # which is when tombstones are tidied
    await q.rest(3 * DAY)
    r = rig.process(journal="p")
    assert await r.load() == 1
    await r.rest()
    assert [gone in await rig.ids(number) for number in range(3)] == [False] * 3


# -- event loops -----------------------------------------------------------------------------------------------------


def test_what_a_loop_left_undone_is_done_for_the_next_ones_deletes() -> None:
    with tempfile.TemporaryDirectory() as place, inline_journals():
        rig = Rig(Path(place), store=OwnLatest)
        p = rig.process(journal="p")

        async def first() -> None:
            name = (await p.save(1), await p.save(2))[1]
            await p.stack.delete("t", name)  # and ends at once, without close()

        async def second() -> None:
            kept = await p.save(3)
            await p.stack.delete("t", await p.save(4))
            await p.rest()
            assert [await rig.latest(number) for number in range(3)] == [3, 3, 3]
            assert (await rig.ids(0))[0] == kept
            await p.stack.close()

        run_virtual(first)
        run_virtual(second)


@scenario
async def test_closing_after_a_delete_takes_no_second(rig: Rig) -> None:
    p = rig.process(journal="p")
    name = (await p.save(1), await p.save(2))[1]
    await p.stack.delete("t", name)
    began = now()
    await p.stack.close()
    assert now() - began < 0.5


@scenario
async def test_closing_is_bounded_where_a_replica_hangs_after_the_last_delete(rig: Rig) -> None:
    p = rig.process(journal="p")
    name = (await p.save(1), await p.save(2))[1]
    await p.stack.delete("t", name)
    p.links[2].inject(on("list_checkpoints", times=None).hang(), on("load", times=None).hang())
    began = now()
    await p.stack.close()
    assert now() - began < 30
    p.links[2].clear()
    p.links[2].release()


@scenario
async def test_one_task_looks_at_many_threads_while_a_replica_is_away(rig: Rig) -> None:
    p = rig.process(journal="p")
    p.cut(2)
    for number in range(100):
        thread = f"t{number}"
        await p.stack.delete(thread, await p.save(1, "draft", thread))
    await p.rest()
    assert len(asyncio.all_tasks()) < 20
    p.heal()
    await p.rest(600)
    assert [len(await rig.ids(2, f"t{number}")) for number in range(100)] == [0] * 100


# -- answers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("read", ["one", "quorum", "hedged"])
def test_an_error_tells_of_every_replica_each_time(read: str) -> None:
    @scenario
    async def story(rig: Rig) -> None:
        p = rig.process(read=read)
        await p.save(1)
        p.cut(1, 2)
        for _ in range(3):
            with pytest.raises(QuorumError) as raised:
                await p.load("nothing")
            assert sorted(raised.value.known) == ["r0", "r1", "r2"]
            assert raised.value.known["r0"].startswith("has not got it")
            assert all("failed" in raised.value.known[name] for name in ("r1", "r2"))

    story()


@scenario
async def test_a_delete_that_too_few_can_note_is_told_as_that_delete(rig: Rig) -> None:
    p = rig.process()
    await p.save(1)
    for number in (1, 2):
        p.links[number].inject(on("save", times=None).fail_before())
    with pytest.raises(QuorumError, match="delete of thread 't' was not acknowledged") as raised:
        await p.stack.delete("t")
    assert raised.value.operation == "delete"
    assert sorted(raised.value.known) == ["r0", "r1", "r2"]


@scenario
async def test_metadata_is_that_of_what_a_load_answers(rig: Rig) -> None:
    p = rig.process(journal="p")
    await p.save(1, "draft")
    await p.save(2, "gone")
    await p.rest()
    p.cut(0)
    await p.save(3, "draft")
    await p.save(4, "new")
    await p.stack.delete("t", "gone")
    await p.stack.close()
    q = rig.process(journal="p")
    q.links[0].inject(on("save", thread_id="t", times=None).slow(600))  # the hints are on their way
    for number in (1, 2):
        q.links[number].inject(on("get_metadata", times=None).fail_before())
    rows = [await q.stack.get_metadata("t", name) for name in ("draft", "new", "gone")]
    assert [row and row["metadata"] for row in rows] == [{"mark": 3}, {"mark": 4}, None]


@scenario
async def test_an_error_names_no_thread_of_the_stacks_own(rig: Rig) -> None:
    p = rig.process(journal="p")
    await p.save(1)
    await p.save(2, "draft")
    await p.rest()
    p.cut(2)
    await p.save(3)
    p.heal()
    for link in p.links[:2]:
        for operation in ("exists", "load", "list_checkpoints"):
            link.inject(on(operation, thread_id=TOMBSTONES, times=None).fail_before())
    told = []
    for work in (p.stack.scrub(), p.stack.scrub(threads=["t"]), p.stack.deliver(), p.stack.delete("t")):
        try:
            await work
        except LocusTieredError as error:
            told.append(str(error))
    assert any("the notes of what was deleted needs 2 replicas" in each for each in told)
    assert not [each for each in told if RESERVED in each]


@scenario
async def test_an_error_tells_which_replicas_can_never_answer(rig: Rig) -> None:
    class Plain(ReferenceCheckpointer):
        @property
        def capabilities(self) -> CheckpointerCapabilities:
            return replace(super().capabilities, metadata_query=False)

    rig.stores[0], rig.stores[1] = Plain(), Plain()
    p = rig.process()
    saved = await p.save(1)
    await p.rest()
    p.links[2].inject(on("get_metadata", times=None).fail_before())
    with pytest.raises(QuorumError) as caught:
        await p.stack.get_metadata("t", saved)
    lacking = "has no metadata_query"
    assert caught.value.known == {"r0": lacking, "r1": lacking, "r2": "failed (InjectedFault)"}
