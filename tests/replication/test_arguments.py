"""What a user gives to a replicated stack is checked before it does anything."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from locus.memory.backends.adapters import StorageBackendAdapter
from locus.memory.backends.file import FileCheckpointer
from locus.memory.backends.memory import MemoryCheckpointer
from locus.memory.backends.pg_checkpointer import PgCheckpointer
from locus.memory.backends.redis import RedisBackend
from locus.memory.backends.s3 import S3Backend

from locus_tiered import (
    BoundedMemoryCheckpointer,
    CachedCheckpointer,
    DirectoryCheckpointer,
    GuardedCheckpointer,
    ReplicatedCheckpointer,
    RetryingCheckpointer,
    TieredCheckpointer,
    load_stack,
)
from locus_tiered.core.errors import CapabilityMissing, StackConfigError
from locus_tiered.core.ids import RESERVED
from locus_tiered.core.traits import Traits
from locus_tiered.testing import FaultyCheckpointer
from tests.replication.rig import state_of


def three() -> list[MemoryCheckpointer]:
    return [MemoryCheckpointer() for _ in range(3)]


# -- scrub -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        {"threads": [5]},
        {"threads": [None]},
        {"threads": ["t", b"t"]},
        {"threads": b"t"},
        {"threads": "t"},
        {"threads": 5},
        {"threads": [""]},
        {"threads": {"t": 1}},
        {"threads": iter(["t"])},
        {"threads": [f"{RESERVED}tombstones"]},
        {"progress": 5},
        {"progress": "print"},
        {"rate": 0},
        {"rate": "fast"},
    ],
)
async def test_scrub_refuses(arguments: dict[str, Any]) -> None:
    links = [FaultyCheckpointer() for _ in range(3)]
    stack = ReplicatedCheckpointer(*links)
    with pytest.raises(StackConfigError, match=next(iter(arguments))) as raised:
        await stack.scrub(**arguments)
    assert raised.value.hint
    assert not any(link.calls for link in links)


@pytest.mark.parametrize("threads", [["t"], ("t", "t"), {"t"}, {"t": None}.keys(), [], None])
async def test_scrub_takes(threads: Any) -> None:
    seen: list[object] = []
    async with ReplicatedCheckpointer(*three()) as stack:
        await stack.save(state_of(1), "t")
        await stack.scrub(threads=threads, progress=seen.append)
    assert len(seen) == (0 if threads == [] else 1)


# -- names -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "names",
    [5, "abc", b"abc", {"a": 1, "b": 2, "c": 3}, {"a", "b", "c"}, iter("abc"), range(3), [1, 2, 3], ["a", "b", ""],
     ["a", "b", " "], ["a", "b", None], ["a", "b"], ["a", "b", "b"], []],
)  # fmt: skip
def test_names_are_a_list_of_words(names: Any) -> None:
    with pytest.raises(StackConfigError, match="names=") as raised:
        ReplicatedCheckpointer(*three(), names=names)
    assert raised.value.hint


def test_names_are_taken_in_their_order() -> None:
    for names in (["c", "a", "b"], ("c", "a", "b")):
        stack = ReplicatedCheckpointer(*three(), names=names)
        assert [each.name for each in stack.replicas] == ["c", "a", "b"]
    assert [each.name for each in ReplicatedCheckpointer(*three()).replicas] == ["memory", "memory-2", "memory-3"]


# -- the same store twice ----------------------------------------------------------------------------


def test_the_same_store_twice_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shared, ours = MemoryCheckpointer(), BoundedMemoryCheckpointer()
    redis = RedisBackend()
    pairs = [
        (DirectoryCheckpointer("a"), DirectoryCheckpointer(tmp_path / "a")),
        (FileCheckpointer("a"), FileCheckpointer(tmp_path / "b" / ".." / "a")),
        (DirectoryCheckpointer("a"), TieredCheckpointer(BoundedMemoryCheckpointer(), DirectoryCheckpointer("a"))),
        (RetryingCheckpointer(shared), RetryingCheckpointer(shared)),
        (shared, RetryingCheckpointer(shared)),
        (RetryingCheckpointer(ours), RetryingCheckpointer(ours)),
        (StorageBackendAdapter(redis), StorageBackendAdapter(redis)),
    ]
    for one, other in pairs:
        with pytest.raises(StackConfigError, match="replicas 2 and 3 are the same store twice") as raised:
            ReplicatedCheckpointer(MemoryCheckpointer(), one, other)
        assert raised.value.hint


def test_what_is_not_surely_one_store_is_taken(tmp_path: Path) -> None:
    homes = [FaultyCheckpointer() for _ in range(3)]
    for each in homes:
        each.locus_tiered_traits = Traits(home="a bucket of some name")  # type: ignore[attr-defined]
    ReplicatedCheckpointer(*homes)
    servers = [S3Backend("agents", endpoint_url=f"http://{each}:8333") for each in ("paris", "tokyo", "lima")]
    ReplicatedCheckpointer(*servers)
    ReplicatedCheckpointer(*(StorageBackendAdapter(RedisBackend()) for _ in range(3)))
    ReplicatedCheckpointer(
        DirectoryCheckpointer(tmp_path), DirectoryCheckpointer(tmp_path / "b"), FileCheckpointer(tmp_path)
    )


def test_a_file_says_where_a_store_is_twice() -> None:
    text = "tiers: [{replicated: {replicas: [memory, {directory: {path: x}}, {directory: {path: ./x}}]}}]"
    with pytest.raises(StackConfigError, match=r"1:\d+, tiers\[0\].replicated: .*the same store twice"):
        load_stack(text)


# -- the quorum --------------------------------------------------------------------------------------


@pytest.mark.parametrize("quorum", ["2", 0, 4, True, 1.0, "most", None])
def test_a_quorum_is_a_word_or_a_number(quorum: Any) -> None:
    with pytest.raises(StackConfigError, match="write_quorum"):
        ReplicatedCheckpointer(*three(), write_quorum=quorum)


def test_a_quorum_from_a_variable_is_a_number() -> None:
    # What comes from a variable is text: so a file takes digits, here as everywhere, and code a number.
    text = "tiers: [{replicated: {replicas: [memory, memory, memory], write_quorum: '${QUORUM}'}}]"
    stack = load_stack(text, env={"QUORUM": "2"})
    assert next(each.write_quorum for each in stack.walk() if isinstance(each, ReplicatedCheckpointer)) == 2
    with pytest.raises(StackConfigError, match="is not a quorum"):
        load_stack(text, env={"QUORUM": "two"})


def redis(**options: Any) -> StorageBackendAdapter:
    return StorageBackendAdapter(RedisBackend(url="redis://h", prefix=f"{options}", **options))


def test_a_replica_that_lets_things_expire_is_refused() -> None:
    expiring = RetryingCheckpointer(GuardedCheckpointer(redis(ttl_seconds=60)))
    with pytest.raises(StackConfigError, match=r"replica tokyo lets everything expire after 60 s: .*call vacuum"):
        ReplicatedCheckpointer(redis(), expiring, MemoryCheckpointer(), names=["paris", "tokyo", "lima"])
    ReplicatedCheckpointer(redis(), redis(ttl_seconds=None), MemoryCheckpointer())
    with pytest.raises(StackConfigError, match="replica directory lets everything expire after 5 s"):
        ReplicatedCheckpointer(redis(), DirectoryCheckpointer("/nowhere", ttl=5))
    with pytest.raises(StackConfigError, match="replica memory lets everything expire after 5 s"):
        ReplicatedCheckpointer(BoundedMemoryCheckpointer(ttl=5), redis())


def test_one_that_keeps_the_last_few_beside_others_is_refused() -> None:
    def pg(table: str, keep: int | None) -> PgCheckpointer:
        return PgCheckpointer("postgresql://h/d", table=table, keep_checkpoints=keep)

    with pytest.raises(StackConfigError, match=r"replica pg-2 keeps only the last checkpoints of a thread"):
        ReplicatedCheckpointer(pg("a", None), pg("b", 5), pg("c", None))
    ReplicatedCheckpointer(pg("a", 5), pg("b", 5), pg("c", 5))


async def test_a_replicas_name_is_told_from_inside_its_leg() -> None:
    def leg() -> RetryingCheckpointer:
        return RetryingCheckpointer(GuardedCheckpointer(FaultyCheckpointer()))

    paris, tokyo = leg(), leg()
    stack = ReplicatedCheckpointer(paris, tokyo, names=["paris", "tokyo"], write_quorum="all")
    lacking = stack.explain()["search"]
    assert (lacking.granted, lacking.member) == (False, "paris")
    with pytest.raises(CapabilityMissing, match="which paris lacks"):
        await stack.search("x")
    assert [verdict.member for verdict in (paris.explain()["vacuum"], tokyo.explain()["vacuum"])] == ["paris", "tokyo"]


async def test_a_replica_of_several_members_is_named_with_the_one_that_lacks_it() -> None:
    paris = CachedCheckpointer(FaultyCheckpointer())
    stack = ReplicatedCheckpointer(paris, FaultyCheckpointer(), names=["paris", "tokyo"], write_quorum="all")
    lacking = stack.explain()["search"]
    assert (lacking.granted, lacking.member) == (False, "paris (FaultyCheckpointer)")
    with pytest.raises(CapabilityMissing, match=r"which paris \(FaultyCheckpointer\) lacks"):
        await stack.search("x")
