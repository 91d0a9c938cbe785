"""Read your writes, cancellation, and several event loops on one object or one journal."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from random import Random

import pytest

from locus_tiered import WriteBehindCheckpointer
from locus_tiered.core.errors import LocusTieredError
from locus_tiered.core.stamp import is_stamp
from locus_tiered.testing import FaultyCheckpointer
from locus_tiered.testing.fault_script import FaultKind, on
from locus_tiered.testing.reference import ReferenceCheckpointer
from tests.behind.kit import behind, eventually, far_words, nothing_pending, said, stack_words, step, words


@pytest.mark.parametrize("ack", ["turn", "journal"])
@pytest.mark.parametrize("seed", range(3))
async def test_everybody_reads_what_he_wrote_whatever_is_flushed_failed_and_cancelled_beside_him(
    ack: str, seed: int, tmp_path: Path
) -> None:
    rates = {FaultKind.FAIL_BEFORE: 0.05, FaultKind.FAIL_AFTER: 0.05}
    far = FaultyCheckpointer(seed=seed, rates=rates)
    stack = behind(far, tmp_path / "j", ack=ack, linger=0.02, on_outage="journal")

    async def writer(thread: str) -> list[str]:
        random, kept = Random(f"{seed} {thread}"), dict[str, str]()
        for number in range(25):
            text = f"{thread} {number}"
            state, name = (said(text), None) if random.random() < 0.4 else step([], text)
            if random.random() < 0.15:
                name = f"name-{random.randint(0, 2)}"
                state = said(text)
            task = asyncio.create_task(stack.save(state, thread, name))
            if random.random() < 0.15:
                for _ in range(random.randint(0, 6)):
                    await asyncio.sleep(0)
                task.cancel()
            try:
                saved = await task
                kept.pop(saved, None)
                kept[saved] = text
            except asyncio.CancelledError:
                # Unacknowledged: it may have taken effect. Settle it, whichever way it went.
                await stack._lanes.settle(5)
                for each in await _patiently(lambda: stack.list_checkpoints(thread, 100)):
                    found = words(await _patiently(lambda each=each: stack.load(thread, each)))
                    if found == text:
                        kept.pop(each, None)
                        kept[each] = text
            except LocusTieredError:
                await _patiently(lambda: stack.flush(thread))
                for each in await _patiently(lambda: stack.list_checkpoints(thread, 100)):
                    if words(await _patiently(lambda each=each: stack.load(thread, each))) == text:
                        kept.pop(each, None)
                        kept[each] = text
            if kept and random.random() < 0.4:
                victim = random.choice(list(kept))
                try:
                    await stack.delete(thread, victim)
                except LocusTieredError:
                    await _patiently(lambda victim=victim: stack.delete(thread, victim))
                del kept[victim]
            if random.random() < 0.5:
                assert await _patiently(lambda: stack.list_checkpoints(thread, 100)) == list(kept)[::-1]
            if kept and random.random() < 0.5:
                last = list(kept)[-1]
                assert words(await _patiently(lambda: stack.load(thread))) == kept[last]
                assert words(await _patiently(lambda last=last: stack.load(thread, last))) == kept[last]
        return list(kept.values())

    async with asyncio.timeout(50):
        expected = dict(zip("abcdef", await asyncio.gather(*map(writer, "abcdef")), strict=True))
        far.clear()
        await stack.flush()
        assert stack.pending().rows == stack.pending().dead_letters == 0
        for thread, texts in expected.items():
            assert await stack_words(stack, thread) == texts
            assert await far_words(far.inner, thread) == texts
    await stack.close()


async def _patiently(call):  # type: ignore[no-untyped-def]
    while True:
        try:
            return await call()
        except LocusTieredError:
            await asyncio.sleep(0)


async def test_a_cancelled_save_is_finished_in_the_background_and_the_next_one_comes_after_it(tmp_path: Path) -> None:
    far = FaultyCheckpointer()
    async with behind(far, tmp_path / "j") as stack:
        far.inject(on("save", thread_id="t").hang())
        first = asyncio.create_task(stack.save(said("first"), "t"))
        await far.until_hung()
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        second = asyncio.create_task(stack.save(said("second"), "t"))
        other = await stack.save(said("other"), "u")
        assert is_stamp(other) and not second.done()
        far.release()
        await second
        assert await far_words(far, "t") == ["first", "second"]
        assert far.max_in_flight("t") == 1


async def test_a_cancelled_flush_leaves_at_once_and_the_sending_goes_on(tmp_path: Path) -> None:
    far = FaultyCheckpointer()
    async with behind(far, tmp_path / "j", ack="journal") as stack:
        await stack.save(said("one"), "t")
        far.inject(on("save", thread_id="t").hang())
        flush = asyncio.create_task(stack.flush())
        await far.until_hung()
        flush.cancel()
        with pytest.raises(asyncio.CancelledError):
            await flush
        far.release()
        await eventually(lambda: stack.pending().rows == 0)
        assert await far_words(far, "t") == ["one"]


async def test_a_delete_whose_save_is_in_flight_reaches_the_far_store_after_it(tmp_path: Path) -> None:
    far = FaultyCheckpointer()
    async with behind(far, tmp_path / "j", linger=0.0) as stack:
        await stack.load("t")
        far.inject(on("save", thread_id="t").hang())
        state, name = step([], "step")
        await stack.save(state, "t", name)
        await far.until_hung()
        assert await stack.delete("t", name)
        far.release()  # whatever asks the far store waits for the call that is in flight
        assert await stack.load("t", name) is None and await stack.list_checkpoints("t") == []
        await stack.flush()
        assert [call.operation for call in far.calls if call.operation in ("save", "delete")] == ["save", "delete"]
        assert await far_words(far, "t") == [] and nothing_pending(stack)


async def test_a_thread_delete_with_a_row_in_flight(tmp_path: Path) -> None:
    far = FaultyCheckpointer()
    async with behind(far, tmp_path / "j", ack="journal") as stack:
        await stack.save(said("one"), "t")
        await stack.save(said("two"), "t")
        far.inject(on("save", thread_id="t").hang())
        flush = asyncio.create_task(stack.flush())
        await far.until_hung()
        assert await stack.delete("t")
        await stack.save(said("three"), "t")
        far.release()
        await flush
        await stack.flush()
        assert await far_words(far, "t") == await stack_words(stack, "t") == ["three"]


def test_two_event_loops_in_threads_on_one_object(tmp_path: Path) -> None:
    far = ReferenceCheckpointer()
    stack = WriteBehindCheckpointer(far, journal=tmp_path / "j", ack="journal")
    failures: list[BaseException] = []

    async def work(who: str) -> None:
        random = Random(who)
        mine: list[str] = []
        for number in range(30):
            text = f"{who} {number}"
            name = await stack.save(said(text), who)
            await stack.save(said(text), "shared", f"{who}-{number}")
            assert words(await stack.load(who, name)) == text
            assert words(await stack.load("shared", f"{who}-{number}")) == text
            mine.append(text)
            if random.random() < 0.3:
                assert await stack.delete(who, name)
                assert await stack.delete("shared", f"{who}-{number}")
                mine.pop()
            if random.random() < 0.2:
                await stack.flush()
            if random.random() < 0.1:
                await stack.close()
        assert await stack_words(stack, who) == mine
        await stack.close()

    def run(who: str) -> None:
        try:
            asyncio.run(work(who))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(who,)) for who in ("ann", "bob", "cat")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(50)
    assert failures == []

    async def look() -> None:
        async with stack:
            await stack.flush()
            shared = await stack_words(stack, "shared")
            each = [await stack_words(stack, who) for who in ("ann", "bob", "cat")]
            assert sorted(filter(None, shared)) == sorted(text for texts in each for text in texts if text)
            assert sorted(await far_words(far, "shared")) == sorted(shared)  # type: ignore[type-var]
            assert nothing_pending(stack)

    asyncio.run(look())


async def test_two_layers_over_one_journal_share_what_is_pending(tmp_path: Path) -> None:
    far = ReferenceCheckpointer()
    one, two = (behind(far, tmp_path / "j", ack="journal") for _ in range(2))
    name = await one.save(said("one"), "t")
    assert words(await two.load("t")) == "one"
    assert await two.delete("t", name)
    assert await one.load("t") is None
    await one.save(said("two"), "t")
    await one.close()
    assert await far_words(far, "t") == ["two"]
    await two.save(said("three"), "t")
    assert words(await two.load("t")) == "three"
    await two.close()
    assert await far_words(far, "t") == ["two", "three"]


async def test_use_after_close_and_close_after_close(tmp_path: Path) -> None:
    far = ReferenceCheckpointer()
    stack = behind(far, tmp_path / "j", ack="journal")
    await stack.close()
    assert stack.pending().opened is False
    for number in range(3):
        await stack.save(said(f"{number}"), "t")
        await asyncio.gather(stack.close(), stack.close())
        assert await far_words(far, "t") == [f"{each}" for each in range(number + 1)]
        assert words(await stack.load("t")) == f"{number}"
    await stack.close()
    assert not list((tmp_path / "j").glob("*/journal.db"))
