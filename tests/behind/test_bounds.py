"""Rows that can never be applied, and bounds on what is kept."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TypeVar

import pytest

from locus_tiered import Layer, Operation, TieredCheckpointer
from locus_tiered.core.errors import CheckpointTooLarge, JournalFull
from locus_tiered.core.operations import Save
from locus_tiered.layers import write_behind
from locus_tiered.testing import FaultyCheckpointer
from locus_tiered.testing.fault_script import on
from tests.behind.kit import Hands, behind, crashed, eventually, far_words, said, stack_words, step, words

R = TypeVar("R")

REFUSALS = {
    "by a table": ValueError("value too long"),
    "unknown to every table": RuntimeError("no such luck"),
}


class Picky(Layer):
    """Takes no state above so many bytes."""

    async def handle(self, operation: Operation[R]) -> R:
        checkpoint = operation.checkpoint if isinstance(operation, Save) else None
        if checkpoint is not None and len(await checkpoint.body.encode()) > 20_000:
            raise CheckpointTooLarge("too large for this store; it was not kept")
        return await self.inner.handle(operation)


@pytest.mark.parametrize("kind", list(REFUSALS))
async def test_a_row_that_is_refused_for_good_becomes_a_dead_letter_while_others_flow(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    hands, far = Hands(), FaultyCheckpointer()
    async with behind(far, tmp_path / "j", ack="journal", clock=hands.clock, max_lag=900.0) as stack:
        far.inject(on("save", thread_id="bad", times=None).fail_before(REFUSALS[kind]))
        name = await stack.save(said("refused"), "bad")
        others = 0
        async with hands.turning(0.2):
            while not stack.pending().dead_letters:
                await stack.save(said(f"{others}"), f"t{others % 7}")
                others += 1
                await eventually(lambda: stack.pending().rows <= 1)
            tries = far.count("save", "bad")
            assert tries == (5 if kind == "by a table" else 20)
            assert others >= 2
            await eventually(lambda: stack.pending().rows == 0)
        assert stack.pending().dead_letters == 1 and stack.pending().bytes == 0
        assert "can never be applied" in caplog.text and "retry_dead_letters" in caplog.text

        assert words(await stack.load("bad", name)) == words(await stack.load("bad")) == "refused"
        assert await stack.list_checkpoints("bad") == [name] and await stack.exists("bad", name)
        assert "bad" in await stack.list_threads()
        await stack.save(said("after"), "bad2")
        copy = crashed(tmp_path / "j")

        far.clear()
        assert await stack.retry_dead_letters() == 1
        await stack.flush()
        assert stack.pending().dead_letters == stack.pending().rows == 0
        assert await far_words(far, "bad") == ["refused"]

    async with behind(FaultyCheckpointer(), copy, ack="journal") as survivor:
        assert (await survivor.recover()).dead_letters == 1
        assert words(await survivor.load("bad", name)) == "refused"


async def test_a_row_that_a_member_refuses_by_its_size_is_dead_at_once_and_can_be_deleted(tmp_path: Path) -> None:
    far = FaultyCheckpointer()
    async with behind(Picky(far), tmp_path / "j", ack="journal") as stack:
        small = await stack.save(said("small"), "t")
        large = await stack.save(said("x" * 30_000), "t")
        after = await stack.save(said("after"), "t")
        await stack.flush()
        assert await far_words(far, "t") == ["small", "after"]
        assert await stack.list_checkpoints("t") == [after, large, small]
        assert stack.pending().dead_letters == 1
        assert await stack.delete("t", large)
        assert stack.pending().dead_letters == 0
        await stack.flush()
        assert await stack_words(stack, "t") == ["small", "after"]
        await stack.save(said("x" * 30_000), "t")
        await stack.flush()
        assert stack.pending().dead_letters == 1
        assert await stack.delete("t")
        assert stack.pending().dead_letters == 0 and await stack.load("t") is None


async def test_a_temporary_error_never_makes_a_dead_letter(tmp_path: Path) -> None:
    hands, far = Hands(), FaultyCheckpointer()
    async with behind(far, tmp_path / "j", ack="journal", clock=hands.clock, max_lag=1e9) as stack:
        far.inject(on("save", thread_id="t", times=60).fail_before())
        await stack.save(said("one"), "t")
        async with hands.turning(1.0):
            await eventually(lambda: stack.pending().rows == 0)
        assert stack.pending().dead_letters == 0 and await far_words(far, "t") == ["one"]


async def test_an_outage_that_looks_permanent_makes_no_dead_letter(tmp_path: Path) -> None:
    hands, far = Hands(), FaultyCheckpointer()
    async with behind(far, tmp_path / "j", ack="journal", clock=hands.clock, max_lag=1e9) as stack:
        await stack.load("t")
        await stack.save(said("one"), "t")
        far.inject(on(times=None).fail_before(PermissionError("no credentials")))
        async with hands.turning(1.0):
            await eventually(lambda: far.count() > 60)
            assert stack.pending().dead_letters == 0 and stack.pending().rows == 1
            far.clear()
            await eventually(lambda: stack.pending().rows == 0)
        assert await far_words(far, "t") == ["one"]


async def test_a_state_larger_than_the_journal_is_written_through(tmp_path: Path) -> None:
    far = FaultyCheckpointer()
    async with behind(far, tmp_path / "j", ack="journal", max_pending="16KiB") as stack:
        await stack.save(said("x" * 40_000), "t")
        assert stack.pending().rows == 0 and len(await far_words(far, "t")) == 1
        far.partition()
        with pytest.raises(JournalFull):
            await stack.save(said("x" * 40_000), "t")
        far.heal()
        assert len(await stack_words(stack, "t")) == 1


async def test_rows_are_bounded_in_number_dead_ones_included(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(write_behind, "_MOST_ROWS", 6)
    hands, far = Hands(), FaultyCheckpointer()
    async with behind(
        Picky(far), tmp_path / "j", ack="journal", clock=hands.clock, drain_timeout=1.0, exclusive=True
    ) as stack:
        for number in range(3):
            await stack.save(said("x" * 30_000), f"dead{number}")
        await stack.flush()
        far.partition()
        for number in range(3):
            await stack.save(said(f"{number}"), f"t{number}")
        assert (stack.pending().rows, stack.pending().dead_letters) == (3, 3)
        async with hands.turning():
            with pytest.raises(JournalFull):
                await stack.save(said("one too many"), "t9")
        far.heal()
        await stack.flush()


async def test_the_lag_of_steps_that_linger_makes_nobody_wait(tmp_path: Path) -> None:
    hands, far = Hands(), FaultyCheckpointer()
    async with behind(far, tmp_path / "j", clock=hands.clock, linger=30.0, max_lag=60.0) as stack:
        turn: list[str] = []
        for number in range(12):  # a turn of four minutes
            state, name = step(turn, f"{number}")
            await stack.save(state, "t", name)
            hands.turn(20)
            await eventually(lambda: (stack.pending().oldest_age or 0) <= 40)
        assert words(await stack.load("t")) == "11"
        await stack.save(said("end"), "t")
        for name in turn:
            assert await stack.delete("t", name)
        await stack.flush()
        assert await far_words(far, "t") == ["end"]


async def test_heads_of_many_rows_cost_little_and_bodies_stay_on_the_disk(tmp_path: Path) -> None:
    far = FaultyCheckpointer()
    far.partition()
    stack = TieredCheckpointer(behind(far, tmp_path / "j", ack="journal", drain_timeout=0.1), latest="exclusive")
    layer = stack.home
    body = "x" * 60_000
    await asyncio.gather(*(stack.save(said(body), f"t{number}") for number in range(200)))
    import gc

    held = sum(len(each) for each in gc.get_objects() if type(each) is bytes and len(each) > 50_000)
    assert layer.pending().rows == 200 and layer.pending().bytes > 200 * 60_000  # type: ignore[attr-defined]
    assert held < 20 * 60_000
    await stack.close()
