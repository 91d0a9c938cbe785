"""Several processes in one journal directory: alive, killed, forked."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from locus_tiered.stores import journal_folder
from locus_tiered.stores.journal_file import Changes
from locus_tiered.stores.journal_open import leave
from tests.journal.parts import append, body, indexed, journal_in, new, numbers, reopen, seats

ROOT = Path(__file__).parents[2]


class Child:
    def __init__(self, path: Path, first: int, count: int) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.journal.child", str(path), str(first), str(count)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        self.adopted: list[int] = []
        self.kept: list[int] = []

    def read(self, until: str = "ready") -> Child:
        """Read what it says up to a word."""
        for line in self.process.stdout:
            word, *rest = line.split()
            if word == "adopted":
                self.adopted = [int(each) for each in rest]
            if word == "kept":
                self.kept.append(int(rest[0]))
            if line.strip() == until or word == until:
                break
        return self

    def end(self, how: str = "end") -> None:
        if how == "kill":
            self.process.kill()
        else:
            self.process.stdin.write("end\n")
            self.process.stdin.flush()
        self.read("never")
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()


async def test_the_journal_of_a_live_process_is_not_touched(tmp_path):
    child = Child(tmp_path, 1, 3).read()
    (theirs,) = seats(tmp_path)
    try:
        async with journal_in(tmp_path) as journal:
            assert indexed(journal) == []
            await append(journal, 10)
            assert len(seats(tmp_path)) == 2
    finally:
        child.end("kill")
    assert theirs in seats(tmp_path)
    async with journal_in(tmp_path) as journal:
        assert sorted(indexed(journal)) == [1, 2, 3, 10]
        assert len(seats(tmp_path)) == 1


async def test_what_a_killed_process_had_acknowledged_is_adopted(tmp_path):
    """Killed while it commits: one process after another, each with what all before it left."""
    kept: list[int] = []
    for turn in range(3):
        child = Child(tmp_path, 1 + 1000 * turn, 900)
        for _ in range(12):
            child.read("kept")
        child.end("kill")
        assert set(kept) <= set(child.adopted)
        kept += child.kept
    async with journal_in(tmp_path) as journal:
        there = indexed(journal)
        assert set(kept) <= set(there)
        assert len(there) == len(set(there))
        assert journal.pending().damaged == 0
        for each in journal.index.all():
            found = await journal.checkpoint(each)
            assert found.body.encoded == body(found.metadata["number"], 9_000)


async def test_a_process_that_ended_well_left_its_rows_for_the_next(tmp_path):
    child = Child(tmp_path, 1, 2).read()
    child.end()
    assert child.process.returncode == 0
    async with journal_in(tmp_path) as journal:
        assert indexed(journal) == [1, 2]


# -- forks -------------------------------------------------------------------------------------------


def _child_uses_its_own(path: Path, pipe) -> None:
    async def use():
        async with journal_in(path) as journal:
            before = indexed(journal)
            await append(journal, 50)
            return before, indexed(journal), len(seats(path))

    pipe.send(asyncio.run(use()))
    pipe.close()


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
async def test_a_forked_child_has_a_journal_of_its_own_and_the_parents_is_not_affected(tmp_path):
    context = multiprocessing.get_context("fork")
    async with journal_in(tmp_path) as journal:
        rows = [await append(journal, number) for number in (1, 2)]
        mine, theirs = context.Pipe()
        process = context.Process(target=_child_uses_its_own, args=(tmp_path, theirs))
        process.start()
        theirs.close()
        before, after, count = await asyncio.to_thread(mine.recv)
        await asyncio.to_thread(process.join)
        assert process.exitcode == 0
        assert (before, after, count) == ([], [50], 2)
        await append(journal, 3)
        assert (await journal.checkpoint(rows[0])).body.encoded == body(1)
        await journal.drop([rows[1]])
        assert indexed(journal) == [1, 3]
    async with journal_in(tmp_path) as journal:
        assert sorted(indexed(journal)) == [1, 3, 50]


_FORKING = """
import asyncio, os, sys
from pathlib import Path
from tests.journal.parts import append, journal_in

async def main(path, how):
    async with journal_in(path) as journal:
        await append(journal, 1)
        await append(journal, 2)
        inside, outside = os.pipe()
        if os.fork() == 0:
            # The child lives on after the parent, with everything that it inherited.
            os.close(outside)
            print("child", os.getpid(), flush=True)
            os.read(inside, 1) if how == "waits" else None
            sys.stdin.readline()
            sys.exit(0)  # with the usual clearing up
        os.close(inside)
        if how == "works on":
            for number in range(3, 40):
                await append(journal, number)
        print("parent", flush=True)
        os.kill(os.getpid(), 9)

asyncio.run(main(Path(sys.argv[1]), sys.argv[2]))
"""


@pytest.mark.parametrize("how", ["works on", "waits"])
async def test_a_child_that_outlives_its_parent_holds_none_of_its_locks_and_harms_nothing(tmp_path, how):
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", _FORKING, str(tmp_path), how],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    process.wait()
    words = [process.stdout.readline().split() for _ in range(2)]
    (child,) = [int(each[1]) for each in words if each[0] == "child"]
    expected = list(range(1, 40)) if how == "works on" else [1, 2]
    try:
        async with journal_in(tmp_path) as journal:
            assert indexed(journal) == expected, "taken over while the child lives"
            await append(journal, 100)
            process.stdin.write("\n")  # the child ends, and clears up what it inherited
            process.stdin.close()
            assert process.stdout.read() == ""
            await append(journal, 101)
            assert (await journal.checkpoint(journal.index.all()[0])).body.encoded == body(1)
    finally:
        try:
            os.kill(child, signal.SIGKILL)
        except ProcessLookupError:
            pass
        process.stdout.close()
    async with journal_in(tmp_path) as journal:
        assert indexed(journal) == [*expected, 100, 101]
        assert journal.pending().damaged == 0


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_child_forked_while_somebody_looks_for_orphans_does_not_keep_others_out(tmp_path, monkeypatch):
    """It inherits the lock of the directory too."""
    folder = journal_folder.Folder(tmp_path)
    inside, outside = os.pipe()
    with folder.alone():
        child = os.fork()
        if child == 0:
            os.close(outside)
            os.read(inside, 1)
            os._exit(0)
    os.close(inside)
    monkeypatch.setattr(journal_folder, "_LOOKS", 3)
    opened = reopen(tmp_path)
    opened.file.commit([Changes(add=[new(1)])])
    leave(tmp_path, opened)
    opened = reopen(tmp_path)
    assert numbers(opened) == [1]
    leave(tmp_path, opened)
    os.close(outside)
    os.waitpid(child, 0)
