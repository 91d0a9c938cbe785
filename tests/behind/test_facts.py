"""What a stack with write-behind says about itself, and what it refuses to be built from."""

from __future__ import annotations

import warnings
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from locus.core.protocols import CheckpointerCapabilities
from locus.memory.backends import FileCheckpointer, MemoryCheckpointer

import locus_tiered
from locus_tiered import (
    BoundedMemoryCheckpointer,
    CachedCheckpointer,
    DirectoryCheckpointer,
    GuardedCheckpointer,
    RetryingCheckpointer,
    Tier,
    TieredCheckpointer,
    WriteBehindCheckpointer,
)
from locus_tiered.core.capabilities import SINGLE_DELETES
from locus_tiered.core.errors import CapabilityMissing, StackConfigError
from locus_tiered.layers.order import StackOrderWarning
from locus_tiered.testing import FaultyCheckpointer
from tests.behind.kit import behind, nothing_pending, said, words

FLAGS = sorted(
    {name for name in dir(CheckpointerCapabilities) if not name.startswith("_")}
    & {field.name for field in fields(CheckpointerCapabilities)}
    if hasattr(CheckpointerCapabilities, "__dataclass_fields__")
    else set(CheckpointerCapabilities.model_fields)
)
OURS = {"branching", "persistent_checkpoint_ids"}
CALLS: dict[str, Any] = {
    "search": lambda stack: stack.search("x"),
    "metadata_query": lambda stack: stack.query_by_metadata("k", "v"),
    "vacuum": lambda stack: stack.vacuum(30),
    "branching": lambda stack: stack.copy_thread("t", "u"),
    "list_threads": lambda stack: stack.list_threads(),
    "list_with_metadata": lambda stack: stack.list_with_metadata(),
}


class Bare(MemoryCheckpointer):
    """Declares nothing."""

    @property
    def capabilities(self) -> CheckpointerCapabilities:
        return CheckpointerCapabilities()


class NoSingleDeletes(MemoryCheckpointer):
    """Cannot delete one checkpoint."""

    @property
    def deletes_single_checkpoints(self) -> bool:
        return False


HOMES = {"bare": Bare, "memory": MemoryCheckpointer, "ours": BoundedMemoryCheckpointer, "faulty": FaultyCheckpointer}


@pytest.mark.parametrize("tiers", [False, True], ids=["layer", "tiers"])
@pytest.mark.parametrize("home", list(HOMES))
async def test_every_flag_is_homes_or_ours_and_does_what_it_says(home: str, tiers: bool, tmp_path: Path) -> None:
    far = HOMES[home]()
    stack = (
        TieredCheckpointer(
            BoundedMemoryCheckpointer(), Tier(far, write="behind", ack="journal", name="far"), journal=tmp_path / "j"
        )
        if tiers
        else behind(far, tmp_path / "j", ack="journal")
    )
    explained, theirs = stack.explain(), TieredCheckpointer(far).explain()
    assert FLAGS
    async with stack:
        await stack.save(said("one"), "t", metadata={"k": "v"})
        for flag in FLAGS:
            granted = explained[flag].granted
            assert granted is getattr(stack.capabilities, flag)
            assert explained[flag].member and (granted or explained[flag].reason)
            if flag in OURS:
                assert granted
            else:
                assert granted is theirs[flag].granted, flag
            if flag not in CALLS:
                continue
            if granted:
                await CALLS[flag](stack)
            else:
                with pytest.raises(CapabilityMissing, match=flag):
                    await CALLS[flag](stack)
        assert words(await stack.load("u")) == "one"
    assert stack.deletes_single_checkpoints is True


async def test_single_deletes_are_homes(tmp_path: Path) -> None:
    assert behind(NoSingleDeletes(), tmp_path / "j").deletes_single_checkpoints is False
    stack = TieredCheckpointer(Tier(NoSingleDeletes(), write="behind"), journal=tmp_path / "j")
    assert stack.deletes_single_checkpoints is False and not stack.explain()[SINGLE_DELETES]


async def test_what_asks_over_all_threads_flushes_first_and_a_list_of_threads_needs_not(tmp_path: Path) -> None:
    far = BoundedMemoryCheckpointer()
    async with behind(far, tmp_path / "j", ack="journal") as stack:
        await stack.save(said("one"), "a b", metadata={"k": "v"})
        await stack.save(said("two"), "b")
        await stack.delete("b")
        assert await stack.list_threads() == ["a b"] and await stack.list_threads(pattern="b*") == []
        assert await far.list_threads() == [] and stack.pending().rows == 2
        [row] = await stack.list_with_metadata()
        assert (row["thread_id"], row["metadata"]) == ("a b", {"k": "v"}) and nothing_pending(stack)
        assert [each["thread_id"] for each in await stack.query_by_metadata("k", "v")] == ["a b"]
        await stack.save(said("three"), "c", "x", metadata={"n": 1})
        row = await stack.get_metadata("c") or {}
        assert (row["checkpoint_id"], row["metadata"]) == ("x", {"n": 1})
        assert await stack.copy_thread("c", "d") and words(await stack.load("d", "x")) == "three"
        assert await stack.copy_thread("nothing", "e") is False


