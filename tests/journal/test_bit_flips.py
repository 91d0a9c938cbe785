"""One wrong bit, anywhere in a journal's files: never a wrong answer, and what is lost is told."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from random import Random

import pytest

from locus_tiered.stores import journal_folder
from locus_tiered.stores.journal_file import Changes
from locus_tiered.stores.journal_open import leave
from locus_tiered.stores.journal_schema import PAGE
from tests.journal.parts import HOME, Former, aside, connect, new, quick, readable, reopen

FRAME = 24 + PAGE
TIMES = int(os.environ.get("LOCUS_TIERED_FLIPS", "1"))
"""More flips, for a long run."""


@pytest.fixture(autouse=True)
def no_directory_syncs(monkeypatch):
    """A thousand journals are put aside here, and no power is cut."""
    monkeypatch.setattr(journal_folder, "_sync_directory", lambda path: None)


def short_log(path):
    connection = connect(path)
    connection.execute("PRAGMA synchronous=OFF")
    connection.execute("PRAGMA wal_autocheckpoint=4")
    return connection


@dataclass
class Image:
    """A killed process's journal, and the numbers that it held after each of the commits that its log holds."""

    name: str
    files: dict[str, bytes]
    states: list[set[int]]
    attempted: set[int]

    @property
    def now(self) -> set[int]:
        return self.states[-1]


@pytest.fixture(scope="module")
def image(tmp_path_factory) -> Image:
    path = tmp_path_factory.mktemp("flips") / "journal"
    former = Former(path, connecting=short_log)
    alive: set[int] = set()
    states: list[set[int]] = []
    sizes = [300, 9_000, 25_000, 70_000, 2_000]
    for number in range(1, 31):
        former.commit(new(number, sizes[number % 5]))
        alive.add(number)
    former.commit(attempt=[3, 8], bury=[(4, "Refused", 1.0), (9, "Refused", 2.0)])
    for number in (2, 7, 13, 18, 23, 24):
        former.commit(remove=[number])
        alive.discard(number)
    former.file.tidy()
    states.append(set(alive))
    # These stay in the log.
    former.file._connection.execute("PRAGMA wal_autocheckpoint=0")
    for number, gone in ((31, None), (32, 1), (33, None), (34, 12)):
        former.commit(new(number, sizes[number % 5]), remove=[] if gone is None else [gone])
        alive.add(number)
        alive.discard(gone)
        states.append(set(alive))
    name = former.die().name
    files = {each: (path / name / each).read_bytes() for each in ("journal.db", "journal.db-wal")}
    assert len(files["journal.db"]) > 20 * PAGE
    assert len(files["journal.db-wal"]) > 5 * FRAME
    return Image(name, files, states, {3, 8})


def flipped(image: Image, path: Path, file: str, position: int, bit: int):
    """A journal directory with that one bit flipped, opened."""
    shutil.rmtree(path, ignore_errors=True)
    (path / image.name).mkdir(parents=True)
    for name, content in image.files.items():
        if name == file:
            content = bytearray(content)
            content[position] ^= 1 << bit
        (path / image.name / name).write_bytes(content)
    return reopen(path, connecting=quick)


def is_told(opened, found: set[int]) -> bool:
    """Whether the opening says, or the reading of a row said, that something is wrong."""
    known = {int(each.stamp, 16) for each in (*opened.found.rows, *opened.found.dead)}
    return bool(opened.found.damaged or opened.passed_over or opened.left or known - found)


def check(image: Image, path: Path, file: str, position: int, bit: int, again: bool) -> int:
    """Flip one bit; check what must be; answers how many rows were lost."""
    where = f"bit {bit} of byte {position} of {file}"
    opened = flipped(image, path, file, position, bit)
    rows = [*opened.found.rows, *opened.found.dead]
    found = readable(opened)
    assert len(found) == len(set(found)), f"{where}: a row is there twice"
    assert len({each.seq for each in rows}) == len(rows), where
    for each in rows:
        assert each.attempted or int(each.stamp, 16) not in image.attempted, f"{where}: attempted was forgotten"
    if set(found) != image.now:
        assert is_told(opened, set(found)), f"{where}: {image.now ^ set(found)} and not a word"
    if file == "journal.db":
        assert set(found) <= image.now, f"{where}: {set(found) - image.now} came back"
    else:
        # A log ends before its first wrong frame: that is the journal as it was then.
        assert set(found) in image.states, f"{where}: {set(found) ^ image.now}"
    if again:
        goes_on(path, opened, where)
    else:
        leave(path, opened)
    return len(image.now - set(found))


def goes_on(path: Path, opened, where: str) -> None:
    """It works, and the next one finds what this one found."""
    number = 1000
    opened.file.commit([Changes(add=[new(number)])])
    before = readable(opened)
    leave(path, opened)
    again = reopen(path, connecting=quick)
    known = [int(each.stamp, 16) for each in (*again.found.rows, *again.found.dead)]
    assert number in known, f"{where}: the row after it was acknowledged and is not there"
    assert sorted(readable(again)) == sorted({*before, number}), where
    leave(path, again)


