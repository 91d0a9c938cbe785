"""The contract kit as a pytest class: on stores that keep it, on the SDK's own, and on wrong uses of it."""

from __future__ import annotations

from pathlib import Path

import pytest
from locus.memory.backends.file import FileCheckpointer
from locus.memory.backends.memory import MemoryCheckpointer
from locus.memory.checkpointer import BaseCheckpointer

from locus_tiered.testing.checks import all_checks
from locus_tiered.testing.contract import CheckpointerContract
from tests.testing.kit_stores import BareStore, ReferenceStore, StoreWithoutDelete

pytest_plugins = ["pytester"]


class TestReferenceStore(CheckpointerContract):
    skips = False

    @pytest.fixture
    def checkpointer(self) -> BaseCheckpointer:
        return ReferenceStore()

    def reopen(self, checkpointer: ReferenceStore) -> BaseCheckpointer:
        return ReferenceStore(checkpointer)


class TestBareStore(CheckpointerContract):
    skips = False

    @pytest.fixture
    async def checkpointer(self) -> BaseCheckpointer:
        return BareStore()

    async def reopen(self, checkpointer: BareStore) -> BaseCheckpointer:
        return BareStore(checkpointer)


class TestStoreWithoutDelete(CheckpointerContract):
    skips = False

    @pytest.fixture
    def checkpointer(self) -> BaseCheckpointer:
        return StoreWithoutDelete()


class TestMemoryCheckpointer(CheckpointerContract):
    skips = False
    known_faults = {
        "list_negative_limit": "slices the list",
        "list_threads_forgets_the_emptied": "keeps the thread's empty dictionary",
        "loaded_state_is_own": "from_checkpoint shares nested values with the stored dictionary",
    }

    @pytest.fixture
    def checkpointer(self) -> BaseCheckpointer:
        return MemoryCheckpointer()


class TestFileCheckpointer(CheckpointerContract):
    skips = False
    known_faults = {
        "list_negative_limit": "slices the list",
        "list_threads_limit": "a limit of 0 gives one thread",
        "unserialisable_metadata": "written as text by default=str",
        "empty_thread_id": "the empty thread id is the base directory",
        "pairs_that_join_alike": "every separator becomes an underscore",
        "list_threads_gives_ids_back": "threads share a directory",
        "second_loop_after_close": "its lock belongs to the loop that first contended for it",
        "second_loop_without_close": "its lock belongs to the loop that first contended for it",
    } | {
        f"{what}_ids_{which}": "what is not alphanumeric becomes an underscore"
        for what in ("thread", "checkpoint")
        for which in ("with_separators", "that_look_internal", "in_unicode", "with_blanks", "with_surrogates")
    }
    known_faults |= {f"{what}_ids_that_are_long": "OSError" for what in ("thread", "checkpoint")}

    @pytest.fixture
    def checkpointer(self, tmp_path: Path) -> BaseCheckpointer:
        return FileCheckpointer(tmp_path)

    def reopen(self, checkpointer: FileCheckpointer) -> BaseCheckpointer:
        return FileCheckpointer(checkpointer.base_dir)


def test_there_is_a_test_for_every_check_under_its_own_name() -> None:
    for one in all_checks():
        test = getattr(CheckpointerContract, f"test_{one.name}")
        assert test.__name__ == f"test_{one.name}"
        assert test.__doc__ == one.description


def test_a_known_fault_that_is_no_check_is_refused() -> None:
    with pytest.raises(TypeError, match="names no check: typo"):
        type("TestMine", (CheckpointerContract,), {"known_faults": {"typo": "no"}})


_SUITE = """
import pytest
from locus_tiered.testing.contract import CheckpointerContract
from tests.testing.kit_faults import KeepsACopyOfTheLatest
from tests.testing.kit_stores import BareStore

class TestSpoiled(CheckpointerContract):
    @pytest.fixture
    def checkpointer(self):
        return KeepsACopyOfTheLatest()

class TestKnown(TestSpoiled):
    known_faults = {"thread_emptied_one_by_one": "issue 7", "given_id_is_kept": "issue 8"}

class TestBare(CheckpointerContract):
    @pytest.fixture
    def checkpointer(self):
        return BareStore()

class TestForgotten(CheckpointerContract):
    pass
"""


def test_what_an_author_reads(pytester: pytest.Pytester) -> None:
    pytester.makeini("[pytest]\nasyncio_default_fixture_loop_scope = function\n")
    pytester.makepyfile(_SUITE)
    names = {
        "TestSpoiled": ("thread_emptied_one_by_one", "given_id_is_kept"),
        "TestKnown": ("thread_emptied_one_by_one", "given_id_is_kept"),
        "TestBare": ("vacuum_keeps_the_young", "vacuum_refuses", "two_handles_lose_nothing"),
        "TestForgotten": ("given_id_is_kept",),
    }
    file = "test_what_an_author_reads.py"
    tests = [f"{file}::{group}::test_{name}" for group, checks in names.items() for name in checks]
    result = pytester.runpytest_inprocess(*tests, "-p", "no:cacheprovider", "-rsxX")
    result.assert_outcomes(passed=2, failed=2, xfailed=1, skipped=2, errors=1)
    result.stdout.fnmatch_lines_random(
        [
            "*all checkpoints were deleted, load('t') still gives 'save 2 of t'*",
            "*issue 7*",
            "*given_id_is_kept passes: take it out of known_faults (issue 8)*",
            "*the checkpointer does not have vacuum*",
            "*no reopen was given*",
            "*TestForgotten needs a fixture named checkpointer*",
        ]
    )
