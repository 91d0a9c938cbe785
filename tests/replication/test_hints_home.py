"""Hints are for one store: found by it whatever it is called, sent to no other one."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest
from locus.memory.backends.file import FileCheckpointer
from locus.memory.backends.memory import MemoryCheckpointer
from locus.memory.checkpointer import BaseCheckpointer

from locus_tiered import (
    BoundedMemoryCheckpointer,
    DirectoryCheckpointer,
    ReplicatedCheckpointer,
    RetryingCheckpointer,
    TieredCheckpointer,
    load_stack,
)
from locus_tiered.core.errors import JournalLocked
from locus_tiered.core.leaf import Leaf
from locus_tiered.core.sdk_traits import traits_of
from locus_tiered.core.traits import Traits
from locus_tiered.layers.said import hints_path
from locus_tiered.testing import FaultyCheckpointer
from tests.replication.rig import state_of

NAMES = ["paris", "tokyo", "lima"]


def directories(place: Path, order: str, **options: object) -> ReplicatedCheckpointer:
    stores = [DirectoryCheckpointer(place / each) for each in order]
    return ReplicatedCheckpointer(*stores, journal=place / "hints", **options)  # type: ignore[arg-type]


def take_away(path: Path) -> None:
    """A disk that is not mounted: with a file in its place, so that nobody makes a new directory."""
    path.rename(path.with_suffix(".away"))
    path.touch()


def bring_back(path: Path) -> None:
    path.unlink()
    path.with_suffix(".away").rename(path)


async def leave_a_hint(stack: ReplicatedCheckpointer, away: Path, thread: str = "missed") -> None:
    """Save while a directory is away; its hint waits when the stack is closed."""
    await stack.save(state_of(1), "before")
    await stack.close()
    take_away(away)
    await stack.save(state_of(2), thread)
    await stack.close()
    bring_back(away)


async def has(path: Path, thread: str = "missed") -> bool:
    return await DirectoryCheckpointer(path).exists(thread)


async def deliver(stack: ReplicatedCheckpointer) -> None:
    await stack.deliver()
    await stack.close()


# -- a home that no other store has ------------------------------------------------------------------


async def test_a_stack_does_not_get_the_hints_of_another_one(tmp_path: Path) -> None:
    await leave_a_hint(directories(tmp_path, "abc"), tmp_path / "a")
    other = directories(tmp_path, "xyz")
    await other.save(state_of(3), "other")
    await deliver(other)
    assert not any([await has(tmp_path / each) for each in "xyz"])
    await deliver(directories(tmp_path, "abc"))
    assert await has(tmp_path / "a")


@pytest.mark.parametrize("names", [None, NAMES])
async def test_a_store_finds_its_hints_under_another_name(tmp_path: Path, names: list[str] | None) -> None:
    await leave_a_hint(directories(tmp_path, "abc", names=names), tmp_path / "a")
    await deliver(directories(tmp_path, "bca", names=names))
    assert await has(tmp_path / "a")


async def test_the_hints_of_a_directory_are_found_through_other_layers(tmp_path: Path) -> None:
    await leave_a_hint(directories(tmp_path, "abc"), tmp_path / "a")
    legs = [
        RetryingCheckpointer(DirectoryCheckpointer(tmp_path / "c")),
        DirectoryCheckpointer(tmp_path / "b"),
        TieredCheckpointer(BoundedMemoryCheckpointer(), DirectoryCheckpointer(tmp_path / "a")),
    ]
    await deliver(ReplicatedCheckpointer(*legs, journal=tmp_path / "hints"))
    assert await has(tmp_path / "a")


def test_who_has_a_home_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path / "a")
    ours = [DirectoryCheckpointer(each).traits for each in ("a", tmp_path / "a", "link")]
    assert {each.home for each in ours} == {f"checkpoints in {tmp_path.resolve() / 'a'}"}
    theirs = Leaf(FileCheckpointer("a")).traits
    assert theirs.home == f"directory {tmp_path.resolve() / 'a'}"
    assert all(each.home_is_unique for each in (*ours, theirs))


# -- the place that hints had before -----------------------------------------------------------------


def files(place: Path, order: str = "abc") -> list[FileCheckpointer]:
    return [FileCheckpointer(place / each) for each in order]


async def leave_a_homeless_hint(place: Path) -> None:
    """A hint in a journal that does not say whose it is, in a directory that only has the replica's name."""
    links = [FaultyCheckpointer(each) for each in files(place)]
    for link in links:
        traits = replace(traits_of(link.inner), home=None, home_is_unique=False)
        link.locus_tiered_traits = traits  # type: ignore[attr-defined]
    stack = ReplicatedCheckpointer(*links, names=NAMES, journal=place / "hints")
    await stack.save(state_of(1), "before")
    await stack.close()
    links[0].partition()
    await stack.save(state_of(2), "missed")
    await stack.close()
    (place / "hints" / "paris.replica").rename(place / "hints" / "paris")


