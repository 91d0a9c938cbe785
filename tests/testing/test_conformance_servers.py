"""The contract kit on the SDK's own checkpointers of servers: it finds what they are known for, on real servers.

Only what was seen every time is asserted. What each name stands for is said by the check itself.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest
from locus.memory.backends.s3 import S3Backend

from locus_tiered.testing import sdk_table
from locus_tiered.testing.conformance import ConformanceReport
from locus_tiered.testing.sdk_table import SdkSubject, conformance_table, same_keys, sdk_reports, sdk_subjects
from locus_tiered.testing.services import Postgres, SeaweedFS, Valkey

pytestmark = pytest.mark.filterwarnings(
    # The kit leaves event loops without closing; what a client then says of its sockets is not our affair.
    "ignore::ResourceWarning",
    "ignore::pytest.PytestUnraisableExceptionWarning",
)


@pytest.fixture(autouse=True)
def swept() -> Iterator[None]:
    """What is left is collected here, under the filter above, and not in the middle of another test."""
    yield
    gc.collect()


LOOPS = {"second_loop_after_close", "second_loop_without_close"}
KEPT = {
    "round_trip",
    "round_trip_of_an_empty_state",
    "round_trip_of_a_large_state",
    "every_checkpoint_is_kept",
    "threads_are_separate",
    "given_id_is_kept",
    "list_limit",
    "delete_one",
    "delete_thread",
    "calls_of_the_agent",
    "calls_of_the_graph",
    "reading_changes_nothing",
    "loaded_state_is_own",
    "saved_state_is_own",
    "unserialisable_state",
    "none_is_refused",
    "saves_at_once_are_all_kept",
    "cancelled_load",
    "cancelling_one_of_two",
    "close_and_use_again",
    "capabilities_are_declared",
    "deletes_single_works",
    "ids_persist",
}
"""What all of them keep."""


def failed(report: ConformanceReport) -> set[str]:
    return {check.name for check in report.checks if not check.ok}


@pytest.fixture
def subjects(
    tmp_path: Path, s3_server: SeaweedFS, valkey_server: Valkey, postgres_server: Postgres
) -> dict[str, SdkSubject]:
    return sdk_subjects(tmp_path, s3_server, valkey_server, postgres_server)


@pytest.fixture
def buckets(s3_server: SeaweedFS, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A bucket per check, all dropped at the end: a server has room for so many."""
    made: list[str] = []
    backend = s3_server.backend

    def noted(**options: str) -> S3Backend:
        made.append((one := backend(**options)).bucket)
        return one

    monkeypatch.setattr(s3_server, "backend", noted)
    yield
    for name in set(made):
        s3_server.drop_bucket(name)


async def test_s3_backend(buckets: None, subjects: dict[str, SdkSubject]) -> None:
    report = await subjects["S3Backend"].report()
    found = failed(report)
    assert {
        # The head: seconds for an order, and every delete moves the pointer to what is listed first.
        "list_is_newest_first",
        "newest_is_the_last_saved",
        "latest_agrees_with_the_list",
        "saving_again_makes_newest",
        "deleting_the_newest_falls_back",
        "deleting_an_older_one_keeps_the_newest",
        "quick_turns_of_an_agent",
        "saves_at_once_agree_on_the_newest",
        # Ids go into the key as they are.
        "thread_ids_with_separators",
        "thread_ids_of_dots",
        "thread_ids_that_are_long",
        "thread_ids_with_nul",
        "checkpoint_ids_with_separators",
        "checkpoint_ids_that_look_internal",
        "checkpoint_ids_with_blanks",
        "pairs_that_join_alike",
        "empty_thread_id",
        "list_threads_gives_ids_back",
        # Declared, and not there or not heeded.
        "query_by_metadata",
        "query_limit",
        "list_threads_pattern",
        "list_with_metadata_is_newest_first",
        "copy_thread",
        "copy_is_listed_as_itself",
        # Three objects per checkpoint, written one after another.
        "cancelled_save",
        "cancelled_delete",
        "unserialisable_metadata",
        "empty_checkpointer",
        "list_negative_limit",
    } <= found
    assert not KEPT & found
    assert not LOOPS & found
    assert "is lost" in report.result("quick_turns_of_an_agent").detail


