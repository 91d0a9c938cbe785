"""What former processes left is taken over once, in order, however often the taking over is cut short."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from random import Random

import pytest

from locus_tiered.core.errors import JournalError, JournalFull, JournalLocked
from locus_tiered.stores import journal_folder
from locus_tiered.stores.journal_file import Changes, JournalFile
from locus_tiered.stores.journal_folder import FILE, Seat
from locus_tiered.stores.journal_open import leave
from locus_tiered.stores.journal_schema import PAGE
from locus_tiered.testing.disk import Disk
from tests.journal.parts import (
    Former,
    append,
    aside,
    deletion,
    held,
    indexed,
    journal_in,
    new,
    numbers,
    on,
    quick,
    readable,
    reopen,
    row,
    seats,
)
from tests.journal.parts import told as as_held


@pytest.fixture(autouse=True)
def no_syncs(monkeypatch):
    """Many journals come and go here, and no power is cut."""
    monkeypatch.setattr(journal_folder.os, "fsync", lambda descriptor: None)


def three_orphans(path):
    """Three processes that took turns on one thread; the second wrote most."""
    first = Former(path, connecting=quick).commit(new(1), new(4, id="id-4"))
    second = Former(path, connecting=quick).commit(new(2, 70_000), new(5, 9_000), new(8))
    third = Former(path, connecting=quick).commit(new(3), deletion(6), new(7))
    first.commit(attempt=[4])
    second.commit(bury=[(8, "Refused", 1.0)])
    return [each.die().name for each in (first, second, third)]


async def test_rows_of_several_former_processes_come_in_the_order_of_their_stamps(tmp_path):
    _, largest, _ = three_orphans(tmp_path)
    async with journal_in(tmp_path, connecting=quick) as journal:
        assert [int(each.stamp, 16) for each in journal.index.of("t")] == [1, 2, 3, 4, 5, 6, 7, 8]
        assert all(each.adopted for each in journal.index.all())
        assert [each.stamp for each in journal.index.all() if each.attempted] == [row(4).stamp]
        assert [int(each.stamp, 16) for each in journal.index.all() if each.error] == [8]
        assert [each.seq for each in journal.index.all()] == sorted({each.seq for each in journal.index.all()})
        assert seats(tmp_path) == [largest], "the largest one is taken as it is"
        assert journal.pending().rows == 7
        assert journal.pending().dead_letters == 1
        saves = [each for each in journal.index.of("t") if each.kind == "save"]
        states = [await journal.checkpoint(each) for each in saves]
        assert [found.metadata["number"] for found in states] == [1, 2, 3, 4, 5, 7, 8]
        fresh = await append(journal, 9)
        assert fresh.seq > max(each.seq for each in journal.index.all() if each is not fresh)


class Crash(BaseException):
    """The process ends here."""


EFFECTS = [
    (JournalFile, "commit"),
    (JournalFile, "tidy"),
    (JournalFile, "claim"),
    (JournalFile, "close"),
    (Seat, "remove"),
    (Seat, "put_aside"),
    (journal_folder, "_sync_directory"),
    (journal_folder.shutil, "rmtree"),
]


def crash_after(monkeypatch, nth):
    """Have the process end right after the ``nth`` effect of an opening; answers the effects so far."""
    done = []

    def spoil(owner, name):
        usual = getattr(owner, name)

        def spoiled(*arguments, **options):
            result = usual(*arguments, **options)
            done.append(name)
            if len(done) == nth:
                raise Crash(name)
            return result

        monkeypatch.setattr(owner, name, spoiled)

    for owner, name in EFFECTS:
        spoil(owner, name)
    return done


def check_all(path, *, damaged=0):
    """Everything of ``three_orphans`` is there once, with its states; and the journal works."""
    opened = reopen(path, connecting=quick)
    assert sorted(numbers(opened)) == [1, 2, 3, 4, 5, 6, 7]
    assert [int(each.stamp, 16) for each in opened.found.dead] == [8]
    assert [each.stamp for each in opened.found.rows if each.attempted] == [row(4).stamp]
    assert len(held(opened).rows) == 7, "and every state is what was written"
    assert opened.found.damaged == damaged
    leave(path, opened)
    return opened


def crash(monkeypatch, path, nth):
    """Open, and end after the ``nth`` effect; answers whether it came to that."""
    with monkeypatch.context() as patch:
        crash_after(patch, nth)
        try:
            opened = reopen(path, connecting=quick)
        except Crash:
            return True
    leave(path, opened)
    return False


def test_a_crash_after_each_step_of_an_adoption_doubles_nothing_and_loses_nothing(tmp_path, monkeypatch):
    nth = 0
    while True:
        nth += 1
        path = tmp_path / f"after-{nth}"
        three_orphans(path)
        if not crash(monkeypatch, path, nth):
            break
        check_all(path)
    assert nth > 15


@pytest.mark.parametrize("between", [None, "a larger orphan appears"])
def test_a_second_crash_during_the_recovery_of_the_first(tmp_path, monkeypatch, between):
    """Also when the next one takes another orphan as it is: what was copied there already is known by its origin."""
    cases = 0
    for first in (3, 6, 8, 9, 13):
        for second in range(2, 18, 3):
            path = tmp_path / f"{first}-{second}"
            three_orphans(path)
            crash(monkeypatch, path, first)
            if between:
                larger = Former(path, connecting=quick).commit(new(20, 300_000))
                larger.die()
            crash(monkeypatch, path, second)
            opened = reopen(path, connecting=quick)
            assert sorted(numbers(opened)) == [1, 2, 3, 4, 5, 6, 7, *([20] if between else [])]
            assert len(opened.found.dead) == 1
            assert len(seats(path)) == 1
            leave(path, opened)
            cases += 1
    assert cases == 30


def break_file(path, name):
    """Damage an orphan's file so that it must be salvaged: its header, with the log folded in."""
    file = path / name / FILE
    with sqlite3.connect(file) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    content = bytearray(file.read_bytes())
    content[0] ^= 1
    file.write_bytes(content)