ORDERS = {
    "retry outside": lambda far, path: RetryingCheckpointer(behind(far, path)),
    "guard outside": lambda far, path: GuardedCheckpointer(behind(far, path)),
    "around a cache": lambda far, path: behind(CachedCheckpointer(far), path),
    "around tiers": lambda far, path: behind(TieredCheckpointer(far), path),
    "twice": lambda far, path: behind(behind(far, path), path / "inner"),
}


@pytest.mark.parametrize("order", list(ORDERS))
def test_a_wrong_order_is_warned_of(order: str, tmp_path: Path) -> None:
    with pytest.warns(StackOrderWarning, match=r"around .*: .*(put|keep|give)"):
        ORDERS[order](FaultyCheckpointer(), tmp_path / "j")


def test_the_right_order_is_not_warned_of(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        leg = RetryingCheckpointer(GuardedCheckpointer(FaultyCheckpointer()))
        CachedCheckpointer(behind(leg, tmp_path / "j"))
        TieredCheckpointer(BoundedMemoryCheckpointer(), Tier(leg, write="behind", ack="turn"), journal=tmp_path / "k")
    assert not (tmp_path / "j").exists(), "a constructor touches no file"


OPTIONS: list[dict[str, Any]] = [
    {},
    {"ack": "journal"},
    {"ack": "far", "linger": 5.0, "max_lag": 90.0},
    {"max_pending": "1GiB", "drain_timeout": 2.5, "on_outage": "journal", "exclusive": True},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_a_repr_builds_the_same_again(options: dict[str, Any]) -> None:
    names = {**vars(locus_tiered), "FileCheckpointer": FileCheckpointer}
    stack = WriteBehindCheckpointer(DirectoryCheckpointer("home"), journal="j", **options)
    again = eval(repr(stack), names)  # noqa: S307
    assert repr(again) == repr(stack)
    for option, value in options.items():
        assert getattr(again, option) == getattr(stack, option)
        assert option in repr(stack), value
    tiers = TieredCheckpointer(
        BoundedMemoryCheckpointer("1MiB"),
        Tier(DirectoryCheckpointer("home"), write="behind", ack=options.get("ack", "turn")),
        journal="j",
    )
    assert repr(eval(repr(tiers), names)) == repr(tiers)  # noqa: S307


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "ack": ({"ack": "quorum"}, "ack='quorum'"),
    "ack of a wrong type": ({"ack": None}, "ack=None"),
    "on_outage": ({"on_outage": "stale"}, "on_outage='stale'"),
    "linger below 0": ({"linger": -1}, "linger=-1"),
    "linger as text": ({"linger": "30s"}, "linger="),
    "linger above max_lag": ({"linger": 61.0}, "more than max_lag"),
    "max_lag": ({"max_lag": 0}, "max_lag"),
    "no max_lag": ({"max_lag": None}, "max_lag"),
    "drain_timeout": ({"drain_timeout": float("nan")}, "drain_timeout"),
    "max_pending": ({"max_pending": "many"}, "max_pending"),
    "journal that is empty": ({"journal": ""}, "journal"),
    "journal that is no path": ({"journal": 7}, "journal"),
    "journal with NUL": ({"journal": "a\0b"}, "journal"),
}


@pytest.mark.parametrize("mistake", list(BAD))
def test_a_mistake_is_said_when_the_stack_is_built(mistake: str) -> None:
    options, says = BAD[mistake]
    with pytest.raises(StackConfigError, match=says):
        WriteBehindCheckpointer(MemoryCheckpointer(), **{"journal": "j", **options})


BAD_TIERS: dict[str, tuple[Any, str]] = {
    "behind without a journal": (lambda: TieredCheckpointer(Tier(MemoryCheckpointer(), write="behind")), "journal"),
    "a journal for nobody": (lambda: TieredCheckpointer(MemoryCheckpointer(), journal="j"), "journal="),
    "behind that is not home": (
        lambda: TieredCheckpointer(Tier(MemoryCheckpointer(), write="behind"), MemoryCheckpointer(), journal="j"),
        "last tier",
    ),
    "ack without behind": (lambda: Tier(MemoryCheckpointer(), ack="turn"), "behind"),
    "a wrong ack": (lambda: Tier(MemoryCheckpointer(), write="behind", ack="all"), "ack='all'"),  # type: ignore[arg-type]
    "a wrong write": (lambda: Tier(MemoryCheckpointer(), write="back"), "write='back'"),  # type: ignore[arg-type]
    "no checkpointer": (lambda: Tier(7, write="behind"), "not a checkpointer"),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("mistake", list(BAD_TIERS))
def test_a_mistake_in_the_tiers_is_said_when_the_stack_is_built(mistake: str) -> None:
    make, says = BAD_TIERS[mistake]
    with pytest.raises(StackConfigError, match=says):
        make()
