"""Law 1 and everything that follows from it: the state machine on every store, every layer, and whole stacks.

``LOCUS_TIERED_EXAMPLES`` raises the number of programs (the default keeps the suite short).
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from locus.memory.backends import FileCheckpointer, MemoryCheckpointer
from locus.memory.checkpointer import BaseCheckpointer

from locus_tiered import (
    BoundedMemoryCheckpointer,
    CachedCheckpointer,
    DirectoryCheckpointer,
    GuardedCheckpointer,
    ReplicatedCheckpointer,
    RetryingCheckpointer,
    Tier,
    TieredCheckpointer,
    WriteBehindCheckpointer,
)
from locus_tiered.testing.faults import FaultyCheckpointer, ReferenceCheckpointer, on
from locus_tiered.testing.machine import Pair, checkpointer_machine, run_machine

EXAMPLES = int(os.environ.get("LOCUS_TIERED_EXAMPLES", "12"))


def fresh() -> Path:
    """A directory of this example's own, below one that the test removes."""
    return Path(tempfile.mkdtemp())


def directory(path: Path, **options: Any) -> DirectoryCheckpointer:
    return DirectoryCheckpointer(path, durability="process", **options)


def tied() -> FaultyCheckpointer:
    """A home that lists like S3: within a second, by name."""
    return FaultyCheckpointer(script=[on("save", times=None).tie()])


def three_tiers(home: BaseCheckpointer | Tier, **options: Any) -> TieredCheckpointer:
    return TieredCheckpointer(BoundedMemoryCheckpointer(), directory(fresh()), home, **options)


def replicated(**options: Any) -> ReplicatedCheckpointer:
    return ReplicatedCheckpointer(tied(), ReferenceCheckpointer(), directory(fresh()), **options)


def behind(home: BaseCheckpointer, **options: Any) -> WriteBehindCheckpointer:
    return WriteBehindCheckpointer(home, journal=fresh(), **options)


def two_processes_on_a_directory() -> Pair:
    path = fresh()
    return Pair(directory(path), directory(path))


def two_stacks(home: BaseCheckpointer) -> Pair:
    return Pair(three_tiers(home), three_tiers(home))


SUBJECTS: dict[str, tuple[Callable[[], Any], dict[str, Any]]] = {
    # stores
    "memory": (BoundedMemoryCheckpointer, {"loops": "abandoned"}),
    "small memory": (lambda: BoundedMemoryCheckpointer("24KiB"), {"bounded": True}),
    "directory": (lambda: directory(fresh()), {"loops": "abandoned"}),
    "two processes on a directory": (two_processes_on_a_directory, {"forgives": {"blind saves"}}),
    # layers
    "cached": (lambda: CachedCheckpointer(ReferenceCheckpointer()), {"loops": "abandoned"}),
    "cached, exclusive": (lambda: CachedCheckpointer(ReferenceCheckpointer(), latest="exclusive"), {}),
    "cached, small": (
        lambda: CachedCheckpointer(ReferenceCheckpointer(), near=BoundedMemoryCheckpointer("16KiB")),
        {},
    ),
    "cached by a file": (lambda: CachedCheckpointer(ReferenceCheckpointer(), near=FileCheckpointer(fresh())), {}),
    "retrying": (lambda: RetryingCheckpointer(ReferenceCheckpointer()), {}),
    "guarded": (lambda: GuardedCheckpointer(ReferenceCheckpointer()), {}),
    "write-behind, turn": (lambda: behind(ReferenceCheckpointer()), {"loops": "abandoned"}),
    "write-behind, journal": (lambda: behind(ReferenceCheckpointer(), ack="journal"), {"loops": "abandoned"}),
    "write-behind, journal, exclusive": (
        lambda: behind(ReferenceCheckpointer(), ack="journal", exclusive=True),
        {},
    ),
    "write-behind, far": (lambda: behind(ReferenceCheckpointer(), ack="far"), {}),
    "write-behind, hasty": (lambda: behind(ReferenceCheckpointer(), ack="journal", linger=0), {}),
    "replicated": (lambda: replicated(), {"loops": "abandoned"}),
    "replicated, read by quorum": (lambda: replicated(read="quorum"), {"loops": "abandoned"}),
    "replicated, hedged, all": (lambda: replicated(read="hedged", write_quorum="all"), {}),
    "two replicas": (
        lambda: ReplicatedCheckpointer(ReferenceCheckpointer(), ReferenceCheckpointer(), journal=fresh()),
        {"loops": "abandoned"},
    ),
    # whole stacks
    "memory, write-behind, replicated": (
        lambda: TieredCheckpointer(
            BoundedMemoryCheckpointer(), Tier(replicated(read="quorum"), write="behind"), journal=fresh()
        ),
        {},
    ),
    "memory, directory, home with ties behind a journal": (
        lambda: three_tiers(Tier(tied(), write="behind"), journal=fresh()),
        {"loops": "abandoned"},
    ),
    "memory, directory, sdk memory behind a journal, exclusive": (
        lambda: three_tiers(
            Tier(MemoryCheckpointer(), write="behind", ack="journal"), journal=fresh(), latest="exclusive"
        ),
        {},
    ),
    "memory, directory, home with ties": (lambda: three_tiers(tied()), {"loops": "abandoned"}),
    "memory, directory, file": (lambda: three_tiers(FileCheckpointer(fresh())), {"loops": "abandoned"}),
    "memory, directory, sdk memory, exclusive": (
        lambda: three_tiers(MemoryCheckpointer(), latest="exclusive"),
        {},
    ),
    "tiers over retry over guard": (
        lambda: three_tiers(RetryingCheckpointer(GuardedCheckpointer(tied()))),
        {},
    ),
    "two stacks on one home": (
        lambda: two_stacks(tied()),
        {"forgives": {"ids elsewhere", "blind saves", "emptied threads"}},
    ),
}


@pytest.mark.parametrize("subject", SUBJECTS)
def test_law_1_answers_like_a_dictionary(subject, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    factory, options = SUBJECTS[subject]
    run_machine(checkpointer_machine(factory, name=subject.title().replace(",", ""), **options), max_examples=EXAMPLES)