def test_a_crash_after_each_step_of_a_salvage_doubles_nothing_and_loses_nothing(tmp_path, monkeypatch):
    nth = 0
    while True:
        nth += 1
        path = tmp_path / f"after-{nth}"
        names = three_orphans(path)
        for name in names[1:]:
            break_file(path, name)
        if not crash(monkeypatch, path, nth):
            break
        opened = reopen(path, connecting=quick)
        assert sorted(numbers(opened)) == [1, 2, 3, 4, 5, 6, 7]
        assert len(opened.found.dead) == 1
        leave(path, opened)
        # A first page that was renewed before the crash may have made a sound file of one.
        assert 1 <= len(aside(path)) <= 2
    assert nth > 10


def test_what_was_taken_over_does_not_come_back_with_its_directory(tmp_path):
    """A crash between the renaming of a sub-directory and its removal: the rest is no journal any more."""
    three_orphans(tmp_path)
    opened = reopen(tmp_path, connecting=quick)
    gone = tmp_path / ".gone-1-0123456789ab"
    gone.mkdir()
    (gone / FILE).write_bytes((tmp_path / seats(tmp_path)[0] / FILE).read_bytes())
    leave(tmp_path, opened)
    check_all(tmp_path)
    assert not gone.exists()


def test_damaged_states_stay_damaged_when_they_are_adopted(tmp_path):
    """A copy carries the check of the original: it is not made anew over what the disk has changed."""
    Former(tmp_path, connecting=quick).commit(*[new(number, 20_000) for number in range(10, 20)]).die()
    former = Former(tmp_path, connecting=quick).commit(new(1), new(2))
    former.file._connection.execute("UPDATE rows SET body = CAST('{}' AS BLOB) WHERE seq = 2")
    former.die()
    opened = reopen(tmp_path, connecting=quick)
    assert sorted(numbers(opened)) == [1, 2, *range(10, 20)]
    assert sorted(readable(opened)) == [1, *range(10, 20)]
    leave(tmp_path, opened)


async def test_a_damaged_row_keeps_its_place_from_being_given_away(tmp_path):
    former = Former(tmp_path, connecting=quick).commit(new(1), new(2))
    former.file._connection.execute("UPDATE rows SET head = CAST('{}' AS BLOB) WHERE seq = 2")
    former.die()
    async with journal_in(tmp_path, connecting=quick) as journal:
        assert journal.pending().damaged == 1
        assert indexed(journal) == [1]
        third = await append(journal, 3)
        assert (await journal.checkpoint(third)).metadata == {"number": 3}
    async with journal_in(tmp_path, connecting=quick) as journal:
        assert indexed(journal) == [1, 3]
        assert journal.pending().damaged == 1


# -- what is left alone ------------------------------------------------------------------------------


