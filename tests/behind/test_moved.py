"""A journal whose files are removed, moved, or unlocked by others while in use; a program that moves elsewhere."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from locus_tiered import DirectoryCheckpointer
from locus_tiered.core.errors import JournalPoisoned
from locus_tiered.testing import FaultyCheckpointer, ReferenceCheckpointer
from tests.behind.kit import behind, far_words, said, stack_words, step, words
from tests.behind.process import Process


def _rename(journal: Path) -> None:
    journal.rename(journal.with_name("moved"))


def _remove_log(journal: Path) -> None:
    for log in journal.glob("*/journal.db-wal"):
        log.unlink()


GONE: dict[str, Callable[[Path], object]] = {"removed": shutil.rmtree, "moved": _rename, "without its log": _remove_log}


@pytest.mark.parametrize("how", GONE)
async def test_nothing_is_acknowledged_by_files_that_nobody_will_find(how: str, tmp_path: Path) -> None:
    far = FaultyCheckpointer()
    stack = behind(far, tmp_path / "a", ack="journal")
    await stack.save(said("one"), "t")
    GONE[how](tmp_path / "a")
    far.partition()
    with pytest.raises(JournalPoisoned, match="removed or moved"):
        await stack.save(said("not kept"), "t")
    far.heal()
    await stack.save(said("two"), "t")
    assert await far_words(far.inner, "t") == ["one", "two"], "written through"
    await stack.close()
    await stack.save(said("three"), "t")
    assert stack.pending().poisoned is None, "a new one"
    await stack.close()
    # What was not acknowledged may be found all the same, where the file was still there.
    found = [word for word in await far_words(far.inner, "t") if how != "without its log" or word != "not kept"]
    assert found == ["one", "two", "three"]
    assert words(await stack.load("t")) == "three"
    await stack.close()


async def test_a_journal_whose_lock_file_a_cleaner_removed_is_not_taken_from_its_process(tmp_path: Path) -> None:
    home = tmp_path / "home"
    async with behind(DirectoryCheckpointer(home), tmp_path / "a", ack="journal") as stack:
        state, name = step([], "step")
        await stack.save(state, "t", name)
        for lock in (tmp_path / "a").glob("*/lock"):
            lock.unlink()
        with Process(home, tmp_path / "a") as other:
            assert await other.do("load", "t") is None
            await other.do("flush")
        await stack.save(said("end"), "t")
        assert await stack.delete("t", name)
        assert await stack_words(stack, "t") == ["end"]
    assert await far_words(DirectoryCheckpointer(home), "t") == ["end"]


async def test_a_program_that_changes_its_directory_keeps_its_journal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    far = FaultyCheckpointer()
    monkeypatch.chdir(tmp_path)
    stack = behind(far, Path("journal"), ack="journal", drain_timeout=0.1)
    await stack.load("t")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    far.partition()
    await stack.save(said("one"), "t")
    await stack.close()
    assert len(list((tmp_path / "journal").glob("*/journal.db"))) == 1
    assert not os.listdir(tmp_path / "elsewhere")
    far.heal()
    assert words(await stack.load("t")) == "one"
    await stack.close()
    assert await far_words(far.inner, "t") == ["one"]
    assert "journal='journal'" in repr(behind(ReferenceCheckpointer(), Path("journal")))