async def test_redis_checkpointer(subjects: dict[str, SdkSubject]) -> None:
    report = await subjects["redis_checkpointer"].report()
    found = failed(report)
    assert found >= LOOPS | {
        # The latest is a copy that no delete touches.
        "deleting_the_newest_falls_back",
        "thread_emptied_one_by_one",
        "two_handles_agree_on_deletes",
        # The index is read, changed and written by each process on its own.
        "two_handles_lose_nothing",
        "saves_at_once_agree_on_the_newest",
        "cancelled_save",
        "cancelled_delete",
        # Keys are joined with a colon, beside names of its own.
        "pairs_that_join_alike",
        "checkpoint_ids_that_look_internal",
        "empty_checkpoint_id",
        "list_threads",
        "list_threads_pattern",
        "list_threads_forgets_the_deleted",
        "list_threads_gives_ids_back",
        "get_metadata_refuses",
        "list_negative_limit",
    }
    assert not KEPT & found
    assert "acknowledged saves are not listed" in report.result("two_handles_lose_nothing").detail


async def test_pg_checkpointer(subjects: dict[str, SdkSubject]) -> None:
    report = await subjects["PgCheckpointer"].report()
    assert failed(report) == LOOPS | {
        # Refused before anything was written, but with errors of the database.
        f"{what}_ids_{which}"
        for what in ("thread", "checkpoint")
        for which in ("that_are_long", "with_nul", "with_surrogates")
    }
    assert not KEPT & failed(report)


async def test_postgresql_checkpointer(postgres_server: Postgres) -> None:
    report = await SdkSubject(postgres_server.adapter, same_keys).report()
    found = failed(report)
    assert found >= LOOPS | {
        "deleting_the_newest_falls_back",
        "thread_emptied_one_by_one",
        "two_handles_lose_nothing",
        "pairs_that_join_alike",
        "checkpoint_ids_that_look_internal",
        "empty_checkpoint_id",
        "list_threads",
        "list_threads_gives_ids_back",
        "get_metadata_by_id",
        "get_metadata_of_the_latest",
        "query_by_metadata",
        "cancelled_save",
        "list_negative_limit",
    }
    assert not KEPT & found


async def test_the_table_of_the_docs(
    buckets: None,
    s3_server: SeaweedFS,
    valkey_server: Valkey,
    postgres_server: Postgres,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # It starts servers of its own; here the ones that run already will do.
    monkeypatch.setattr(sdk_table, "seaweedfs", lambda: nullcontext(s3_server))
    monkeypatch.setattr(sdk_table, "valkey", lambda: nullcontext(valkey_server))
    monkeypatch.setattr(sdk_table, "postgres", lambda: nullcontext(postgres_server))
    reports = await sdk_reports(only=("round_trip", "empty_thread_id", "get_metadata_refuses"))
    assert conformance_table(reports) == (
        "| law | check | MemoryCheckpointer | FileCheckpointer | S3Backend | redis_checkpointer | PgCheckpointer |\n"
        "|---|---|:-:|:-:|:-:|:-:|:-:|\n"
        "| sdk | `round_trip`: A state with something in every field comes back equal, by its id and as the latest. "
        "| ✓ | ✓ | ✓ | ✓ | ✓ |\n"
        "| 11 | `get_metadata_refuses`: Where metadata_query is not declared, get_metadata raises "
        "NotImplementedError. | ✓ | ✓ | - | ✗ | - |\n"
        "| 12 | `empty_thread_id`: A thread named by empty text is refused or a thread of its own; deleting it "
        "deletes no other. | ✓ | ✗ | ✗ | ✓ | ✓ |\n"
        "| | **kept** | 3 of 3 | 2 of 3 | 1 of 2 | 2 of 3 | 2 of 2 |\n"
    )