async def test_hints_of_the_former_place_are_sent(tmp_path: Path) -> None:
    await leave_a_homeless_hint(tmp_path)
    await deliver(ReplicatedCheckpointer(*files(tmp_path), names=NAMES, journal=tmp_path / "hints"))
    assert await files(tmp_path)[0].exists("missed")
    assert [each.name for each in (tmp_path / "hints" / "paris").iterdir()] == [".lock"]


async def test_hints_of_the_former_place_belong_to_the_store_that_took_them_over(tmp_path: Path) -> None:
    await leave_a_homeless_hint(tmp_path)
    links = [FaultyCheckpointer(each) for each in files(tmp_path)]
    for link in links:
        link.locus_tiered_traits = traits_of(link.inner)  # type: ignore[attr-defined]
    links[0].partition()
    stack = ReplicatedCheckpointer(*links, names=NAMES, journal=tmp_path / "hints")
    await stack.load("before")
    await stack.close()
    assert [waiting() for waiting in stack.hints_waiting] == [1, 0, 0]
    await deliver(ReplicatedCheckpointer(*files(tmp_path, "cab"), journal=tmp_path / "hints"))
    assert await files(tmp_path)[0].exists("missed")


async def test_hints_of_another_home_in_the_former_place_are_left_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def stack_of(
        stores: list[BaseCheckpointer], homes: bool
    ) -> tuple[ReplicatedCheckpointer, list[FaultyCheckpointer]]:
        links = [FaultyCheckpointer(store) for store in stores]
        for number, link in enumerate(links if homes else []):
            link.locus_tiered_traits = Traits(home=f"store {number}")  # type: ignore[attr-defined]
        return ReplicatedCheckpointer(*links, names=NAMES, journal=tmp_path / "hints"), links

    theirs: list[BaseCheckpointer] = [MemoryCheckpointer() for _ in NAMES]
    stack, links = stack_of(theirs, homes=True)
    await stack.save(state_of(1), "before")
    await stack.close()
    links[0].partition()
    await stack.save(state_of(2), "missed")
    await stack.close()

    ours: list[BaseCheckpointer] = [MemoryCheckpointer() for _ in NAMES]
    stack, _ = stack_of(ours, homes=False)
    await deliver(stack)
    assert await ours[0].list_checkpoints("missed") == []
    assert "belongs to another home (store 0); left alone" in caplog.text

    stack, _ = stack_of(theirs, homes=True)
    await deliver(stack)
    assert len(await theirs[0].list_checkpoints("missed")) == 1


# -- no home -----------------------------------------------------------------------------------------


def homeless(journal: Path, stores: list[FaultyCheckpointer]) -> ReplicatedCheckpointer:
    return ReplicatedCheckpointer(*stores, journal=journal)


def stores() -> list[FaultyCheckpointer]:
    return [FaultyCheckpointer() for _ in NAMES]


async def test_two_stacks_of_a_process_do_not_share_hints_when_nobody_knows_whose_they_are(tmp_path: Path) -> None:
    mine, yours = stores(), stores()
    first, second = homeless(tmp_path, mine), homeless(tmp_path, yours)
    await first.save(state_of(1), "t")
    with pytest.raises(JournalLocked, match=r"in use in this process for another store.*journal= of its own"):
        await second.save(state_of(2), "t")
    assert not any([await store.exists("t") for store in yours])
    mine[0].partition()
    await first.save(state_of(3), "missed")
    mine[0].heal()
    await first.deliver()
    assert await mine[0].exists("missed")
    await first.close()
    await second.save(state_of(2), "t")
    await second.close()


