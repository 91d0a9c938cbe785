"""One promise of replication each, in the shortest story that can break it. ``mutants.py`` breaks them on purpose."""

from __future__ import annotations

import asyncio
from random import Random

import pytest

from locus_tiered.core.errors import BackendError, CorruptCheckpoint, QuorumError
from locus_tiered.core.operations import Load
from locus_tiered.testing.damage import damaged
from locus_tiered.testing.fault_script import on
from locus_tiered.testing.simulation_history import state_of
from tests.replication.rig import DAY, OwnLatest, Rig, scenario

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
    for ask in (q.load(), q.load(name), q.stack.exists("t"), q.stack.exists("t", name)):
        with pytest.raises(BackendError):
            await ask
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
    rig.stores[2].stored.clear()
    rig.stores[2]._arrivals.clear()
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
    rig.stores[2].stored.clear()
    rig.stores[2]._arrivals.clear()
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
        rig.stores[number].stored.clear()
        rig.stores[number]._arrivals.clear()
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
