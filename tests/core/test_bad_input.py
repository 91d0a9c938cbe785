"""Bad input gets a clear error of our tree, before anything is written."""

from __future__ import annotations

import pytest
from locus.core.state import AgentState
from locus.memory.backends import MemoryCheckpointer, RedisBackend
from locus.memory.delta import DeltaCheckpointer

from locus_tiered import (
    BoundedMemoryCheckpointer,
    CachedCheckpointer,
    DirectoryCheckpointer,
    GuardedCheckpointer,
    RetryingCheckpointer,
    Tier,
    TieredCheckpointer,
)
from locus_tiered.core.errors import InvalidArgument, LocusTieredError, StackConfigError, UnserialisableState
from locus_tiered.testing.faults import FaultyCheckpointer

STATE = AgentState()


@pytest.fixture(params=["memory", "directory", "cached", "tiered", "retrying"])
def checkpointer(request, tmp_path):
    faulty = FaultyCheckpointer()
    return {
        "memory": lambda: BoundedMemoryCheckpointer(),
        "directory": lambda: DirectoryCheckpointer(tmp_path / "d"),
        "cached": lambda: CachedCheckpointer(faulty),
        "tiered": lambda: TieredCheckpointer(
            BoundedMemoryCheckpointer(), DirectoryCheckpointer(tmp_path / "d"), faulty
        ),
        "retrying": lambda: RetryingCheckpointer(GuardedCheckpointer(faulty)),
    }[request.param]()


@pytest.mark.parametrize("bad", ["", None, 1, b"x", ["t"]])
async def test_bad_ids(checkpointer, bad):
    for call in (
        lambda: checkpointer.save(STATE, bad),
        lambda: checkpointer.load(bad),
        lambda: checkpointer.delete(bad),
        lambda: checkpointer.exists(bad),
        lambda: checkpointer.list_checkpoints(bad),
    ):
        with pytest.raises(InvalidArgument):
            await call()
    if bad is not None:
        for call in (
            lambda: checkpointer.save(STATE, "t", bad),
            lambda: checkpointer.load("t", bad),
            lambda: checkpointer.delete("t", bad),
            lambda: checkpointer.exists("t", bad),
        ):
            with pytest.raises(InvalidArgument):
                await call()
    assert await checkpointer.load("t") is None


@pytest.mark.parametrize("bad", [None, 1, "state", {}, object()])
async def test_bad_states(checkpointer, bad):
    with pytest.raises(InvalidArgument):
        await checkpointer.save(bad, "t")
    assert await checkpointer.load("t") is None


async def test_bad_limits(checkpointer):
    await checkpointer.save(STATE, "t")
    for bad in (-1, 1.5, "3", None, True):
        with pytest.raises(InvalidArgument):
            await checkpointer.list_checkpoints("t", bad)
    assert await checkpointer.list_checkpoints("t", 0) == []
    assert len(await checkpointer.list_checkpoints("t", 10**30)) == 1
    with pytest.raises(InvalidArgument):
        await checkpointer.list_checkpoints("t", limit=-(10**30))


@pytest.mark.parametrize("where", ["state", "metadata", "cycle"])
async def test_what_cannot_be_serialised_fails_the_save_and_changes_nothing(checkpointer, where):
    await checkpointer.save(AgentState(iteration=1), "t", "x")
    cycle: dict = {}
    cycle["self"] = cycle
    bad_state = AgentState(metadata={"x": object()} if where == "state" else cycle if where == "cycle" else {})
    metadata = {"x": object()} if where == "metadata" else None
    with pytest.raises((UnserialisableState, LocusTieredError)):
        await checkpointer.save(bad_state, "t", "x", metadata)
    assert (await checkpointer.load("t", "x")).iteration == 1
    assert (await checkpointer.load("t")).iteration == 1


@pytest.mark.parametrize("days", [-1, float("nan"), float("inf"), "30", None])
async def test_bad_days(days):
    with pytest.raises(InvalidArgument):
        await BoundedMemoryCheckpointer().vacuum(days)


async def test_a_thread_is_not_copied_onto_itself():
    with pytest.raises(InvalidArgument):
        await BoundedMemoryCheckpointer().copy_thread("t", "t")


def bad_stacks():
    memory = BoundedMemoryCheckpointer()
    same = MemoryCheckpointer()
    return {
        "no tiers": (lambda: TieredCheckpointer(), "at least one tier"),
        "not a checkpointer": (lambda: TieredCheckpointer("redis://x"), "not a checkpointer"),
        "None": (lambda: CachedCheckpointer(None), "not a checkpointer"),
        "a class": (lambda: TieredCheckpointer(BoundedMemoryCheckpointer, same), r"write BoundedMemoryCheckpointer\("),
        "a bare store": (lambda: TieredCheckpointer(RedisBackend("redis://x")), "redis_checkpointer"),
        "delta": (lambda: CachedCheckpointer(DeltaCheckpointer(MemoryCheckpointer())), "DeltaCheckpointer"),
        "two names": (lambda: TieredCheckpointer(Tier(memory, name="a"), Tier(same, name="a")), "'a'"),
        "one object twice": (lambda: TieredCheckpointer(same, same), "two tiers use one store"),
        "tier in tier": (lambda: Tier(Tier(same)), "Tier inside a Tier"),
        "behind": (lambda: TieredCheckpointer(Tier(same, write="behind")), "needs a journal"),
        "near and behind": (
            lambda: TieredCheckpointer(Tier(memory, write="behind"), same, journal="x"),
            "the last tier",
        ),
        "write": (lambda: Tier(same, write="later"), '"behind"'),
        "ack": (lambda: Tier(same, ack="turn"), "ack"),
        "journal": (lambda: TieredCheckpointer(same, journal="x"), "journal"),
        "latest": (lambda: TieredCheckpointer(same, latest="newest"), "validate"),
        "negative latest": (lambda: TieredCheckpointer(same, latest=-1), "validate"),
        "on_outage": (lambda: TieredCheckpointer(same, on_outage="cry"), "stale"),
        "zero bytes": (lambda: BoundedMemoryCheckpointer(0), "more than 0"),
        "negative bytes": (lambda: BoundedMemoryCheckpointer(-1), "more than 0"),
        "no unit": (lambda: BoundedMemoryCheckpointer("12 parsecs"), "256MiB"),
        "bytes as float": (lambda: BoundedMemoryCheckpointer(1.5), "not a size"),
        "ttl": (lambda: BoundedMemoryCheckpointer(ttl=0), "above 0"),
        "policy": (lambda: BoundedMemoryCheckpointer(policy=dict), "cachetools"),
        "durability": (lambda: DirectoryCheckpointer("x", durability="forever"), "power"),
        "path": (lambda: DirectoryCheckpointer(""), "path"),
        "attempts": (lambda: RetryingCheckpointer(same, attempts=0), "attempts"),
        "deadline": (lambda: RetryingCheckpointer(same, deadline=-1), "deadline"),
        "repeat": (lambda: RetryingCheckpointer(same, repeat={"fly"}), "repeat"),
        "timeout": (lambda: GuardedCheckpointer(same, timeout=0), "timeout"),
        "timeout name": (lambda: GuardedCheckpointer(same, timeout={"fly": 1}), "no such operation"),
        "concurrency": (lambda: GuardedCheckpointer(same, max_concurrency=0), "max_concurrency"),
        "waiting": (lambda: GuardedCheckpointer(same, max_waiting=-1), "max_waiting"),
    }


@pytest.mark.parametrize("what", bad_stacks())
def test_bad_stacks(what):
    make, says = bad_stacks()[what]
    with pytest.raises(StackConfigError, match=says):
        make()
