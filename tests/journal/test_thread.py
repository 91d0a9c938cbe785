"""The journal as coroutines see it: group commit, cancellation, several event loops, coming and going."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from random import Random

import pytest

from locus_tiered.core.clock import SYSTEM, Clock
from locus_tiered.core.errors import JournalError
from locus_tiered.stores.journal import Journal, Pending, key_of
from locus_tiered.testing.disk import Disk
from tests.behind.kit import journal_threads
from tests.journal.parts import HOME, append, body, indexed, journal_in, on, quick, row, seats

# -- commits in groups -------------------------------------------------------------------------------


async def test_who_waits_at_the_same_time_shares_a_commit(tmp_path):
    with Disk() as disk:
        async with journal_in(tmp_path, connecting=on(disk)) as journal:
            before = disk.count("sync", "-wal")
            rows = await asyncio.gather(*(append(journal, number, 6_000) for number in range(1, 65)))
            assert disk.count("sync", "-wal") - before <= 4
            assert indexed(journal) == list(range(1, 65)), "in the order in which they were asked for"
            before = disk.count("sync", "-wal")
            await asyncio.gather(
                journal.drop(rows[:10]),
                journal.mark_attempted(rows[10:20]),
                *(journal.bury(each, "Refused") for each in rows[20:25]),
                *(append(journal, number) for number in range(100, 110)),
            )
            assert disk.count("sync", "-wal") - before <= 3
    async with journal_in(tmp_path) as journal:
        assert sorted(indexed(journal)) == [*range(11, 65), *range(100, 110)]
        assert journal.pending().dead_letters == 5
        assert sum(each.attempted for each in journal.index.all()) == 10


async def test_a_lone_writer_has_one_sync_per_commit(tmp_path):
    with Disk() as disk:
        async with journal_in(tmp_path, connecting=on(disk)) as journal:
            before = disk.count("sync", "-wal")
            for number in range(1, 11):
                await append(journal, number)
            assert disk.count("sync", "-wal") - before == 10


async def test_a_reader_sees_what_was_asked_for_before(tmp_path):
    async with journal_in(tmp_path, connecting=quick) as journal:
        rows = [row(number) for number in range(1, 30)]
        writes = [asyncio.ensure_future(journal.append(each, {}, body(1))) for each in rows]
        await asyncio.sleep(0)
        found = await asyncio.gather(*(journal.checkpoint(each) for each in rows))
        assert all(found)
        assert all(each.done() for each in writes)


async def test_what_a_cancelled_caller_asked_for_is_kept_and_noted(tmp_path):
    async with journal_in(tmp_path, connecting=quick) as journal:
        kept = await append(journal, 1)
        tasks = [asyncio.ensure_future(append(journal, number)) for number in range(2, 20)]
        tasks.append(asyncio.ensure_future(journal.drop([kept])))
        await asyncio.sleep(0)
        for task in tasks:
            task.cancel()
        told = await asyncio.gather(*tasks, return_exceptions=True)
        assert any(isinstance(each, asyncio.CancelledError) for each in told)
        await append(journal, 20)
        assert indexed(journal) == list(range(2, 21))
    async with journal_in(tmp_path, connecting=quick) as journal:
        assert indexed(journal) == list(range(2, 21))


async def test_what_is_forgotten_is_gone_at_once_and_committed_later(tmp_path):
    async with journal_in(tmp_path, connecting=quick) as journal:
        first, second = await append(journal, 1), await append(journal, 2)
        journal.forget([first])
        assert indexed(journal) == [2]
        assert await journal.checkpoint(first) is None, "a reader comes behind it"
    journal.forget([second])  # a journal that was closed meanwhile is left alone
    async with journal_in(tmp_path, connecting=quick) as journal:
        assert indexed(journal) == [2]


# -- event loops -------------------------------------------------------------------------------------


def in_a_thread(work) -> threading.Thread:
    thread = threading.Thread(target=lambda: asyncio.run(work()))
    thread.start()
    return thread


async def join(*threads: threading.Thread) -> None:
    for thread in threads:
        await asyncio.to_thread(thread.join)


async def test_two_event_loops_use_one_journal_at_once(tmp_path):
    met = threading.Barrier(2)

    async def use(first: int):
        async with journal_in(tmp_path, connecting=quick) as journal:
            await asyncio.to_thread(met.wait)
            for start in range(first, first + 100, 10):
                await asyncio.gather(*(append(journal, number) for number in range(start, start + 10)))
            seen = indexed(journal)
            assert [number for number in seen if first <= number < first + 100] == list(range(first, first + 100))

    async with journal_in(tmp_path, connecting=quick) as journal:
        await join(in_a_thread(lambda: use(1000)), in_a_thread(lambda: use(2000)))
        assert sorted(indexed(journal)) == [*range(1000, 1100), *range(2000, 2100)]
        assert len({each.seq for each in journal.index.all()}) == 200
        assert len(seats(tmp_path)) == 1
    async with journal_in(tmp_path, connecting=quick) as journal:
        assert sorted(indexed(journal)) == [*range(1000, 1100), *range(2000, 2100)]


async def test_a_loop_that_was_closed_in_the_middle_disturbs_nobody(tmp_path):
    async with journal_in(tmp_path, connecting=quick) as journal:

        def leave_in_the_middle():
            loop = asyncio.new_event_loop()
            # Asked for, and the loop is closed before anybody can be told.
            loop.run_until_complete(Journal.attach(tmp_path, HOME, SYSTEM, self))
            tasks = [loop.create_task(append(journal, number)) for number in range(2, 30)]
            loop.call_soon(loop.stop)
            loop.run_forever()
            for task in tasks:
                task.cancel()
            loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
            loop.close()

        self = object()
        await append(journal, 1)
        thread = threading.Thread(target=leave_in_the_middle)
        thread.start()
        await join(thread)
        await append(journal, 30)
        assert sorted(indexed(journal)) == list(range(1, 31))
    # The closed loop never let go, and does not keep the journal open.
    assert not journal.is_open


async def test_coming_and_going_of_many_loops_loses_nothing(tmp_path):
    """Each acknowledged row is there once, though the journal is closed and opened all the time."""
    kept: list[int] = []
    failed: list[BaseException] = []

    async def come_and_go(worker: int):
        random = Random(worker)
        try:
            for turn in range(25):
                async with journal_in(tmp_path, connecting=quick, user=object()) as journal:
                    numbers = [10_000 * worker + 10 * turn + each for each in range(random.randrange(4))]
                    await asyncio.gather(*(append(journal, number) for number in numbers))
                    kept.extend(numbers)
                    assert set(numbers) <= set(indexed(journal))
                if random.random() < 0.3:
                    await asyncio.sleep(0)
        except BaseException as error:
            failed.append(error)

    await join(*(in_a_thread(lambda worker=worker: come_and_go(worker)) for worker in range(1, 5)))
    assert failed == []
    assert len(seats(tmp_path)) == 1
    async with journal_in(tmp_path, connecting=quick) as journal:
        assert sorted(indexed(journal)) == sorted(kept)
        assert len(kept) > 50
        await journal.drop(journal.index.all())
    assert seats(tmp_path) == []


async def test_users_share_a_journal_and_the_last_one_closes_it(tmp_path):
    async with journal_in(tmp_path, connecting=quick, user="one") as first:
        async with journal_in(tmp_path / "x" / "..", connecting=quick, user="two") as second:
            assert second is first
            await append(second, 1)
        assert first.is_open
        async with journal_in(tmp_path, home="s3://others", connecting=quick) as other:
            assert other is not first, "what goes to another far store has a journal of its own"
            assert indexed(other) == []
        await append(first, 2)
    assert not first.is_open
    async with journal_in(tmp_path, connecting=quick) as again:
        assert again is not first
        assert indexed(again) == [1, 2]


async def test_a_journal_that_was_closed_says_so(tmp_path):
    async with journal_in(tmp_path, connecting=quick) as journal:
        it = await append(journal, 1)
    for late in (append(journal, 2), journal.checkpoint(it), journal.drop([it])):
        with pytest.raises(JournalError, match=r"the journal was closed; nothing was saved there\."):
            await late
    await journal.detach(object())  # and again is nothing


async def test_a_caller_that_is_cancelled_while_the_journal_opens_has_nothing(tmp_path):
    entered, go_on = threading.Event(), threading.Event()

    def slow(path):
        entered.set()
        go_on.wait()
        return quick(path)

    before = journal_threads()
    attaching = asyncio.ensure_future(Journal.attach(tmp_path, HOME, SYSTEM, "user", connecting=slow))
    await asyncio.to_thread(entered.wait)
    attaching.cancel()
    with pytest.raises(asyncio.CancelledError):
        await attaching
    go_on.set()
    async with journal_in(tmp_path, connecting=quick) as journal:
        await append(journal, 1)
        assert len(seats(tmp_path)) == 1
        assert len(journal_threads() - before) <= 2
    async with journal_in(tmp_path, connecting=quick) as journal:
        assert indexed(journal) == [1]


async def test_openings_that_fail_leave_no_thread_behind(tmp_path):
    (tmp_path / "j").write_text("in the way")
    before = journal_threads()
    for _ in range(5):
        told = await asyncio.gather(
            *(Journal.attach(tmp_path / "j", HOME, SYSTEM, object()) for _ in range(4)), return_exceptions=True
        )
        assert {type(each) for each in told} == {JournalError}
    (tmp_path / "j").unlink()
    async with journal_in(tmp_path / "j", connecting=quick) as journal:  # its opening comes behind their ends
        await append(journal, 1)
        for thread in journal_threads() - before - {journal._thread._thread}:
            thread.join(10)
        assert journal_threads() - before == {journal._thread._thread}


# -- what is pending ---------------------------------------------------------------------------------


async def test_pending_counts_rows_bytes_age_and_dead_letters(tmp_path):
    now = [1_000.0]
    clock = Clock(wall=lambda: 5_000.0 + now[0], monotonic=lambda: now[0])
    journal = await Journal.attach(tmp_path, HOME, clock, "user", connecting=quick)
    assert journal.pending() == Pending()
    first, second, third = (row(number, size=1000 * number, since=now[0], saved_at=6_000.0) for number in (1, 2, 3))
    for each in (first, second, third):
        await journal.append(each, {}, body(1))
    now[0] += 7.0
    assert journal.pending() == Pending(rows=3, bytes=6000, oldest_age=7.0)
    await journal.bury(second, "Refused")
    await journal.bury(second, "Refused")
    assert journal.pending(waiting=2, last_error="X") == Pending(
        rows=2, bytes=4000, oldest_age=7.0, dead_letters=1, waiting_for_tenant=2, last_error="X"
    )
    await asyncio.gather(journal.revive([second]), journal.revive([second]))
    assert journal.pending() == Pending(rows=3, bytes=6000, oldest_age=7.0)
    await journal.drop([first])
    await journal.bury(first, "Refused")  # gone already
    assert journal.pending() == Pending(rows=2, bytes=5000, oldest_age=7.0)
    await journal.bury(third, "Refused")
    await journal.detach("user")
    assert not journal.pending().opened

    # The next process goes by the wall clock.
    now[0] = 10.0
    later = Clock(wall=lambda: 6_100.0, monotonic=lambda: now[0])
    journal = await Journal.attach(tmp_path, HOME, later, "user", connecting=quick)
    assert journal.pending() == Pending(rows=1, bytes=2000, oldest_age=100.0, dead_letters=1)
    await journal.drop(journal.index.all())
    assert journal.pending() == Pending()
    assert journal.index.threads() == []
    await journal.detach("user")


async def test_tenants_do_not_share_a_thread(tmp_path: Path):
    async with journal_in(tmp_path, connecting=quick) as journal:
        one = await append(journal, 1, tenant="one")
        two = await append(journal, 2, tenant="two")
        plain = await append(journal, 3)
        assert len({key_of(one), key_of(two), key_of(plain)}) == 3
        assert journal.index.of(key_of(two)) == (two,)
    async with journal_in(tmp_path, connecting=quick) as journal:
        assert [each.tenant for each in journal.index.all()] == ["one", "two", None]
