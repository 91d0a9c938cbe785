"""The far store is away: what is acknowledged then, what is answered, and how it heals."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from locus_tiered import (
    BoundedMemoryCheckpointer,
    GuardedCheckpointer,
    RetryingCheckpointer,
    Tier,
    TieredCheckpointer,
    WriteBehindCheckpointer,
)
from locus_tiered.core.errors import BackendError, JournalFull
from locus_tiered.core.signals import Signal, listen
from locus_tiered.testing import FaultyCheckpointer
from locus_tiered.testing.fault_script import FaultKind, on
from locus_tiered.testing.services import seaweedfs
from tests.behind.kit import (
    Hands,
    behind,
    crashed,
    eventually,
    far_words,
    nothing_pending,
    said,
    stack_words,
    step,
    words,
)
from tests.integration.agents import agent_on, calls
from tests.integration.agents import said as conversation


async def test_journal_goes_on_to_max_pending_then_waits_then_says_full_and_heals_by_itself(tmp_path: Path) -> None:
    hands, far, heard = Hands(), FaultyCheckpointer(), []
    stack = behind(far, tmp_path / "j", ack="journal", clock=hands.clock, max_pending="48KiB", drain_timeout=5.0)
    far.partition()
    with listen(lambda signal: heard.append(signal.kind)):
        for number in range(4):
            await stack.save(said(f"{number} " + "x" * 9000), f"t{number}")
        assert stack.pending().rows == 4 and "journal.waiting" not in heard
        full = asyncio.create_task(stack.save(said("x" * 15_000), "t9"))
        async with hands.turning():
            begun = hands.now
            with pytest.raises(JournalFull, match="not acknowledged; what was acknowledged before is kept"):
                await full
            assert 4.5 <= hands.now - begun <= 7
    assert "journal.waiting" in heard
    assert await stack.save(said("small"), "t0"), "what fits is still taken"
    far.heal()
    async with hands.turning():  # nobody calls: it heals by itself
        await eventually(lambda: stack.pending().rows == 0)
    assert nothing_pending(stack)
    for number in range(1, 4):
        assert (await far_words(far, f"t{number}"))[0].startswith(f"{number} ")
    assert await far_words(far, "t9") == []
    await stack.close()


async def test_journal_goes_on_to_max_lag_and_a_waiting_save_is_let_in_when_it_heals(tmp_path: Path) -> None:
    hands, far = Hands(), FaultyCheckpointer()
    stack = behind(far, tmp_path / "j", ack="journal", clock=hands.clock, linger=5.0, max_lag=20.0, drain_timeout=10.0)
    far.partition()
    await stack.save(said("one"), "t")
    hands.turn(19)
    await stack.save(said("two"), "t")
    hands.turn(2)
    waiting = asyncio.create_task(stack.save(said("three"), "u"))
    await eventually(lambda: stack._lanes.running == 1)
    async with hands.turning():
        await asyncio.sleep(0.01)
        assert not waiting.done()
        far.heal()
        await waiting
        await eventually(lambda: stack.pending().rows == 0)
    assert await far_words(far, "t") == ["one", "two"] and await far_words(far, "u") == ["three"]
    await stack.close()


async def test_at_a_bound_a_save_is_written_through_when_only_the_backlog_is_stuck(tmp_path: Path) -> None:
    hands, far = Hands(), FaultyCheckpointer()
    stack = behind(far, tmp_path / "j", ack="journal", clock=hands.clock, max_lag=20.0, linger=1.0, drain_timeout=3.0)
    far.inject(on("save", thread_id="stuck", times=None).fail_before())
    await stack.save(said("stuck"), "stuck")
    hands.turn(30)
    async with hands.turning():
        await stack.save(said("through"), "t")
    assert await far_words(far, "t") == ["through"]
    far.clear()
    async with hands.turning():
        await stack.close()
    assert await far_words(far, "stuck") == ["stuck"]


@pytest.mark.parametrize("kind", [FaultKind.FAIL_BEFORE, FaultKind.FAIL_AFTER])
async def test_turn_and_fail_raises_and_keeps_the_steps(kind: FaultKind, tmp_path: Path) -> None:
    far = FaultyCheckpointer()
    async with behind(far, tmp_path / "j") as stack:
        assert await stack.load("t") is None
        far.partition(kind)
        state, name = step([], "step")
        await stack.save(state, "t", name)
        with pytest.raises(BackendError, match="not acknowledged"):
            await stack.save(said("end"), "t")
        assert words(await stack.load("t", name)) == "step"
        far.heal()
        await stack.save(said("end again"), "t")
        assert words(await stack.load("t")) == "end again"
        assert await stack.delete("t", name)


async def test_turn_and_journal_keeps_the_save_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    far, heard = FaultyCheckpointer(), list[Signal]()
    async with behind(far, tmp_path / "j", on_outage="journal") as stack:
        await stack.save(said("before"), "t")
        far.partition()
        with listen(heard.append):
            name = await stack.save(said("end"), "t")
        [degraded] = [signal for signal in heard if signal.kind == "save.degraded"]
        assert degraded.thread_id == "t" and degraded.facts["error"] == "BackendError"
        assert "kept in the journal, on this disk only" in caplog.text
        assert words(await stack.load("t")) == "end" and words(await stack.load("t", name)) == "end"
        assert stack.pending().rows == 1
        far.heal()
        assert await stack_words(stack, "t") == ["before", "end"]
        await stack.flush()
        assert nothing_pending(stack) and await far_words(far, "t") == ["before", "end"]


async def test_turn_and_journal_after_a_crash_in_the_outage(tmp_path: Path) -> None:
    far = FaultyCheckpointer()
    stack = behind(far, tmp_path / "j", on_outage="journal", drain_timeout=0.1)
    far.partition(FaultKind.FAIL_AFTER)  # it arrives, and nobody hears of it
    await stack.save(said("end"), "t")
    copy = crashed(tmp_path / "j")
    far.heal()
    async with behind(far, copy) as survivor:
        assert await stack_words(survivor, "t") == ["end"]
        await survivor.flush()
    assert await far_words(far, "t") == ["end"]
    await stack.close()


async def test_a_save_that_is_refused_for_good_is_not_kept_in_the_journal(tmp_path: Path) -> None:
    far = FaultyCheckpointer()
    async with behind(far, tmp_path / "j", on_outage="journal") as stack:
        far.inject(on("save").fail_before(ValueError("no")))
        with pytest.raises(BackendError):
            await stack.save(said("end"), "t")
        assert stack.pending().rows == 0


async def test_reads_in_an_outage(tmp_path: Path) -> None:
    far = FaultyCheckpointer()
    async with behind(far, tmp_path / "j", ack="journal") as stack:
        old = await stack.save(said("old"), "t")
        await stack.flush()
        new = await stack.save(said("new"), "t")
        far.partition()
        heard = list[Signal]()
        with listen(heard.append):
            assert words(await stack.load("t")) == "new", "this process acknowledged it"
        assert [signal.kind for signal in heard] == ["answer.stale"]
        assert words(await stack.load("t", new)) == "new" and await stack.exists("t", new)
        for call in (
            stack.load("t", old),
            stack.load("other"),
            stack.list_checkpoints("t"),
            stack.list_threads(),
            stack.exists("t", old),
        ):
            with pytest.raises(BackendError):
                await call
        assert await stack.delete("t", new) is True
        with pytest.raises(BackendError):
            await stack.load("t")
        far.heal()
        assert words(await stack.load("t")) == "old"


async def test_reads_in_an_outage_of_a_stack_that_may_be_stale(tmp_path: Path) -> None:
    far = FaultyCheckpointer()
    stack = TieredCheckpointer(
        BoundedMemoryCheckpointer(),
        Tier(far, write="behind", ack="journal"),
        journal=tmp_path / "j",
        on_outage="stale",
    )
    async with stack:
        name = await stack.save(said("old"), "t")
        assert isinstance(stack.home, WriteBehindCheckpointer)
        await stack.home.flush()
        far.partition()
        assert words(await stack.load("t")) == "old" and stack.stats.stale == 1
        assert words(await stack.load("t", name)) == "old"
        await stack.save(said("new"), "t")
        assert words(await stack.load("t")) == "new"
        with pytest.raises(BackendError):
            await stack.load("never seen")
        far.heal()
        assert words(await stack.load("t")) == "new"
    assert await far_words(far, "t") == ["old", "new"]


async def test_a_thread_that_was_never_looked_at_can_be_saved_to_without_home(tmp_path: Path) -> None:
    far = FaultyCheckpointer()
    await far.save(said("from before"), "t", "old")
    far.partition()
    async with behind(far, tmp_path / "j", ack="journal") as stack:
        ids = [await stack.save(said(f"{number}"), "t") for number in range(3)]
        assert ids == sorted(ids)
        assert words(await stack.load("t")) == "2"
        far.heal()
    assert await far_words(far, "t") == ["from before", "0", "1", "2"]


def test_run_sync_in_an_outage_is_bounded_and_nothing_is_lost(tmp_path: Path) -> None:
    far = FaultyCheckpointer()
    stack = TieredCheckpointer(
        BoundedMemoryCheckpointer(),
        behind(far, tmp_path / "j", ack="journal", drain_timeout=0.3),
        latest="exclusive",
    )
    agent = agent_on(stack, *calls("one"), "first", *calls("two"), "second")
    assert agent.run_sync("a", thread_id="t").text == "first"
    far.partition()
    begun = time.monotonic()
    assert agent.run_sync("b", thread_id="t").text == "second"
    assert time.monotonic() - begun < 10
    assert isinstance(stack.inner, WriteBehindCheckpointer) and stack.inner.pending().rows == 1
    far.heal()

    async def look() -> list[str]:
        async with stack:
            return conversation(await stack.load("t"))

    assert asyncio.run(look()) == ["a", "first", "b", "second"]
    assert asyncio.run(far_words(far, "t"))[-1:] != [] and nothing_pending(stack.inner)


def test_a_real_server_is_killed_in_mid_conversation_and_comes_back(tmp_path: Path) -> None:
    with seaweedfs() as server:
        home = server.backend()
        leg = RetryingCheckpointer(
            GuardedCheckpointer(home, timeout=2.0, breaker=None), attempts=2, deadline=2.0, base=0.01
        )
        stack = TieredCheckpointer(
            BoundedMemoryCheckpointer(),
            behind(leg, tmp_path / "j", ack="journal", drain_timeout=0.5),
            latest="exclusive",
        )
        wb = stack.inner
        assert isinstance(wb, WriteBehindCheckpointer)
        agent = agent_on(stack, *calls("one"), "first", *calls("two"), "second", *calls("three"), "third", "fourth")
        assert agent.run_sync("a", thread_id="t").text == "first"
        server.kill()
        assert agent.run_sync("b", thread_id="t").text == "second"  # closes, and reports what stays
        assert wb.pending().rows == 1 and wb.pending().last_error is not None

        async def meanwhile() -> None:
            await agent.arun("c", thread_id="t")
            assert conversation(await stack.load("t"))[-1] == "third"
            await asyncio.to_thread(server.restart)
            await eventually(lambda: wb.pending().rows == 0, within=30)
            await agent.arun("d", thread_id="t")
            await stack.close()

        asyncio.run(meanwhile())
        assert nothing_pending(wb)
        bare = server.backend(bucket=home.bucket)

        async def look() -> list[list[str]]:
            names = sorted(await bare.list_checkpoints("t", 100))
            found = [conversation(await bare.load("t", name)) for name in names]
            assert conversation(await bare.load("t")) == found[-1], "its own newest is right too"
            await bare.close()
            return found

        assert [each[-1] for each in asyncio.run(look())] == ["first", "second", "third", "fourth"]
