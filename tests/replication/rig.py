"""Three replicas that several processes reach, each process over links of its own that can be cut; in virtual time."""

from __future__ import annotations

import asyncio
import functools
import inspect
import tempfile
from collections.abc import Callable, Coroutine
from pathlib import Path
from random import Random
from typing import Any
from unittest.mock import patch

import pytest
from locus.core.state import AgentState

from locus_tiered import ReplicatedCheckpointer
from locus_tiered.core.envelope import KEY
from locus_tiered.core.errors import QuorumError
from locus_tiered.core.ids import marked_name
from locus_tiered.core.traits import Traits
from locus_tiered.testing.damage import damaged
from locus_tiered.testing.faults import FaultyCheckpointer
from locus_tiered.testing.reference import ReferenceCheckpointer
from locus_tiered.testing.simulation_history import state_of
from locus_tiered.testing.simulation_world import ProcessClock, inline_journals
from locus_tiered.testing.virtual_time import run_virtual

DAY = 86_400.0


class OwnLatest(ReferenceCheckpointer):
    """Keeps a copy of what was saved last, and answers ``load(thread)`` with it, deleted or not (as key-value adapters
    do)."""

    def __init__(self) -> None:
        super().__init__()
        self.latest: dict[str, AgentState] = {}

    async def save(self, state: AgentState, thread_id: str, *rest: Any, **more: Any) -> str:
        self.latest[thread_id] = state
        return await super().save(state, thread_id, *rest, **more)

    async def load(self, thread_id: str, checkpoint_id: str | None = None) -> AgentState | None:
        if checkpoint_id is None:
            return self.latest.get(thread_id)
        return await super().load(thread_id, checkpoint_id)


class KeepsTheLatest(OwnLatest):
    """Forgets its copy of the newest with the whole thread only (as key-value adapters do)."""

    async def delete(self, thread_id: str, checkpoint_id: str | None = None) -> bool:
        if checkpoint_id is None:
            self.latest.pop(thread_id, None)
        return await super().delete(thread_id, checkpoint_id)


class Rig:
    """The replicas' stores, and where journals are kept."""

    def __init__(
        self, place: Path, replicas: int = 3, store: Callable[[], ReferenceCheckpointer] | None = None
    ) -> None:
        self.place = place
        self.stores = [(store or ReferenceCheckpointer)() for _ in range(replicas)]
        self.careless: set[int] = set()
        """Replicas whose lists may lack what another process has saved."""
        self._lives = 0

    def process(self, *, journal: str | None = None, ahead: float = 0.0, **options: Any) -> Process:
        """A process; with ``journal``, one that finds what a former one of that journal left."""
        self._lives += 1
        return Process(self, self._lives, journal, ahead, options)

    def wipe(self, number: int) -> None:
        """Have a replica lose everything."""
        self.stores[number].stored.clear()
        self.stores[number]._arrivals.clear()

    async def damage(self, number: int, checkpoint_id: str, thread: str = "t") -> None:
        """Have a replica's copy of a checkpoint be another state than was saved, as only its digest can tell."""
        state = await self.stores[number].load(thread, checkpoint_id)
        assert state is not None
        await self.stores[number].save(damaged(state, Random(1)), thread, checkpoint_id)

    async def spoil(self, number: int, checkpoint_id: str, thread: str = "t") -> None:
        """Have the envelope of a replica's copy be none that was ever written."""
        state = await self.stores[number].load(thread, checkpoint_id)
        assert state is not None
        envelope = {**state.metadata[KEY], "stamp": "nonsense"}
        await self.stores[number].save(state.model_copy(update={"metadata": {KEY: envelope}}), thread, checkpoint_id)

    async def half_saved(self, number: int, first: str | None = None, **options: Any) -> Process:
        """A process whose second save ("alone") was taken by one replica alone, and so was not acknowledged."""
        p = self.process(**options)
        await p.save(1, first)
        await p.rest()
        p.cut(*(other for other in range(len(self.stores)) if other != number))
        with pytest.raises(QuorumError):
            await p.save(2, "alone")
        return p

    async def ids(self, number: int, thread: str = "t") -> list[str]:
        """What a replica itself holds, newest first by its own order."""
        names = await self.stores[number].list_checkpoints(thread, 1000)
        return [name for name in names if marked_name(name) is None]

    async def marks(self, number: int, thread: str = "t") -> dict[str, int]:
        """The same with the marks of the states."""
        found = {}
        for name in await self.ids(number, thread):
            state = await self.stores[number].load(thread, name)
            assert state is not None
            found[name] = state.total_tokens_used
        return found

    async def everywhere(self, thread: str = "t") -> list[list[int]]:
        """The marks of a thread in every replica, newest first."""
        return [list((await self.marks(number, thread)).values()) for number in range(len(self.stores))]

    async def latest(self, number: int, thread: str = "t") -> int | None:
        """What a reader without this library takes for the newest."""
        state = await self.stores[number].load(thread)
        return None if state is None else state.total_tokens_used