async def test_a_journal_of_another_home_is_left_alone(tmp_path, caplog):
    other = Former(tmp_path, "s3://others", quick).commit(new(1)).die()
    before = (other / FILE).read_bytes(), (other / f"{FILE}-wal").stat().st_size
    async with journal_in(tmp_path, connecting=quick) as journal:
        assert indexed(journal) == []
        assert journal.pending().left == 1
    assert "belongs to another home (s3://others); left alone" in caplog.text
    assert before[1] > 0
    async with journal_in(tmp_path, home="s3://others", connecting=quick) as journal:
        assert indexed(journal) == [1]


async def test_a_journal_whose_home_nobody_knows_is_anybodys(tmp_path):
    Former(tmp_path, None, quick).commit(new(1)).die()
    async with journal_in(tmp_path, connecting=quick) as journal:
        assert indexed(journal) == [1]
    Former(tmp_path / "b", "s3://b", quick).commit(new(2)).die()
    async with journal_in(tmp_path / "b", home=None, connecting=quick) as journal:
        assert indexed(journal) == [2]


def test_rows_never_go_to_another_home_even_when_the_note_of_it_is_damaged(tmp_path):
    """Every row says whose it is."""
    former = Former(tmp_path, "s3://others", quick).commit(new(1))
    former.file._connection.execute("UPDATE meta SET value = 's3://agents' WHERE key = 'home'")
    former.die()
    opened = reopen(tmp_path, connecting=quick)
    assert opened.found.rows == []
    assert opened.found.damaged == 1
    assert len(aside(tmp_path)) == 1
    leave(tmp_path, opened)


async def test_a_journal_of_a_newer_version_is_left_alone_with_a_warning(tmp_path, caplog):
    former = Former(tmp_path, connecting=quick).commit(new(1))
    former.file._connection.execute("UPDATE meta SET value = '2' WHERE key = 'version'")
    former.file._connection.execute("PRAGMA user_version=2")
    former.file._connection.execute("CREATE TABLE more(thing TEXT)")
    name = former.die().name
    async with journal_in(tmp_path, connecting=quick) as journal:
        assert indexed(journal) == []
        assert journal.pending().left == 1
        assert len(seats(tmp_path)) == 2
    assert "has the format '2'; this version reads up to 1. Nothing was changed" in caplog.text
    assert seats(tmp_path) == [name], "ours was empty, and went"


def test_what_is_no_journal_of_ours_is_not_touched(tmp_path):
    (tmp_path / "lost+found").mkdir(mode=0o000)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / FILE).write_text("not a journal")
    (tmp_path / "1-0123456789ab").write_text("a file with such a name")
    opened = reopen(tmp_path, connecting=quick)
    assert opened.found.rows == []
    leave(tmp_path, opened)
    (tmp_path / "lost+found").chmod(0o700)
    assert list((tmp_path / "notes").iterdir()) == [tmp_path / "notes" / FILE]


def test_a_sub_directory_without_a_file_is_used(tmp_path):
    """The process ended right after it made it."""
    (tmp_path / "1-0123456789ab").mkdir()
    opened = reopen(tmp_path, connecting=quick)
    assert opened.seat.path.name == "1-0123456789ab"
    leave(tmp_path, opened)
    assert seats(tmp_path) == []


# -- failures of an opening --------------------------------------------------------------------------


def test_a_failed_opening_changes_nothing_and_holds_nothing(tmp_path):
    """A disk that fails is not a damaged file: nothing is put aside, and the next opening finds everything."""
    three_orphans(tmp_path / "j")
    nth, told = 0, []
    while True:
        nth += 1
        with Disk() as disk:
            disk.fail("write", nth, on="journal.db", forever=True)
            try:
                opened = reopen(tmp_path / "j", connecting=on(disk))
            except JournalError as error:
                told.append(str(error))
            else:
                leave(tmp_path / "j", opened)
                break
        assert aside(tmp_path / "j") == []
    assert told
    assert all("could not be opened (SQLITE_IOERR" in each and "is untouched" in each for each in told)
    check_all(tmp_path / "j")


def test_a_full_disk_at_the_opening_says_so_and_is_not_damage(tmp_path):
    three_orphans(tmp_path / "j")
    with Disk() as disk:
        disk.room = 0
        with pytest.raises(
            JournalFull, match=r"its disk is full\. Nothing was saved there, what it holds is untouched"
        ):
            reopen(tmp_path / "j", connecting=on(disk))
        assert aside(tmp_path / "j") == []
        disk.heal()
        opened = reopen(tmp_path / "j", connecting=on(disk))
        assert len(opened.found.rows) == 7
        leave(tmp_path / "j", opened)


