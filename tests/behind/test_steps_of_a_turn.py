"""Steps of a turn that has ended are forgotten without waiting for the disk; no crash brings them back.

Either its end is in the same journal, or the far store has acknowledged it and the first delete has noted that.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from locus.memory.backends.memory import MemoryCheckpointer

from locus_tiered.stores.journal_file import Changes, JournalFile
from locus_tiered.stores.journal_thread import JournalThread
from tests.behind.kit import Hands, behind, crashed, far_words, nothing_pending, said, stack_words, step, words


async def _steps(stack: Any, *texts: str) -> list[str]:
    """Save a step for each text; their ids."""
    turn: list[str] = []
    for text in texts:
        state, name = step(turn, text)
        await stack.save(state, "t", name)
    return turn


@pytest.mark.parametrize("exclusive", [False, True])
async def test_a_crash_before_the_disk_has_heard_of_the_deletes_brings_no_step_back(
    exclusive: bool, tmp_path: Path
) -> None:
    far, hands = MemoryCheckpointer(), Hands()
    stack = behind(far, tmp_path / "journal", ack="journal", exclusive=exclusive, clock=hands.clock)
    turn = await _steps(stack, "one", "two", "three")
    await stack.save(said("the end"), "t")
    journal = crashed(tmp_path / "journal")  # nothing of what follows is on this disk
    assert [await stack.delete("t", name) for name in turn] == [True, True, True]
    assert await stack_words(stack, "t") == ["the end"]

    heir = behind(far, journal, ack="journal", exclusive=exclusive, clock=hands.clock)
    assert (await heir.recover()).rows == 4
    assert words(await heir.load("t")) == "the end"
    assert not any([await heir.exists("t", name) for name in turn])
    assert await stack_words(heir, "t") == ["the end"]
    await heir.flush()
    assert nothing_pending(heir)
    assert await far_words(far, "t") == ["the end"]
    await heir.close()
    await stack.close()


async def test_the_deletes_are_on_the_disk_before_the_end_leaves_it(tmp_path: Path) -> None:
    far, hands = MemoryCheckpointer(), Hands()
    stack = behind(far, tmp_path / "journal", ack="journal", clock=hands.clock)
    turn = await _steps(stack, "one", "two")
    await stack.save(said("the end"), "t")
    for name in turn:
        await stack.delete("t", name)
    await stack.flush()
    heir = behind(MemoryCheckpointer(), crashed(tmp_path / "journal"), ack="journal", clock=hands.clock)
    assert (await heir.recover()).rows == 0
    await heir.close()
    await stack.close()


async def test_a_step_of_a_turn_without_an_end_is_deleted_on_the_disk(tmp_path: Path) -> None:
    far, hands = MemoryCheckpointer(), Hands()
    stack = behind(far, tmp_path / "journal", ack="journal", clock=hands.clock)
    turn = await _steps(stack, "one", "two")
    await stack.delete("t", turn[1])
    heir = behind(far, crashed(tmp_path / "journal"), ack="journal", clock=hands.clock)
    assert await stack_words(heir, "t") == ["one"]
    await heir.close()
    await stack.close()


async def test_an_end_that_is_gone_covers_no_step(tmp_path: Path) -> None:
    far, hands = MemoryCheckpointer(), Hands()
    stack = behind(far, tmp_path / "journal", ack="journal", clock=hands.clock)
    turn = await _steps(stack, "one")
    await stack.delete("t", await stack.save(said("the end"), "t"))
    await stack.delete("t", turn[0])
    heir = behind(far, crashed(tmp_path / "journal"), ack="journal", clock=hands.clock)
    assert (await heir.recover()).rows == 0
    assert await heir.load("t") is None
    await heir.close()
    await stack.close()


async def test_the_first_delete_after_an_end_that_the_far_store_took_notes_that_the_other_steps_have_served(
    tmp_path: Path,
) -> None:
    far, hands = MemoryCheckpointer(), Hands()
    stack = behind(far, tmp_path / "journal", clock=hands.clock)
    turn = await _steps(stack, "one", "two", "three")
    await stack.save(said("the end"), "t")
    assert await stack.delete("t", turn[0])
    journal = crashed(tmp_path / "journal")  # nothing of what follows is on this disk
    assert [await stack.delete("t", name) for name in turn[1:]] == [True, True]
    assert await stack_words(stack, "t") == ["the end"]

    heir = behind(far, journal, clock=hands.clock)
    assert (await heir.recover()).rows == 2
    assert not any([await heir.exists("t", name) for name in turn])
    assert await stack_words(heir, "t") == ["the end"]
    await heir.flush()
    assert nothing_pending(heir)
    assert await far_words(far, "t") == ["the end"]
    await heir.close()
    await stack.close()


async def test_steps_that_have_served_are_not_sent_even_when_the_end_was_deleted_elsewhere(tmp_path: Path) -> None:
    far, hands = MemoryCheckpointer(), Hands()
    stack = behind(far, tmp_path / "journal", clock=hands.clock)
    turn = await _steps(stack, "one", "two", "three")
    end = await stack.save(said("the end"), "t")
    await stack.delete("t", turn[0])
    journal = crashed(tmp_path / "journal")
    assert await stack.delete("t", turn[1])
    assert await far.delete("t", end)
    heir = behind(far, journal, clock=hands.clock)
    assert not await heir.exists("t", turn[1])
    await heir.flush()
    assert await far_words(far, "t") == []
    await heir.close()
    await stack.close()


async def test_an_end_that_was_deleted_from_the_far_store_serves_nobody(tmp_path: Path) -> None:
    far, hands = MemoryCheckpointer(), Hands()
    stack = behind(far, tmp_path / "journal", clock=hands.clock)
    turn = await _steps(stack, "one", "two", "three")
    await stack.delete("t", await stack.save(said("the end"), "t"))
    await stack.delete("t", turn[2])
    heir = behind(far, crashed(tmp_path / "journal"), clock=hands.clock)
    assert await stack_words(heir, "t") == ["one", "two"]
    assert words(await heir.load("t")) == "two"
    await heir.close()
    await stack.close()


async def test_steps_that_have_served_and_are_kept_all_the_same_are_sent(tmp_path: Path) -> None:
    far, hands = MemoryCheckpointer(), Hands()
    stack = behind(far, tmp_path / "journal", clock=hands.clock)
    turn = await _steps(stack, "one", "two", "three")
    await stack.save(said("the end"), "t")
    await stack.delete("t", turn[1])
    assert await stack_words(stack, "t") == ["one", "three", "the end"]
    await stack.flush()
    assert nothing_pending(stack)
    assert await far_words(far, "t") == ["one", "three", "the end"]
    assert await stack.delete("t", turn[0])
    await stack.flush()
    assert await far_words(far, "t") == ["three", "the end"]
    await stack.close()


async def test_a_version_before_takes_what_has_served_for_what_may_have_been_sent(tmp_path: Path) -> None:
    far = MemoryCheckpointer()
    stack = behind(far, tmp_path / "journal")
    turn = await _steps(stack, "one", "two")
    await stack.save(said("the end"), "t")
    await stack.delete("t", turn[0])
    [file] = crashed(tmp_path / "journal").glob("*/journal.db")
    with sqlite3.connect(file) as connection:
        marks = connection.execute("SELECT attempted FROM rows").fetchall()
    connection.close()
    assert marks == [(0x3C3C3C,)]  # version 1: anything but zero
    await stack.close()


class _FullOnce(JournalFile):
    """A journal file whose disk is full for the first commit."""

    full = True

    def commit(self, batch: Iterable[Changes]) -> None:
        if self.full:
            self.full = False
            error = sqlite3.OperationalError("database or disk is full")
            error.sqlite_errorcode = sqlite3.SQLITE_FULL
            raise error
        super().commit(batch)


async def test_what_a_full_disk_refused_and_nobody_waits_for_comes_with_the_next_commit(tmp_path: Path) -> None:
    committed: list[list[int]] = []

    class Watched(_FullOnce):
        def commit(self, batch: Iterable[Changes]) -> None:
            changes = list(batch)
            super().commit(changes)
            committed.append([seq for each in changes for seq in each.remove])

    files: list[JournalFile] = []

    def opening() -> JournalFile:
        files.append(Watched.open(tmp_path / "journal.db", None))
        return files[0]

    thread = JournalThread(opening)
    thread.submit(Changes(remove=[7]))
    await thread.read(lambda file: None)
    assert committed == []
    await thread.commit(Changes(remove=[8]))
    assert committed == [[7, 8]]
    await thread.stop(lambda file: file.close())