class Process:
    """One process: a stack of its own over links of its own."""

    def __init__(self, rig: Rig, life: int, journal: str | None, ahead: float, options: dict[str, Any]) -> None:
        self.clock = ProcessClock(Random(f"rig/{life}"))
        self.clock.wall = ahead
        self.links = []
        for number, store in enumerate(rig.stores):
            link = FaultyCheckpointer(store)
            traits = Traits(
                home=f"store {number}",
                loses_index_rows=number in rig.careless,
                partition=getattr(store, "partition", None),
            )
            link.locus_tiered_traits = traits  # type: ignore[attr-defined]
            self.links.append(link)
        self.stack = ReplicatedCheckpointer(
            *self.links,
            names=[f"r{number}" for number in range(len(self.links))],
            journal=None if journal is None else rig.place / journal,
            clock=self.clock.clock(),
            **options,
        )

    async def save(self, mark: int, name: str | None = None, thread: str = "t", turn: tuple[str, ...] = ()) -> str:
        return await self.stack.save(state_of(mark, turn), thread, name, {"mark": mark})

    async def load(self, name: str | None = None, thread: str = "t") -> int | None:
        state = await self.stack.load(thread, name)
        return None if state is None else state.total_tokens_used

    def cut(self, *numbers: int) -> None:
        for number in numbers:
            self.links[number].partition()

    def heal(self) -> None:
        for link in self.links:
            link.heal()

    async def rest(self, seconds: float = 60.0) -> None:
        """Wait until pauses are over and what runs in the background is done."""
        await asyncio.sleep(seconds)

    async def forget(self) -> None:
        """End, and lose what is not in a journal."""
        self.cut(*range(len(self.links)))
        await self.stack.close()

    def saved(self, number: int, thread: str = "t") -> list[str | None]:
        """The ids that were saved to a replica over this link, in order."""
        calls = self.links[number].matching("save", thread)
        return [call.checkpoint_id for call in calls if call.outcome == "returned"]


Test = Callable[..., Coroutine[Any, Any, None]]


def scenario(test: Test) -> Callable[[], None]:
    """Run a test that takes a :class:`Rig` in virtual time, with a place for journals."""

    def run() -> None:
        with tempfile.TemporaryDirectory() as place, patch.object(tempfile, "tempdir", place), inline_journals():
            run_virtual(lambda: test(Rig(Path(place))))

    functools.update_wrapper(run, test)
    run.__signature__ = inspect.Signature()  # type: ignore[attr-defined]  # no fixtures
    return run


def two(test: Test) -> Callable[[], None]:
    """A scenario over two replicas instead of three."""

    async def story(plain: Rig) -> None:
        await test(Rig(plain.place, replicas=2))

    functools.update_wrapper(story, test)
    return scenario(story)
