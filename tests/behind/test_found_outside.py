"""What a tester from outside found stays a test."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from locus.memory.backends.memory import MemoryCheckpointer

from locus_tiered import WriteBehindCheckpointer
from locus_tiered.core.errors import InvalidArgument, JournalFull, JournalPoisoned, StackConfigError
from locus_tiered.layers import write_behind
from locus_tiered.layers.write_behind_options import Ack
from locus_tiered.stores.journal_file import Changes, JournalFile
from locus_tiered.testing import FaultyCheckpointer
from tests.behind.kit import Hands, behind, crashed, far_words, said, stack_words, step, words


class FullDisk:
    """While it is full, no journal commits anything."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.full = False
        commit = JournalFile.commit

        def refusing(file: JournalFile, batch: Iterable[Changes]) -> None:
            if self.full:
                error = sqlite3.OperationalError("database or disk is full")
                error.sqlite_errorcode = sqlite3.SQLITE_FULL
                raise error
            commit(file, batch)

        monkeypatch.setattr(JournalFile, "commit", refusing)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> FullDisk:
    return FullDisk(monkeypatch)


# -- an end that is deleted while steps before it are kept -------------------------------------------------------------


@pytest.mark.parametrize("exclusive", [False, True])
@pytest.mark.parametrize("end", [None, "draft"])
async def test_a_step_that_was_kept_counts_again_when_the_end_of_its_turn_is_deleted(
    end: str | None, exclusive: bool, tmp_path: Path
) -> None:
    far, hands = MemoryCheckpointer(), Hands()
    stack = behind(far, tmp_path / "journal", exclusive=exclusive, clock=hands.clock)
    turn: list[str] = []
    for text in ("one", "two", "three"):
        state, name = step(turn, text)
        await stack.save(state, "t", name)
    name = await stack.save(said("the end"), "t", end)
    await stack.delete("t", turn[1])  # notes that the others have served
    await stack.delete("t", name)
    assert await stack_words(stack, "t") == ["one", "three"]
    async with behind(far, crashed(tmp_path / "journal"), exclusive=exclusive, clock=hands.clock) as heir:
        assert await stack_words(heir, "t") == ["one", "three"]
        await heir.flush()
        assert await far_words(far, "t") == ["one", "three"]
        assert await heir.delete("t", turn[0])
        assert await stack_words(heir, "t") == ["three"]
    await stack.close()


# -- a full disk -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("room", [False, True])
@pytest.mark.parametrize("exclusive", [False, True])
async def test_what_was_sent_while_the_disk_was_full_and_is_deleted_stays_deleted(
    exclusive: bool, room: bool, disk: FullDisk, tmp_path: Path
) -> None:
    far, hands = MemoryCheckpointer(), Hands()
    stack = behind(far, tmp_path / "journal", ack="journal", exclusive=exclusive, clock=hands.clock)
    first = await stack.save(said("first"), "t")
    await stack.save(said("second"), "t")
    disk.full = True
    await stack.flush()  # the journal cannot note that they were sent
    disk.full = not room
    assert await stack.delete("t", first)
    assert await stack_words(stack, "t") == ["second"]
    await stack.flush()
    journal = crashed(tmp_path / "journal")
    disk.full = False
    async with behind(far, journal, ack="journal", exclusive=exclusive, clock=hands.clock) as heir:
        await heir.flush()
        assert await stack_words(heir, "t") == ["second"]
    assert await far_words(far, "t") == ["second"]
    await stack.close()


@pytest.mark.parametrize("exclusive", [False, True])
@pytest.mark.parametrize("ack", ["turn", "journal"])
async def test_a_step_that_was_dropped_while_the_disk_was_full_does_not_come_back_once_its_delete_was_answered(
    ack: Ack, exclusive: bool, disk: FullDisk, tmp_path: Path
) -> None:
    far, hands = MemoryCheckpointer(), Hands()
    stack = behind(far, tmp_path / "journal", clock=hands.clock)
    state, name = step([], "step")
    await stack.save(state, "t", name)
    end = await stack.save(said("the end"), "t")
    disk.full = True
    options: dict[str, Any] = {"ack": ack, "exclusive": exclusive, "clock": hands.clock}
    async with behind(far, crashed(tmp_path / "journal"), **options) as heir:
        assert await stack_words(heir, "t") == ["the end"]  # the step was overtaken; its row stays on the disk
        assert not await heir.delete("t", name)
        assert await heir.delete("t", end)
        journal = crashed(tmp_path / "after-the-crash", "after-another-one")
        disk.full = False
    async with behind(far, journal, **options) as heir:
        assert await stack_words(heir, "t") == []
    await stack.close()