def test_a_file_that_somebody_reads_meanwhile_is_taken_over_all_the_same(tmp_path):
    """The command line looks into journals with a connection of its own."""
    names = three_orphans(tmp_path)
    readers = [sqlite3.connect(f"{(tmp_path / name / FILE).as_uri()}?mode=ro", uri=True) for name in names]
    cursors = [each.execute("SELECT * FROM rows") for each in readers]
    for cursor in cursors:
        cursor.fetchone()
    check_all(tmp_path)
    for each in (*cursors, *readers):
        each.close()


def test_an_opening_that_takes_too_long_elsewhere_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(journal_folder, "_LOOKS", 2)
    monkeypatch.setattr(journal_folder, "_LOOK_SECONDS", 0.001)
    folder = journal_folder.Folder(tmp_path)
    with (
        folder.alone(),
        pytest.raises(JournalLocked, match=r"opened or closed by another process for more than 0\.002 s; nothing was"),
    ):
        reopen(tmp_path)
    leave(tmp_path, reopen(tmp_path))


def test_leaving_with_rows_keeps_them_and_leaving_empty_leaves_nothing(tmp_path):
    opened = reopen(tmp_path, connecting=quick)
    opened.file.commit([Changes(add=[new(1)])])
    leave(tmp_path, opened)
    assert len(seats(tmp_path)) == 1
    assert not (tmp_path / seats(tmp_path)[0] / f"{FILE}-wal").exists(), "the log was folded in"
    opened = reopen(tmp_path, connecting=quick)
    opened.file.commit([Changes(remove=[1])])
    leave(tmp_path, opened)
    assert [each.name for each in tmp_path.iterdir()] == [".lock"]


def test_a_place_is_not_given_twice_within_one_journal(tmp_path):
    opened = reopen(tmp_path, connecting=quick)
    opened.file.commit([Changes(add=[new(1)])])
    with pytest.raises(sqlite3.IntegrityError):
        opened.file.commit([Changes(add=[new(1, 300)])])
    leave(tmp_path, opened)
    opened = reopen(tmp_path, connecting=quick)
    assert held(opened).rows == [as_held(1)]
    leave(tmp_path, opened)


def test_pages_are_all_accounted_for_in_a_file_that_was_used_hard(tmp_path):
    """The check of pages knows every shape that a sound file has: deep trees, free pages, free blocks, long states."""
    random = Random(7)
    opened = reopen(tmp_path, connecting=quick)
    alive: list[int] = []
    place = 0
    for _ in range(120):
        changes = Changes()
        for _ in range(random.randrange(1, 12)):
            place += 1
            size = random.choice([50, 700, 6_000, 30_000, 32_700, 33_000, 120_000])
            changes.add.append(new(place, size, thread="x" * random.choice([1, 300, 4_000])))
        gone = random.sample(alive, min(len(alive), random.randrange(0, 14)))
        changes.remove = gone
        changes.bury = [(each, "Refused", 1.0) for each in random.sample(alive, min(2, len(alive))) if each not in gone]
        opened.file.commit([changes])
        alive = [each for each in alive if each not in gone] + [each.row.seq for each in changes.add]
        if random.random() < 0.15:
            leave(tmp_path, opened)
            opened = reopen(tmp_path, connecting=quick)
            assert opened.found.damaged == 0
            found = sorted(each.seq for each in (*opened.found.rows, *opened.found.dead))
            assert found == sorted(alive)
    assert (opened.seat.file.stat().st_size) > 40 * PAGE
    leave(tmp_path, opened)
    assert aside(tmp_path) == []


def bytes_read() -> int:
    """What this process has read from files so far."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(dict(line.split(": ") for line in lines)["rchar"])


def test_opening_a_journal_does_not_read_the_states(tmp_path):
    former = Former(tmp_path, connecting=quick)
    for number in range(1, 31):
        former.commit(new(number, 1_000_000))
    former.file.tidy()
    former.die()
    before = bytes_read()
    opened = reopen(tmp_path, connecting=quick)
    assert bytes_read() - before < 3_000_000, "of 30 MB"
    assert numbers(opened) == list(range(1, 31))
    leave(tmp_path, opened)
