"""What a hostile reading of write-behind found stays a test."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest

from locus_tiered import Layer, Operation, WriteBehindCheckpointer
from locus_tiered.core.errors import BackendError, JournalError
from locus_tiered.core.operations import Delete, ListCheckpoints, Save
from locus_tiered.core.signals import Signal, listen
from locus_tiered.testing import FaultyCheckpointer
from locus_tiered.testing.fault_script import on
from locus_tiered.testing.reference import ReferenceCheckpointer
from tests.behind.kit import (
    Hands,
    behind,
    crashed,
    eventually,
    far_words,
    journal_threads,
    nothing_pending,
    said,
    stack_words,
    step,
    tombstones,
    words,
)

R = TypeVar("R")


class Between(Layer):
    """Does something of its own just before it passes on an operation."""

    def __init__(self, inner: Any, when: Callable[[Operation[Any]], bool], what: Callable[[], Any]) -> None:
        super().__init__(inner)
        self.when, self.what = when, what

    async def handle(self, operation: Operation[R]) -> R:
        if self.when(operation):
            self.when = lambda _: False
            await self.what()
        return await self.inner.handle(operation)


async def test_a_save_that_failed_on_its_way_and_was_deleted_does_not_come_back_after_a_crash(tmp_path: Path) -> None:
    far = FaultyCheckpointer()
    async with behind(far, tmp_path / "a", ack="journal") as stack:
        await stack.save(said("kept"), "t")
        await stack.flush()
        far.inject(on("save").fail_before())
        await stack.save(said("draft"), "t", "draft")
        with pytest.raises(BackendError):
            await stack.flush()
        assert await stack.delete("t", "draft")
        copy = crashed(tmp_path / "a")
    async with behind(far.inner, copy, ack="journal") as survivor:
        assert await stack_words(survivor, "t") == ["kept"]
        await survivor.flush()
        assert await stack_words(survivor, "t") == ["kept"]
    assert await far_words(far.inner, "t") == ["kept"]


@pytest.mark.parametrize("exclusive", [False, True])
async def test_a_name_that_another_stack_saved_meanwhile_does_not_outlive_its_delete(
    exclusive: bool, tmp_path: Path
) -> None:
    far = ReferenceCheckpointer()
    async with (
        behind(far, tmp_path / "a", ack="journal", exclusive=exclusive) as one,
        behind(far, tmp_path / "b", ack="far") as two,
    ):
        await one.load("t")
        await two.save(said("theirs"), "t", "draft")
        await one.save(said("ours"), "t", "draft")
        assert await one.delete("t", "draft")
        await one.flush()
        assert await two.load("t", "draft") is None
        assert await far.load("t", "draft") is None


async def test_what_another_process_deleted_by_its_name_is_not_replayed(tmp_path: Path) -> None:
    far = FaultyCheckpointer()
    async with behind(far, tmp_path / "a", ack="journal") as one:
        far.inject(on("save", thread_id="t").fail_after())  # it arrives, and the answer is lost
        await one.save(said("draft"), "t", "draft")
        with pytest.raises(BackendError):
            await one.flush()
        copy = crashed(tmp_path / "a")
    async with behind(far.inner, tmp_path / "b", ack="journal") as other:
        assert await other.delete("t", "draft")
        await other.flush()
    async with behind(far.inner, copy, ack="journal") as survivor:
        assert await survivor.load("t", "draft") is None
        await survivor.flush()
    assert await far_words(far.inner, "t") == []


async def test_an_own_name_that_is_deleted_again_leaves_a_tombstone_but_an_agents_step_does_not(tmp_path: Path) -> None:
    far = ReferenceCheckpointer()
    async with behind(far, tmp_path / "a", ack="turn") as stack:
        state, name = step([], "step")
        await stack.save(state, "t", name)
        await stack.flush()
        assert await stack.delete("t", name)
        await stack.flush()
        assert await tombstones(far) == 0
        await stack.save(said("named"), "t", "draft")
        assert await stack.delete("t", "draft")
        await stack.flush()
        assert await tombstones(far) == 1
        assert await far_words(far, "t") == []


async def test_a_tombstone_never_goes_back_in_time(tmp_path: Path) -> None:
    far = FaultyCheckpointer()
    async with (
        behind(far, tmp_path / "a", ack="journal") as late,
        behind(far, tmp_path / "b", ack="journal") as crashing,
    ):
        await crashing.load("t")
        await late.save(said("first"), "t")
        await late.flush()
        assert await late.delete("t")  # is sent last
        await crashing.save(said("second"), "t")  # never sent
        copy = crashed(tmp_path / "b")
        async with behind(far, tmp_path / "c", ack="turn") as third:
            await third.save(said("third"), "t")
            assert await third.delete("t")
        await late.flush()
        async with behind(far, copy, ack="journal") as survivor:
            assert await stack_words(survivor, "t") == []
            await survivor.flush()
        assert await far_words(far, "t") == []
        await crashing.flush()
        assert await far_words(far, "t") == []


async def test_a_thread_deleted_elsewhere_between_our_question_and_our_sending_stays_deleted(tmp_path: Path) -> None:
    far = ReferenceCheckpointer()
    async with behind(far, tmp_path / "b", ack="turn") as other:

        async def delete() -> None:
            await other.delete("t")

        racing = Between(far, lambda op: isinstance(op, Save) and op.thread_id == "t", delete)
        async with behind(racing, tmp_path / "a", ack="journal") as stack:
            await stack.save(said("too late"), "t")
            await stack.flush()
            assert await stack.load("t") is None
    assert await far_words(far, "t") == []


async def test_a_thread_deleted_while_a_row_of_it_fails_on_its_way_stays_deleted(tmp_path: Path) -> None:
    hands, far = Hands(), FaultyCheckpointer()
    async with behind(far, tmp_path / "a", clock=hands.clock, exclusive=True, linger=1.0) as stack:
        await stack.save(said("first"), "t")
        far.inject(on("save", thread_id="t").hang(), on("save", thread_id="t").fail_before())
        state, name = step([], "step")
        await stack.save(state, "t", name)
        hands.turn(2)
        await far.until_hung()
        delete = asyncio.create_task(stack.delete("t"))
        await eventually(lambda: stack._lanes.running == 1)
        far.release()
        assert await delete
        assert stack.pending().rows == 0
        await stack.flush()
        assert await far_words(far, "t") == []


@pytest.mark.parametrize("exclusive", [False, True])
async def test_a_delete_of_a_thread_in_an_outage_loses_nothing_that_is_pending(tmp_path: Path, exclusive: bool) -> None:
    far = FaultyCheckpointer()
    async with behind(far, tmp_path / "a", exclusive=exclusive) as stack:
        await stack.save(said("end"), "t")
        state, name = step([], "step")
        await stack.save(state, "t", name)
        far.partition()
        with pytest.raises(BackendError):
            await stack.delete("t")
        far.heal()
        assert await stack_words(stack, "t") == ["end", "step"]
        assert await stack.delete("t") and await stack.load("t") is None
        assert nothing_pending(stack)


@pytest.mark.parametrize("exclusive", [False, True])
async def test_a_delete_of_a_thread_that_fails_half_way_goes_on(tmp_path: Path, exclusive: bool) -> None:
    far = FaultyCheckpointer()
    async with behind(far, tmp_path / "a", exclusive=exclusive) as stack:
        await stack.save(said("end"), "t")
        state, name = step([], "step")
        await stack.save(state, "t", name)
        far.inject(on("delete", thread_id="t").fail_before())
        with pytest.raises(BackendError) as raised:
            await stack.delete("t")
        assert "the delete is kept in the journal, and goes on" in raised.value.__notes__[0]
        assert await stack_words(stack, "t") == []
        await stack.save(said("after"), "t")
        assert await stack_words(stack, "t") == ["after"]
    assert await far_words(far, "t") == ["after"]


async def test_a_crash_over_the_delete_of_a_thread_leaves_no_older_version_of_what_was_pending(tmp_path: Path) -> None:
    store = ReferenceCheckpointer()
    far = FaultyCheckpointer(store)
    async with behind(far, tmp_path / "a", ack="journal", drain_timeout=0.1) as stack:
        await stack.save(said("older"), "t", "draft")
        await stack.flush()
        await stack.save(said("newer"), "t", "draft")
        first = crashed(tmp_path / "a", "first")
        far.partition()
    far = FaultyCheckpointer(store)
    async with behind(far, first, ack="turn", drain_timeout=0.1) as other:
        far.inject(on("save", thread_id="t", times=None).fail_before())
        far.inject(on("delete", thread_id="t", times=None).fail_before())  # the note of it is there by then
        with pytest.raises(BackendError):
            await other.delete("t")
        second = crashed(first, "second")
        far.partition()
    async with behind(store, second, ack="turn") as third:
        assert await stack_words(third, "t") == []
        await third.flush()
        assert await far_words(store, "t") == []


async def test_in_an_outage_a_step_is_not_taken_for_the_newest_when_the_end_of_its_turn_is_in_the_far_store(
    tmp_path: Path,
) -> None:
    far = FaultyCheckpointer()
    async with behind(far, tmp_path / "a") as stack:
        state, name = step([], "step")
        await stack.save(state, "t", name)
        await stack.save(said("end"), "t")
        far.partition()
        with pytest.raises(BackendError):
            await stack.load("t")
        far.heal()
        assert words(await stack.load("t")) == "end"


async def test_a_delete_reaches_what_another_process_saved_again_after_ours_was_acknowledged(tmp_path: Path) -> None:
    far = ReferenceCheckpointer()
    async with behind(far, tmp_path / "a", ack="journal") as one, behind(far, tmp_path / "b", ack="far") as two:
        await one.save(said("first"), "t", "draft")
        await one.flush()
        assert await one.delete("t")  # pending
        await two.save(said("again"), "t", "draft")
        assert await one.exists("t", "draft")
        assert await one.delete("t", "draft")
        assert not await one.delete("t", "draft")
        await one.flush()
        assert await two.load("t", "draft") is None


async def test_two_layers_over_one_journal_never_send_one_thread_at_once(tmp_path: Path) -> None:
    far = FaultyCheckpointer()
    async with behind(far, tmp_path / "a", ack="journal") as one, behind(far, tmp_path / "a", ack="journal") as two:
        for number in range(20):
            await one.save(said(f"{number}"), "t", f"name-{number}")
            if number % 2:
                assert await two.delete("t", f"name-{number}")
            await asyncio.gather(one.flush(), two.flush())
        assert far.max_in_flight("t") == 1
        assert await far_words(far, "t") == [f"{number}" for number in range(0, 20, 2)]
        assert nothing_pending(one)


async def test_rows_are_not_sent_twice_when_two_layers_flush_at_once(tmp_path: Path) -> None:
    far = FaultyCheckpointer()
    async with behind(far, tmp_path / "a", ack="journal") as one, behind(far, tmp_path / "a", ack="journal") as two:
        far.inject(on("save", thread_id="t").hang())
        await one.save(said("x"), "t", "x")
        flushes = [asyncio.create_task(layer.flush()) for layer in (one, two)]
        await far.until_hung()
        assert await one.delete("t", "x")
        far.release()
        await asyncio.gather(*flushes)
        await one.flush()
        assert far.count("save", "t") == 1
        assert await far_words(far, "t") == []


async def test_close_in_a_loop_that_never_used_the_stack_sends_and_lets_go_of_what_a_gone_loop_left(
    tmp_path: Path,
) -> None:
    far, before = ReferenceCheckpointer(), journal_threads()
    stack = behind(far, tmp_path / "a", ack="journal")
    await asyncio.to_thread(lambda: asyncio.run(stack.save(said("one"), "t")))
    assert len(journal_threads() - before) == 1
    await stack.close()
    assert await far_words(far, "t") == ["one"]
    await eventually(lambda: not journal_threads() - before)
    assert not list((tmp_path / "a").glob("*/journal.db"))


async def test_close_in_an_outage_is_bounded_and_what_it_left_is_sent_by_the_next_use(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    hands, far = Hands(), FaultyCheckpointer()
    stack = behind(far, tmp_path / "a", ack="journal", clock=hands.clock, drain_timeout=7.0)
    await stack.save(said("one"), "t")
    far.partition()
    async with hands.turning(0.1):
        begun = hands.now
        await stack.close()
        tries = len(far.calls)
        assert hands.now - begun >= 5
        assert "1 operations still to be sent (InjectedFault)" in caplog.text
        assert stack.pending().rows == 1
        await stack.recover()
        await stack.close()
        assert len(far.calls) - tries < tries, "it has been failing for longer already: one try"
        far.heal()
        await stack.load("other")
        await eventually(lambda: stack.pending().rows == 0)
        assert await far_words(far, "t") == ["one"]
        await stack.close()


async def test_a_call_that_outlives_close_still_gets_its_answer(tmp_path: Path) -> None:
    far = FaultyCheckpointer()
    stack = behind(far, tmp_path / "a", ack="journal")
    await stack.save(said("one"), "t")
    await stack.flush()
    far.inject(on("list_checkpoints", thread_id="t").hang())
    read = asyncio.create_task(stack.list_checkpoints("t"))
    await far.until_hung()
    await stack.save(said("two"), "u")
    await stack.close()
    far.release()
    assert len(await read) == 1
    assert words(await stack.load("u")) == "two"
    assert await stack.save(said("three"), "u")
    await stack.close()
    assert await far_words(far, "u") == ["two", "three"]


async def test_saves_that_begin_while_the_stack_closes_are_kept(tmp_path: Path) -> None:
    far = FaultyCheckpointer()
    stack = behind(far, tmp_path / "a", ack="journal")
    for round_ in range(10):
        saves = [asyncio.create_task(stack.save(said(f"{round_}-{number}"), f"t{number}")) for number in range(8)]
        closing = asyncio.create_task(stack.close())
        await asyncio.gather(*saves, closing)
    await stack.close()
    for number in range(8):
        assert await far_words(far, f"t{number}") == [f"{round_}-{number}" for round_ in range(10)]


async def test_many_saves_at_once_do_not_run_past_the_bound_together(tmp_path: Path) -> None:
    hands, far = Hands(), FaultyCheckpointer()
    far.partition()
    stack = behind(far, tmp_path / "a", ack="journal", max_pending="64KiB", drain_timeout=1.0, clock=hands.clock)
    most = 0

    def measure(signal: Signal) -> None:
        nonlocal most
        most = max(most, stack.pending().bytes)

    with listen(measure):
        async with hands.turning():
            results = await asyncio.gather(
                *(stack.save(said("x" * 10_000), f"t{number}") for number in range(30)), return_exceptions=True
            )
    assert most <= 64 * 1024
    kept = [result for result in results if isinstance(result, str)]
    assert 4 <= len(kept) <= 6
    assert all(isinstance(result, JournalError) for result in results if not isinstance(result, str))
    far.heal()
    async with hands.turning():
        await stack.close()
    assert len(await far.list_threads()) - 1 <= len(kept)


async def test_the_deadline_and_the_tenants_of_a_caller_do_not_bind_what_is_sent_later(tmp_path: Path) -> None:
    from locus_tiered.core import deadline

    hands, far = Hands(), FaultyCheckpointer()

    class Bound(Layer):
        async def handle(self, operation: Operation[R]) -> R:
            left = deadline.remaining(hands.clock)
            if left is not None and left <= 0 and isinstance(operation, ListCheckpoints | Save | Delete):
                raise BackendError("the deadline is over", member="far", operation=operation.name, temporary=True)
            return await self.inner.handle(operation)

    async with behind(Bound(far), tmp_path / "a", ack="journal", clock=hands.clock) as stack:
        token = deadline.begin(5.0, hands.clock)
        await stack.save(said("one"), "t")
        deadline.end(token)
        hands.turn(30)
        await eventually(lambda: stack.pending().rows == 0)
        assert await far_words(far, "t") == ["one"]


def test_event_loops_that_are_gone_are_not_kept(tmp_path: Path) -> None:
    import gc
    import weakref

    far = ReferenceCheckpointer()
    stack = WriteBehindCheckpointer(far, journal=tmp_path / "a", ack="journal")
    loops: list[weakref.ref[asyncio.AbstractEventLoop]] = []

    async def use() -> None:
        loops.append(weakref.ref(asyncio.get_running_loop()))
        await stack.save(said("x"), "t")

    for _ in range(4):
        asyncio.run(use())
    asyncio.run(stack.close())
    gc.collect()
    assert [loop() for loop in loops[:-1]] == [None] * 3


async def test_a_thread_that_a_process_with_a_fast_clock_deleted_can_be_saved_to_again(tmp_path: Path) -> None:
    far, fast = ReferenceCheckpointer(), Hands(ahead=3600.0)
    slow = Hands()
    async with (
        behind(far, tmp_path / "a", ack="turn", clock=fast.clock) as deleting,
        behind(far, tmp_path / "b", ack="journal", clock=slow.clock) as stack,
    ):
        await deleting.save(said("old"), "t")
        assert await deleting.delete("t")
        assert await stack.load("t") is None
        await stack.save(said("new"), "t")
        await stack.flush()
        assert await stack_words(stack, "t") == await far_words(far, "t") == ["new"]


async def test_what_a_stack_left_when_it_closed_in_an_outage_is_still_its_own_in_the_next_loop(tmp_path: Path) -> None:
    far = FaultyCheckpointer()
    stack = behind(far, tmp_path / "a", ack="journal", drain_timeout=0.1)
    await stack.load("t")
    far.partition()
    await stack.save(said("one"), "t")
    await stack.close()
    name = await stack.save(said("two"), "t")
    assert words(await stack.load("t")) == "two" and words(await stack.load("t", name)) == "two"
    assert await stack.delete("t", name)
    assert words(await stack.load("t")) == "one"
    await stack.close()
    far.heal()
    await stack.close()
    assert nothing_pending(stack) and await far_words(far, "t") == ["one"]
