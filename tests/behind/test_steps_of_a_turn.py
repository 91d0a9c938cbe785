"""Steps of a turn whose end is in the journal are forgotten without waiting for the disk; no crash brings them back."""

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