async def test_two_stacks_over_the_same_stores_share_their_hints(tmp_path: Path) -> None:
    mine = stores()
    first, second = homeless(tmp_path, mine), homeless(tmp_path, mine)
    await first.save(state_of(1), "t")
    mine[0].partition()
    await first.save(state_of(2), "missed")
    await second.load("t")
    mine[0].heal()
    await second.deliver()
    assert await mine[0].exists("missed")
    await first.close()
    await second.close()


def test_one_stack_has_its_hints_in_several_event_loops(tmp_path: Path) -> None:
    mine = stores()
    stack = homeless(tmp_path, mine)
    loops = [asyncio.new_event_loop() for _ in range(3)]
    for number, loop in enumerate(loops):
        loop.run_until_complete(stack.save(state_of(number + 1), f"t{number}"))
    for loop in loops:
        loop.run_until_complete(stack.close())
        loop.close()
    second = homeless(tmp_path, stores())  # nobody is left in a loop that lives
    asyncio.run(second.save(state_of(1), "t"))


def test_who_was_left_in_a_closed_loop_is_in_nobodys_way(tmp_path: Path) -> None:
    first = homeless(tmp_path, stores())
    asyncio.run(first.save(state_of(1), "t"))
    asyncio.run(homeless(tmp_path, stores()).save(state_of(1), "t"))


# -- the names of places -----------------------------------------------------------------------------


def test_every_name_has_a_place_of_its_own(tmp_path: Path) -> None:
    same = "replica-" + "x" * 95
    names = [
        f"{same}-paris",
        f"{same}-tokyo",
        same,
        "漢" * 100,
        "漢" * 101,
        "\U00020000" * 30,
        "/a",
        "\u02fa",
        "\n2",
        "¢",
    ]
    names += ["a/b", "a%2fb", "a.b", "..", "\ud800"]
    for store in (MemoryCheckpointer(), DirectoryCheckpointer(tmp_path)):
        layer = store if isinstance(store, DirectoryCheckpointer) else Leaf(store)
        paths = [hints_path(tmp_path, name, layer) for name in names]
        assert all(path.parent == tmp_path and len(path.name.encode()) <= 255 for path in paths)
        assert len(set(paths)) == (1 if layer is store else len(names))
    assert hints_path(tmp_path, "paris", Leaf(MemoryCheckpointer())).name == "paris.replica"


async def test_replicas_with_long_names_have_hints(tmp_path: Path) -> None:
    mine = stores()
    stack = ReplicatedCheckpointer(*mine, names=["漢" * 100, "漢" * 100 + "2", "c" * 300], journal=tmp_path)
    await stack.save(state_of(1), "t")
    mine[1].partition()
    await stack.save(state_of(2), "missed")
    await stack.close()
    assert [waiting() for waiting in stack.hints_waiting] == [0, 1, 0]
    mine[1].heal()
    await deliver(stack)
    assert [await store.exists("missed") for store in mine] == [True, True, True]


# -- YAML --------------------------------------------------------------------------------------------


def hints_of(stack: object) -> list[Path]:
    assert isinstance(stack, TieredCheckpointer)
    found = [layer for layer in stack.walk() if isinstance(layer, ReplicatedCheckpointer)]
    return [layer.journal for layer in found if layer.journal is not None]


def test_replicated_tiers_of_a_file_do_not_share_hints(tmp_path: Path) -> None:
    def tier(name: str, *more: str) -> str:
        return f"  - replicated: {{replicas: [memory, memory, memory]}}\n    name: {name}\n" + "".join(more)

    text = f"journal: {{path: {tmp_path}/journal}}\ntiers:\n"
    one = hints_of(load_stack(text + "  - memory\n" + tier("far")))
    three = hints_of(load_stack(text + tier("near") + tier("a/b") + tier("far")))
    journal = tmp_path / "journal"
    assert one == [journal]
    assert three == [journal / "near.tier", journal / "a%2fb.tier", journal]
    own = text + tier("near").replace("memory]", f"memory], journal: {tmp_path}/own") + tier("far")
    assert hints_of(load_stack(own)) == [tmp_path / "own", journal]