async def test_what_was_sent_while_the_disk_was_full_leaves_it_with_the_next_commit(
    disk: FullDisk, tmp_path: Path
) -> None:
    stack = behind(MemoryCheckpointer(), tmp_path / "journal", ack="journal")
    await stack.save(said("first"), "t")
    disk.full = True
    await stack.flush()
    disk.full = False
    await stack.save(said("second"), "u")
    heir = behind(MemoryCheckpointer(), crashed(tmp_path / "journal"), ack="journal")
    assert (await heir.recover()).rows == 1
    await heir.close()
    await stack.close()


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("ack", ["turn", "journal"])
async def test_a_delete_is_written_through_while_the_disk_is_full(
    ack: Ack, whole: bool, disk: FullDisk, tmp_path: Path
) -> None:
    far, hands = FaultyCheckpointer(), Hands()
    stack = behind(far, tmp_path / "journal", ack=ack, clock=hands.clock)
    turn: list[str] = []
    for text in ("kept before", "written through"):
        state, name = step(turn, text)
        await stack.save(state, "t", name)
        disk.full = True
    await stack.save(said("the end"), "t")
    for name in turn:
        assert await stack.delete("t", None if whole else name)
        if whole:
            break
    left = [] if whole else ["the end"]
    assert await stack_words(stack, "t") == await far_words(far, "t") == left
    journal = crashed(tmp_path / "journal")
    disk.full = False
    async with behind(far, journal, ack=ack, clock=hands.clock) as heir:
        assert await stack_words(heir, "t") == left
        await heir.flush()
        assert await far_words(far, "t") == left
    await stack.close()


async def test_a_delete_that_neither_the_full_disk_nor_the_far_store_takes_is_refused(
    disk: FullDisk, tmp_path: Path
) -> None:
    far = FaultyCheckpointer()
    stack = behind(far, tmp_path / "journal", ack="journal")
    name = await stack.save(said("here"), "t")
    disk.full = True
    far.partition()
    with pytest.raises(JournalFull, match="took a delete"):
        await stack.delete("t", name)
    assert words(await stack.load("t", name)) == "here"
    far.heal()
    disk.full = False
    assert await stack.delete("t", name)
    assert await stack_words(stack, "t") == []
    await stack.close()


@pytest.mark.parametrize("exclusive", [False, True])
async def test_a_thread_delete_that_the_full_disk_could_not_forget_takes_nothing_that_was_saved_since(
    exclusive: bool, disk: FullDisk, tmp_path: Path
) -> None:
    far, hands = MemoryCheckpointer(), Hands()
    options: dict[str, Any] = {"ack": "journal", "exclusive": exclusive, "clock": hands.clock}
    stack = behind(far, tmp_path / "journal", **options)
    await stack.save(said("before"), "t")
    await stack.delete("t")
    disk.full = True
    await stack.flush()
    await stack.save(said("since"), "t")  # written through
    disk.full = False
    async with behind(far, crashed(tmp_path / "journal"), **options) as heir:
        await heir.flush()
        assert await stack_words(heir, "t") == await far_words(far, "t") == ["since"]
    await stack.close()


async def test_a_journal_of_which_all_was_sent_goes_with_its_process_though_the_disk_is_full(
    disk: FullDisk, tmp_path: Path
) -> None:
    far = MemoryCheckpointer()
    stack = behind(far, tmp_path / "journal", ack="journal")
    await stack.save(said("first"), "t")
    disk.full = True
    await stack.close()
    assert await far_words(far, "t") == ["first"]
    assert [path.name for path in (tmp_path / "journal").iterdir()] == [".lock"]


# -- files that were moved ---------------------------------------------------------------------------------------------


async def test_a_delete_that_files_which_were_moved_and_the_far_store_refuse_changes_nothing(tmp_path: Path) -> None:
    far = FaultyCheckpointer()
    stack = behind(far, tmp_path / "journal")
    state, name = step([], "step")
    await stack.save(state, "t", name)
    (tmp_path / "journal").rename(tmp_path / "moved")
    far.partition()
    with pytest.raises(JournalPoisoned, match="took a delete"):
        await stack.delete("t", name)
    assert words(await stack.load("t", name)) == words(await stack.load("t")) == "step"
    far.heal()
    assert await stack.delete("t", name)
    assert await stack.load("t") is None
    await stack.close()


# -- bounds ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("whole", [False, True])
async def test_deletes_are_bounded_in_number_too_and_written_through_at_the_bound(
    whole: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(write_behind, "_MOST_ROWS", 5)
    far = FaultyCheckpointer()
    async with behind(far, tmp_path / "journal", ack="journal") as stack:
        names = [await stack.save(said("there"), f"t{number}") for number in range(6)]
        await stack.flush()
        far.partition()
        for number, name in enumerate(names[:5]):
            assert await stack.delete(f"t{number}", None if whole else name)
        with pytest.raises(JournalFull, match="took a delete"):
            await stack.delete("t5", None if whole else names[5])
        assert stack.pending().rows == 5
        far.heal()
        assert await stack.delete("t5", None if whole else names[5])
        assert stack.pending().rows == 5
        assert await far_words(far, "t5") == []
        assert await stack.load("t4") is None


# -- wrong arguments ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrong", [5, "", b"t", ["t"]])
async def test_a_flush_of_what_is_no_thread_says_so(wrong: object, tmp_path: Path) -> None:
    async with behind(MemoryCheckpointer(), tmp_path / "journal") as stack:
        with pytest.raises(InvalidArgument, match="nothing was sent"):
            await stack.flush(wrong)  # type: ignore[arg-type]


def test_exclusive_is_not_guessed() -> None:
    with pytest.raises(StackConfigError, match="exclusive='no'"):
        WriteBehindCheckpointer(MemoryCheckpointer(), journal="j", exclusive="no")  # type: ignore[arg-type]
