"""One promise of replication each, in the shortest story that can break it. ``mutants.py`` breaks them on purpose."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Coroutine
from random import Random
from typing import Any
from unittest.mock import patch

import pytest

from locus_tiered.core.errors import BackendError, CorruptCheckpoint, QuorumError
from locus_tiered.core.ids import RESERVED
from locus_tiered.core.operations import Load
from locus_tiered.core.signals import Signal, listen
from locus_tiered.layers.tombstones import TOMBSTONES
from locus_tiered.testing.damage import damaged
from locus_tiered.testing.fault_script import FaultKind, on
from locus_tiered.testing.simulation_history import state_of
from tests.replication.rig import DAY, OwnLatest, Process, Rig, scenario

# -- writing ----------------------------------------------------------------------------------------------------------


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


# -- who is believed --------------------------------------------------------------------------------------------------


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


# -- deletes ----------------------------------------------------------------------------------------------------------


@scenario
async def test_a_deleted_thread_stays_deleted_though_a_replica_missed_it(rig: Rig) -> None:
    p = rig.process()
    await p.save(1)
    await p.rest()
    p.cut(2)
    assert await p.stack.delete("t")
    await p.forget()
    assert await rig.ids(2)
    q = rig.process()
    assert (await q.stack.scrub()).in_step
    assert [await rig.ids(number) for number in range(3)] == [[]] * 3
    assert await q.load() is None


@scenario
async def test_a_deleted_checkpoint_stays_deleted_though_a_replica_missed_it(rig: Rig) -> None:
    p = rig.process()
    await p.save(1, "keep")
    await p.save(2, "drop")
    await p.rest()
    p.cut(2)
    assert await p.stack.delete("t", "drop")
    await p.forget()
    q = rig.process()
    assert (await q.stack.scrub()).in_step
    assert [await rig.ids(number) for number in range(3)] == [["keep"]] * 3
    assert [await rig.latest(number) for number in range(3)] == [1] * 3


@scenario
async def test_a_delete_is_above_what_it_deletes_whatever_the_clocks_say(rig: Rig) -> None:
    p = rig.process(ahead=3600.0)
    await p.save(1)
    await p.rest()
    q = rig.process()
    q.cut(2)
    assert await q.stack.delete("t")
    await q.forget()
    r = rig.process()
    assert (await r.stack.scrub()).in_step
    assert [await rig.ids(number) for number in range(3)] == [[]] * 3


@scenario
async def test_who_looks_first_saves_above_a_delete_whatever_the_clocks_say(rig: Rig) -> None:
    p, q = rig.process(ahead=3600.0), rig.process()
    await q.save(1)
    await p.stack.delete("t")
    assert await q.load() is None
    q.cut(2)
    name = await q.save(2)
    await q.forget()
    r = rig.process()
    assert (await r.stack.scrub()).in_step
    assert [await rig.ids(number) for number in range(3)] == [[name]] * 3


@scenario
async def test_a_tombstone_never_goes_back(rig: Rig) -> None:
    p, q = rig.process(ahead=3600.0), rig.process()
    await p.save(1, "draft")
    await p.rest()
    p.cut(2)
    await p.stack.delete("t")
    await p.forget()
    await q.stack.delete("t")  # once more, by a clock that is behind: its own stamp is below that of the state
    rig.stores[2].stored.setdefault("t", {})
    r = rig.process()
    assert (await r.stack.scrub()).in_step
    assert [await rig.ids(number) for number in range(3)] == [[]] * 3


@scenario
async def test_a_read_by_quorum_brings_back_nothing_that_was_deleted(rig: Rig) -> None:
    p = rig.process()
    name = await p.save(1)
    await p.rest()
    p.cut(2)
    await p.stack.delete("t")
    await p.forget()
    q = rig.process(read="quorum")
    q.cut(0)  # whom it asks are one that has heard of the delete and the one that has not
    for _ in range(4):
        assert await q.load() is None
        assert await q.load(name) is None
        assert not await q.stack.exists("t", name)
        assert await q.stack.list_checkpoints("t") == []
    assert await rig.ids(0) == await rig.ids(1) == []


@scenario
async def test_steps_of_a_turn_are_not_brought_back(rig: Rig) -> None:
    p = rig.process()
    step = "0123456789abcdef0123456789abcdef"
    await p.save(1, step, turn=(step,))
    name = await p.save(2)
    await p.rest()
    p.cut(2)
    await p.stack.delete("t", step)
    await p.forget()
    q = rig.process()
    q.links[2].inject(on("load", thread_id="t").fail_before())  # nobody can tell what it is: nothing is decided
    await q.stack.scrub()
    assert step not in await rig.ids(0)
    await q.rest()
    assert (await q.stack.scrub()).in_step
    assert [await rig.ids(number) for number in range(3)] == [[name]] * 3


@scenario
async def test_a_hint_of_a_former_life_brings_back_nothing_that_was_deleted(rig: Rig) -> None:
    p = rig.process(journal="p")
    await p.save(1)
    p.cut(2)
    await p.save(2)
    await p.forget()
    q = rig.process()
    assert await q.stack.delete("t")
    assert (await q.stack.scrub()).in_step
    r = rig.process(journal="p")
    assert await r.load() is None
    await r.rest()
    assert [await rig.ids(number) for number in range(3)] == [[]] * 3


@scenario
async def test_what_only_a_replica_has_that_was_away_is_put_aside_there(rig: Rig) -> None:
    p = rig.process()
    await p.save(1)
    await p.rest()
    p.cut(0, 1)
    with pytest.raises(QuorumError):
        await p.save(2, "alone")
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


# -- mending ----------------------------------------------------------------------------------------------------------


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
async def test_the_newest_version_of_a_name_wins(rig: Rig) -> None:
    p = rig.process()
    await p.save(1, "draft")
    await p.rest()
    p.cut(2)
    await p.save(2, "draft")
    await p.forget()
    q = rig.process()
    assert (await q.stack.scrub()).in_step
    assert [await rig.marks(number) for number in range(3)] == [{"draft": 2}] * 3


@scenario
async def test_mending_never_replaces_a_version_that_is_newer(rig: Rig) -> None:
    p = rig.process()
    await p.save(1, "draft")
    old = await p.stack.handle(Load("t", "draft"))
    assert old is not None
    await p.save(2, "draft")
    await p.rest()
    for replica in p.stack._replicas:
        assert not await replica.mend("t", old)
        assert not await replica.remove("t", "t", old.entry)
    assert [await rig.marks(number) for number in range(3)] == [{"draft": 2}] * 3


@scenario
async def test_only_intact_copies_are_copied_and_damaged_ones_are_replaced(rig: Rig) -> None:
    p = rig.process()
    await p.save(1, "draft")
    await p.rest()
    state = await rig.stores[0].load("t", "draft")
    assert state is not None
    await rig.stores[0].save(damaged(state, Random(1)), "t", "draft")
    await rig.stores[2].delete("t", "draft")
    q = rig.process()
    report = await q.stack.scrub(deep=True)
    assert report.in_step
    for number in range(3):
        kept = await rig.stores[number].load("t", "draft")
        assert kept is not None
        assert kept.messages == state_of(1).messages
        assert kept.total_tokens_used == 1
    assert await q.load() == 1


@scenario
async def test_a_damaged_copy_that_is_read_is_replaced(rig: Rig) -> None:
    p = rig.process()
    name = await p.save(1)
    await p.rest()
    state = await rig.stores[0].load("t", name)
    assert state is not None
    await rig.stores[0].save(state.model_copy(update={"iteration": 7}), "t", name)
    assert await p.load(name) == 1
    await p.rest()
    mended = await rig.stores[0].load("t", name)
    assert mended is not None
    assert mended.iteration == 0


@scenario
async def test_an_envelope_that_is_damaged_is_replaced(rig: Rig) -> None:
    p = rig.process()
    await p.save(1, "draft")
    await p.rest()
    state = await rig.stores[2].load("t", "draft")
    assert state is not None
    envelope = {**state.metadata["_locus_tiered"], "stamp": "nonsense"}
    await rig.stores[2].save(state.model_copy(update={"metadata": {"_locus_tiered": envelope}}), "t", "draft")
    with pytest.raises(CorruptCheckpoint):
        await p.stack.replicas[2].load("t")
    report = await p.stack.scrub()
    assert report.in_step
    assert report.mended
    assert await p.stack.replicas[2].load("t") == await p.stack.load("t")


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


def test_replicas_that_keep_a_latest_of_their_own_have_the_right_one_after_deletes() -> None:
    @scenario
    async def story(plain: Rig) -> None:
        rig = Rig(plain.place, store=OwnLatest)
        p = rig.process()
        await p.save(1, "first")
        await p.save(2, "second")
        await p.rest()
        await p.stack.delete("t", "second")
        await p.rest(5.0)
        assert [await rig.latest(number) for number in range(3)] == [1] * 3

    story()


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


@scenario
async def test_two_processes_that_start_on_empty_replicas_believe_them_all(rig: Rig) -> None:
    p, q = rig.process(), rig.process()
    await asyncio.gather(p.save(1, thread="a"), q.save(2, thread="b"))
    await q.rest(120.0)
    assert await q.load(thread="a") == 1
    await q.rest(2.0)
    for process in (p, q):
        assert [replica.is_believed for replica in process.stack._replicas] == [True] * 3


# -- found by the simulation ------------------------------------------------------------------------------------------


def two(story: Callable[[Rig], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    """A scenario over two replicas instead of three."""

    async def test(plain: Rig) -> None:
        await story(Rig(plain.place, replicas=2))

    functools.update_wrapper(test, story)
    return scenario(test)


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
async def test_a_newest_that_is_damaged_wherever_it_is_keeps_nobody_from_what_was_acknowledged(rig: Rig) -> None:
    p = rig.process()
    await p.save(1)
    await p.rest()
    p.cut(1, 2)
    with pytest.raises(QuorumError):
        await p.save(2, "alone")
    await p.forget()
    state = await rig.stores[0].load("t", "alone")
    assert state is not None
    await rig.stores[0].save(damaged(state, Random(1)), "t", "alone")
    for read in ("one", "quorum"):
        q = rig.process(read=read)
        assert await q.load() == 1
        report = await q.stack.scrub()
        assert not report.unreachable
        assert report.unmended
        assert await q.load() == 1


@scenario
async def test_nobody_stays_fenced_for_what_is_damaged_wherever_it_is(rig: Rig) -> None:
    p = rig.process()
    await p.save(1, "draft")
    await p.save(2)
    await p.rest()
    rig.wipe(2)
    for store in rig.stores[:2]:
        state = await store.load("t", "draft")
        assert state is not None
        await store.save(damaged(state, Random(1)), "t", "draft")
    q = rig.process()
    await q.load()
    report = await q.stack.scrub()
    assert not report.in_step
    await q.load()
    await q.rest(1.0)
    assert [replica.is_believed for replica in q.stack._replicas] == [True] * 3


@scenario
async def test_what_only_a_replica_has_that_was_away_is_deleted_when_it_is_damaged(rig: Rig) -> None:
    p = rig.process()
    await p.save(1)
    await p.rest()
    p.cut(0, 1)
    with pytest.raises(QuorumError):
        await p.save(2, "alone")
    await p.forget()
    state = await rig.stores[2].load("t", "alone")
    assert state is not None
    await rig.stores[2].save(damaged(state, Random(1)), "t", "alone")
    q = rig.process(ahead=8 * DAY)
    q.cut(2)
    await q.save(3)
    await q.forget()
    r = rig.process(ahead=8 * DAY)
    assert await r.load() == 3
    report = await r.stack.scrub()
    assert report.in_step
    assert report.damaged
    assert "alone" not in await rig.ids(2)
    assert [replica.is_believed for replica in r.stack._replicas] == [True] * 3


@two
async def test_a_delete_behind_its_slow_tombstone_has_a_hint_of_its_own(rig: Rig) -> None:
    p = rig.process(journal="p")
    await p.save(1)
    await p.rest()
    p.links[1].inject(on("save", thread_id=TOMBSTONES).hang())
    await p.stack.delete("t")
    assert await p.load() is None
    p.links[1].release()
    await p.rest()
    assert [await rig.ids(number) for number in range(2)] == [[], []]


@scenario
async def test_a_delete_covers_what_was_saved_above_it_while_it_was_under_way(rig: Rig) -> None:
    p, q = rig.process(), rig.process(ahead=3600.0)
    await p.save(1)
    await p.rest()
    await q.load()
    p.cut(0)
    q.cut(2)
    for link in p.links:
        link.inject(on("save", thread_id=TOMBSTONES).slow(1.0))
    deleting = asyncio.ensure_future(p.stack.delete("t"))
    await asyncio.sleep(0.5)
    await q.save(2)
    await deleting
    await p.forget()
    await q.forget()
    r = rig.process()
    assert (await r.stack.scrub()).in_step
    assert [await rig.ids(number) for number in range(3)] == [[]] * 3


@scenario
async def test_a_delete_of_a_name_covers_what_was_saved_above_it_while_it_was_under_way(rig: Rig) -> None:
    p, q = rig.process(), rig.process(ahead=3600.0)
    await p.save(1, "draft")
    await p.rest()
    await q.load()
    p.cut(0)
    q.cut(2)
    for link in p.links:
        link.inject(on("save", thread_id=TOMBSTONES).slow(1.0))
    deleting = asyncio.ensure_future(p.stack.delete("t", "draft"))
    await asyncio.sleep(0.5)
    await q.save(2, "draft")
    await deleting
    await p.forget()
    await q.forget()
    r = rig.process()
    assert (await r.stack.scrub()).in_step
    assert [await rig.ids(number) for number in range(3)] == [[]] * 3


@scenario
async def test_a_delete_looks_around_where_one_vote_is_enough(rig: Rig) -> None:
    p = rig.process(ahead=3600.0, write_quorum=1)
    await p.save(1)
    await p.rest()
    p.cut(1, 2)
    await p.save(2)
    await p.forget()
    q = rig.process(write_quorum=1)
    q.links[0].inject(on("list_checkpoints", thread_id="t", at=2).slow(1.0))  # another one votes first
    await q.stack.delete("t")
    await q.forget()
    r = rig.process(write_quorum=1)
    assert (await r.stack.scrub()).in_step
    assert [await rig.ids(number) for number in range(3)] == [[]] * 3


@scenario
async def test_a_process_is_not_told_of_what_it_has_deleted_by_a_replica_that_takes_its_time(rig: Rig) -> None:
    p = rig.process()
    await p.save(1, "draft")
    await p.save(2)
    await p.rest()
    p.links[2].inject(on("delete", thread_id="t").apply_late(answer="return"))
    await p.stack.delete("t", "draft")
    assert "draft" in await rig.ids(2)
    p.links[1].partition()  # the late one is asked
    assert not await p.stack.exists("t", "draft")
    assert await p.load("draft") is None
    assert await p.load() == 2
    p.heal()
    await p.links[2].land()


@scenario
async def test_who_has_found_a_tombstone_is_not_told_of_what_lies_below_it(rig: Rig) -> None:
    p = rig.process(journal="p")
    await p.save(1, "draft")
    await p.save(2)
    await p.rest()
    p.cut(2)
    await p.save(3, "draft")
    await p.save(4)
    q = rig.process()
    await q.load()
    q.cut(2)
    await q.stack.delete("t", "draft")
    await q.forget()
    p.links[2].heal()
    await p.rest(2.0)  # the hint is not sent: it was deleted meanwhile
    assert (await rig.marks(2))["draft"] == 1
    p.cut(0)
    assert await p.load("draft") is None
    assert not await p.stack.exists("t", "draft")
    assert "draft" not in await p.stack.list_checkpoints("t")


@scenario
async def test_what_was_read_is_not_mended_once_this_process_has_deleted_it(rig: Rig) -> None:
    step = "0123456789abcdef0123456789abcdef"
    p = rig.process(write_quorum=1, read="quorum")
    await p.save(1, step, turn=(step,))
    await p.rest()
    for store in rig.stores[1:]:
        await store.delete("t", step)
    p.links[1].inject(on("save", thread_id="t").slow(1.0))  # mended first, and slowly; the other one after it
    reading = asyncio.ensure_future(p.load())
    await asyncio.sleep(0.5)
    await p.stack.delete("t", step)
    await asyncio.wait([reading])  # it may not be able to tell
    reading.exception()
    assert [await rig.ids(number) for number in (0, 2)] == [[], []]


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
async def test_states_from_before_the_stack_are_copied_in_their_order(rig: Rig) -> None:
    for mark in (1, 2, 3):
        await rig.stores[0].save(state_of(mark), "t", f"old{mark}")
    p = rig.process()
    report = await p.stack.scrub()
    assert report.in_step
    assert report.deleted == 0
    assert [await rig.ids(number) for number in range(3)] == [["old3", "old2", "old1"]] * 3
    assert [await rig.latest(number) for number in range(3)] == [3] * 3
    for read in ("one", "quorum"):
        q = rig.process(read=read)
        assert await q.stack.list_checkpoints("t") == ["old3", "old2", "old1"]
        assert await q.load() == 3


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
async def test_a_copy_whose_place_nobody_can_tell_keeps_its_thread_from_nothing_if_no_other_replica_has_it(
    rig: Rig,
) -> None:
    p = rig.process()
    await p.save(1, "draft")
    await p.rest()
    p.cut(0, 1)
    with pytest.raises(QuorumError):
        await p.save(2, "alone")
    await p.forget()
    state = await rig.stores[2].load("t", "alone")
    assert state is not None
    envelope = {**state.metadata["_locus_tiered"], "stamp": "nonsense"}
    await rig.stores[2].save(state.model_copy(update={"metadata": {"_locus_tiered": envelope}}), "t", "alone")
    q = rig.process(journal="q")
    await q.load(thread="other")
    q.cut(2)
    names = [await q.save(3)]
    q.heal()
    await q.rest()
    names.append(await q.save(4))
    for _ in range(3):
        await q.load()
        await q.rest()
    assert set(await rig.ids(2)) == {*names, "draft"}
    assert (await q.stack.scrub()).in_step


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


class KeepsTheLatest(OwnLatest):
    """Forgets its copy of the newest with the whole thread only (as key-value adapters do)."""

    async def delete(self, thread_id: str, checkpoint_id: str | None = None) -> bool:
        if checkpoint_id is None:
            self.latest.pop(thread_id, None)
        return await super().delete(thread_id, checkpoint_id)


def test_nothing_is_left_of_a_deleted_thread_for_readers_without_this_library() -> None:
    @scenario
    async def story(plain: Rig) -> None:
        rig = Rig(plain.place, store=KeepsTheLatest)
        p = rig.process()
        await p.save(1)
        await p.save(2)
        await p.rest()
        p.cut(2)
        await p.stack.delete("t")
        await p.forget()
        assert await rig.latest(2) == 2
        q = rig.process()
        assert (await q.stack.scrub()).in_step
        assert [await rig.latest(number) for number in range(3)] == [None] * 3

    story()


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
async def test_a_damaged_tombstone_is_replaced_before_anything_is_compared(rig: Rig) -> None:
    p = rig.process()
    await p.save(1)
    await p.stack.delete("t")
    await p.rest()
    for name in await rig.ids(2, TOMBSTONES):
        state = await rig.stores[2].load(TOMBSTONES, name)
        assert state is not None
        await rig.stores[2].save(damaged(state, Random(1)), TOMBSTONES, name)
    q = rig.process(ahead=8 * DAY)
    q.cut(0)
    await q.save(2)
    await q.forget()
    r = rig.process(ahead=8 * DAY)
    assert await r.load() == 2
    assert not r.stack._replicas[0].is_believed
    assert (await r.stack.scrub()).in_step
    assert [await rig.ids(number) for number in range(3)] == [await rig.ids(1)] * 3


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
async def test_who_has_read_something_old_still_looks_at_the_newest_before_he_saves(rig: Rig) -> None:
    p, q = rig.process(ahead=3600.0), rig.process()
    await rig.process().save(1, "old")
    await p.save(2)
    await p.rest()
    assert await q.load("old") == 1
    await q.save(3)
    assert await rig.process().load() == 3


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


@scenario
async def test_a_delete_that_too_few_have_taken_rolls_forward(rig: Rig) -> None:
    p = rig.process(write_quorum="all")
    await p.save(1, "draft")
    await p.save(2, "other")
    await p.rest()
    for link in p.links:
        link.inject(on("delete", thread_id="t", times=None).fail_before())
    with pytest.raises(QuorumError):
        await p.stack.delete("t", "draft")
    await p.forget()
    q = rig.process()
    await q.stack.tombstones.among([("t", "draft")])
    assert (await q.stack.scrub(deep=True)).in_step
    assert [await rig.ids(number) for number in range(3)] == [["other"]] * 3


@scenario
async def test_a_damaged_listing_is_mended_though_the_others_have_missed_something_too(rig: Rig) -> None:
    p = rig.process(journal="p", hint_window="4KiB")
    await p.save(1, "draft")
    await p.rest()
    p.cut(0, 1)
    with pytest.raises(QuorumError):
        await p.save(2, "alone")
    state = await rig.stores[2].load("t", "alone")
    assert state is not None
    envelope = {**state.metadata["_locus_tiered"], "stamp": "nonsense"}
    await rig.stores[2].save(state.model_copy(update={"metadata": {"_locus_tiered": envelope}}), "t", "alone")
    for mark in range(3, 15):
        with pytest.raises(QuorumError):
            await p.save(mark, f"alone{mark}")
    assert p.stack._replicas[0].marked
    p.heal()
    await p.rest()
    for _ in range(3):
        await p.load(thread="other")
        await p.rest()
    assert (await p.stack.scrub()).in_step
    assert not any(replica.marked for replica in p.stack._replicas)


@scenario
async def test_a_tombstone_stays_above_one_that_is_laid_by_who_could_not_ask_for_it(rig: Rig) -> None:
    p = rig.process(ahead=3600.0)
    await p.save(1, "draft")
    await p.rest()
    p.cut(2)
    await p.stack.delete("t", "draft")
    await p.forget()
    q = rig.process()
    q.cut(2)
    nobody = QuorumError("nobody answers", known={}, member="q", operation="exists")
    with patch.object(q.stack.tombstones, "among", side_effect=nobody):
        await q.stack.delete("t", "draft")
    await q.forget()
    r = rig.process()
    assert (await r.stack.scrub()).in_step
    assert [await rig.ids(number) for number in range(3)] == [[]] * 3


@two
async def test_a_tombstone_that_is_damaged_wherever_it_is_keeps_nobody_from_comparing(rig: Rig) -> None:
    p = rig.process(write_quorum="all")
    await p.save(1)
    await p.rest()
    p.cut(0)
    with pytest.raises(QuorumError):
        await p.stack.delete("t")
    await p.forget()
    for name in await rig.ids(1, TOMBSTONES):
        state = await rig.stores[1].load(TOMBSTONES, name)
        assert state is not None
        await rig.stores[1].save(damaged(state, Random(1)), TOMBSTONES, name)
    q = rig.process(write_quorum="all", ahead=8 * DAY)
    q.cut(0)
    with pytest.raises(QuorumError):
        await q.save(2)
    await q.forget()
    r = rig.process(write_quorum="all", ahead=8 * DAY)
    await r.load(thread="other")
    assert not r.stack._replicas[0].is_believed
    for _ in range(2):
        report = await r.stack.scrub()
    assert report.in_step
    assert await rig.ids(0) == await rig.ids(1)


@scenario
async def test_that_too_few_can_be_asked_about_deletes_is_no_failure_of_who_gets_the_hint(rig: Rig) -> None:
    p = rig.process(journal="p")
    await p.save(1)
    await p.rest()
    p.cut(2)
    await p.save(2)
    p.heal()
    p.cut(0, 1)
    await p.rest(10.0)
    replica = p.stack._replicas[2]
    failures = replica.flusher.failures
    await p.rest(120.0)
    assert replica.rows("t")
    assert replica.flusher.failures == failures


@scenario
async def test_a_step_that_only_one_replica_still_has_is_deleted_though_nobody_can_read_what_it_was(rig: Rig) -> None:
    step = "1f" * 16
    p = rig.process()
    await p.save(1, step, turn=(step,))
    await p.save(2)
    await p.rest()
    state = await rig.stores[2].load("t", step)
    assert state is not None
    await rig.stores[2].save(damaged(state, Random(1)), "t", step)
    for store in rig.stores[:2]:
        await store.delete("t", step)
    p.cut(1)
    report = await p.stack.scrub(deep=True)
    assert not report.in_step
    assert step in await rig.ids(2)  # whoever cannot be asked may have it
    p.heal()
    await p.rest()
    report = await p.stack.scrub(deep=True)
    assert report.in_step
    assert await rig.ids(0) == await rig.ids(2)