def bits(random: Random, count: int, *ranges: range) -> list[tuple[int, int]]:
    """``count`` different bits out of ranges of bytes; all of them when there are no more."""
    every = [(position, bit) for each in ranges for position in each for bit in range(8)]
    return every if len(every) <= count else random.sample(every, count)


def pages(image: Image) -> list[int]:
    return list(range(PAGE, len(image.files["journal.db"]), PAGE))


@pytest.mark.parametrize(
    ("count", "region"),
    [
        pytest.param(120, lambda db: [range(100)], id="header"),
        pytest.param(40, lambda db: [range(100, 108)], id="schema page header"),
        pytest.param(60, lambda db: [range(108, 120), range(PAGE - 700, PAGE)], id="schema"),
        pytest.param(150, lambda db: [range(at, at + 12) for at in range(PAGE, len(db), PAGE)], id="page headers"),
        pytest.param(80, lambda db: [range(at + 12, at + 40) for at in range(PAGE, len(db), PAGE)], id="pointers"),
        pytest.param(90, lambda db: [range(at - 400, at) for at in range(2 * PAGE, len(db), PAGE)], id="row heads"),
        pytest.param(90, lambda db: [range(PAGE, len(db))], id="anywhere"),
    ],
)
def test_a_bit_flipped_in_the_file_is_never_a_wrong_answer(image, tmp_path, count, region):
    db = image.files["journal.db"]
    places = bits(Random(f"flips {count}"), count * TIMES, *region(db))
    lost = [
        check(image, tmp_path / "j", "journal.db", position, bit, number % 4 == 0)
        for number, (position, bit) in enumerate(places)
    ]
    assert len(lost) >= min(count, 40)
    # One page at the most is lost, whichever it is.
    assert max(lost) <= 12


@pytest.mark.parametrize(
    ("count", "region"),
    [
        pytest.param(80, lambda log: [range(32)], id="header"),
        pytest.param(90, lambda log: [range(at, at + 24) for at in range(32, len(log), FRAME)], id="frame headers"),
        pytest.param(50, lambda log: [range(32, len(log))], id="anywhere"),
    ],
)
def test_a_bit_flipped_in_the_log_gives_the_journal_as_it_was_before(image, tmp_path, count, region):
    log = image.files["journal.db-wal"]
    places = bits(Random(f"flips {count}"), count * TIMES, *region(log))
    for number, (position, bit) in enumerate(places):
        check(image, tmp_path / "j", "journal.db-wal", position, bit, number % 4 == 0)


def test_a_log_damaged_before_its_end_is_kept_and_counted(image, tmp_path, caplog):
    opened = flipped(image, tmp_path / "j", "journal.db-wal", 32 + 24 + 100, 0)
    assert opened.found.damaged == 1
    assert opened.passed_over >= 4
    (kept,) = aside(tmp_path / "j")
    assert (kept / "journal.db-wal").stat().st_size == len(image.files["journal.db-wal"])
    assert "3 commits that were acknowledged cannot be read" in caplog.text
    leave(tmp_path / "j", opened)


def test_a_damaged_file_is_put_aside_and_the_journal_goes_on_in_a_new_one(image, tmp_path, caplog):
    opened = flipped(image, tmp_path / "j", "journal.db", 3, 0)
    assert set(readable(opened)) == image.now
    assert opened.seat.path.name != image.name
    (kept,) = aside(tmp_path / "j")
    assert {"journal.db", "first-page"} <= {each.name for each in kept.iterdir()}
    assert "is damaged (its header is wrong at byte 0): 26 rows could be saved" in caplog.text
    leave(tmp_path / "j", opened)


@pytest.mark.parametrize("length", [0, 1, 99, 100, 4096, PAGE - 1, PAGE, PAGE + 1, 5 * PAGE, 12 * PAGE + 77])
@pytest.mark.parametrize("with_log", [True, False])
def test_a_file_cut_short_is_told(image, tmp_path, length, with_log):
    path = tmp_path / "j"
    (path / image.name).mkdir(parents=True)
    (path / image.name / "journal.db").write_bytes(image.files["journal.db"][:length])
    if with_log:
        (path / image.name / "journal.db-wal").write_bytes(image.files["journal.db-wal"])
    opened = reopen(path, connecting=quick)
    found = set(readable(opened))
    assert found <= image.states[0] | image.now
    assert is_told(opened, found) or length <= 1 or (length == PAGE and not with_log)
    opened.file.commit([Changes(add=[new(1000)])])
    leave(path, opened)
    again = reopen(path, connecting=quick)
    assert 1000 in readable(again)
    leave(path, again)


def test_rubbish_instead_of_a_file(tmp_path):
    path = tmp_path / "j"
    random = Random(1)
    for length in (10, 100, PAGE, 3 * PAGE):
        former = Former(path, HOME)
        former.die()
        former.seat.file.write_bytes(random.randbytes(length))
        former.seat.file.with_name("journal.db-wal").write_bytes(random.randbytes(5000))
    opened = reopen(path, connecting=quick)
    assert opened.found.rows == []
    assert opened.found.damaged >= 3
    leave(path, opened)
