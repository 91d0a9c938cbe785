"""The processes of a simulation, and the clients in them that save, read and delete as agents and people do."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from typing import Any

from locus.core.state import AgentState

from locus_tiered.core.envelope import KEY, Envelope
from locus_tiered.core.errors import LocusTieredError
from locus_tiered.core.layer import Layer
from locus_tiered.core.leaf import Leaf
from locus_tiered.core.stamp import is_stamp
from locus_tiered.layers.breaker import BreakerPolicy
from locus_tiered.layers.guarded import GuardedCheckpointer
from locus_tiered.layers.replicated import ReplicatedCheckpointer
from locus_tiered.layers.retrying import RetryingCheckpointer
from locus_tiered.testing.simulation_history import History, Reader, Version, state_of
from locus_tiered.testing.simulation_setup import Setup
from locus_tiered.testing.simulation_world import (
    Link,
    Owners,
    ProcessClock,
    Site,
    Weather,
    abandon_journals,
    of_process,
)

__all__ = ["Process", "World"]

MOST = 10_000
TURNS, NAMED = ("t0", "t1"), ("n0", "n1")
"""Threads of agents, whose turns end with a save without a name; and threads with names that are saved again."""


@dataclass(slots=True)
class World:
    """What everybody in a simulation shares."""

    setup: Setup
    place: Path
    history: History
    sites: list[Site]
    seen: Counter[str]
    trace: list[str]
    problems: list[str] = field(default_factory=list)
    links: list[Link] = field(default_factory=list)
    owners: Owners | None = None
    marks: int = 0

    def note(self, what: str) -> None:
        self.trace.append(f"{asyncio.get_running_loop().time():10.3f} {what}")

    def problem(self, what: str) -> None:
        self.note(f"!! {what}")
        self.problems.append(what)

    @property
    def is_broken(self) -> bool:
        return bool(self.problems)

    def next_mark(self) -> int:
        self.marks += 1
        return self.marks

    def weak(self, thread: str) -> set[int]:
        """Marks of a thread that an answer may do without.

        Such are those that so few good replicas hold (see ``Setup``), and those that an old delete has just taken from
        a replica.
        """
        weak = {version.mark for version in self.history.of(thread) if version.mark in self.history.taken}
        if self.setup.evil != "careless":
            return weak
        good = self.sites[:-1]
        for version in self.history.of(thread):
            holders = sum(self._holds(site, version) for site in good)
            if holders < self.setup.votes:
                weak.add(version.mark)
        return weak

    def _holds(self, site: Site, version: Version) -> bool:
        """Whether a replica holds this version of a checkpoint, or a newer one."""
        text = site.store.stored.get(version.thread, {}).get(version.id)
        held = None if text is None else self.history.versions.get(json.loads(text.state).get("total_tokens_used", 0))
        return held is not None and held.stamp >= version.stamp

    def is_intact(self, state: AgentState) -> bool:
        """Whether a replica's copy is what was saved, envelope included."""
        version, envelope = self.history.versions.get(state.total_tokens_used), Envelope.read(state.metadata)
        if version is None or envelope is None or envelope.stamp != version.stamp:
            return False
        return _bare(state) == state_of(version.mark, version.iterations)

    async def ruined(self, thread: str) -> set[str]:
        """Ids of a thread under which a damaged copy is the only one that there is of a save never acknowledged."""
        held = [(name, state) for site in self.sites for name, state in (await site.held(thread)).items()]
        intact = {self.history.versions[state.total_tokens_used].stamp for _, state in held if self.is_intact(state)}
        acknowledged = {version.stamp for version in self.history.of(thread) if version.done}
        damaged = [(name, Envelope.read(state.metadata)) for name, state in held if not self.is_intact(state)]
        safe = intact | acknowledged
        # Where not even the envelope is left, a name that is a stamp tells.
        stamps = [
            (name, envelope.stamp if envelope else name if is_stamp(name) else None) for name, envelope in damaged
        ]
        return {name for name, stamp in stamps if stamp is not None and stamp not in safe}

    async def unequal(self, thread: str) -> list[str]:
        """What is wrong with what the replicas themselves hold of a thread, now that all was mended."""
        problems, first = [], None
        ruined = await self.ruined(thread)
        lost = ruined | {name for site in self.sites for name in site.lost.get(thread, ())}  # no index, no promise
        for site in self.sites:
            held = await site.held(thread)
            marks = {name: state.total_tokens_used for name, state in held.items() if name not in lost}
            stamps = {}
            for name, state in held.items():
                envelope = Envelope.read(state.metadata)
                stamps[name] = envelope.stamp if envelope else ""
                version = self.history.versions.get(state.total_tokens_used)
                if name in ruined:
                    continue
                if version is None or _bare(state) != state_of(version.mark, version.iterations):
                    problems.append(f"BODY {site.name} {thread}/{name}: not what was saved")
                elif stamps[name] != version.stamp:
                    problems.append(f"STAMP {site.name} {thread}/{name}: another one than it was saved with")
            wrong = self.history.must_not(thread, marks)
            problems += [f"{site.name}: {each}" for each in wrong if not any(name in each for name in lost)]
            if first is not None and marks != first:
                problems.append(f"UNEQUAL {thread}: {self.sites[0].name} has {first}, {site.name} has {marks}")
            first = marks if first is None else first
            newest = max(set(stamps) - lost | ruined & set(stamps), key=lambda name: stamps[name], default=None)
            own = await site.store.load(thread)
            shown = self.history.versions.get(own.total_tokens_used) if own else None
            if newest in ruined or (shown and shown.id in lost):
                continue  # of what nobody can read, or list, nobody can tell a reader
            if (own and own.total_tokens_used) != (newest and held[newest].total_tokens_used):
                told = own and own.total_tokens_used
                problems.append(f"LATEST {site.name} {thread}: its own is mark {told}, the newest is {newest}")
        return problems


def _bare(state: AgentState) -> AgentState:
    """A state without the envelope."""
    return state.model_copy(update={"metadata": {k: v for k, v in state.metadata.items() if k != KEY}})


class Process:
    """One process: its lives, one after the other, over one journal directory."""

    def __init__(self, world: World, name: str) -> None:
        self.world, self.name, self.life = world, name, 0
        self._random = Random(f"process/{name}/{world.setup.seed}")
        self.clock = ProcessClock(Random(f"stamps/{name}/{world.setup.seed}"))
        self.alive = asyncio.Event()
        self.links: list[Link] = []

    @property
    def _journal(self) -> Path | None:
        return self.world.place / f"{self.name}{self.life}" if self.world.setup.journal else None

    def start(self) -> None:
        """Begin a life."""
        setup = self.world.setup
        self.reader = Reader(self.name, self.life, setup.read)
        self.links = [self._link(site) for site in self.world.sites]
        self.world.links += self.links
        clock = self.clock.clock()
        self.stack = ReplicatedCheckpointer(
            *(self._leg(link, clock) for link in self.links),
            write_quorum=setup.write_quorum,
            read=setup.read,
            journal=self._journal,
            hint_window=setup.window,
            names=[site.name for site in self.world.sites],
            name=self.name,
            clock=clock,
        )
        self.alive.set()

    def _link(self, site: Site) -> Link:
        setup, last = self.world.setup, site is self.world.sites[-1]
        weather = Weather(self._dice(), setup.weather, setup.evil if last else "none")
        return Link(site, (self.name, self.life), self._dice(), self.world.history, weather)

    def _dice(self) -> Random:
        return Random(self._random.getrandbits(64))

    def _leg(self, link: Link, clock: Any) -> Layer:
        setup = self.world.setup
        leg: Layer = Leaf(link, name=link.site.name, clock=clock)
        if setup.guarded:
            policy = BreakerPolicy(in_a_row=4, minimum=6, window=20, open_for=2, longest=20)
            leg = GuardedCheckpointer(leg, timeout=1.5, breaker=policy, clock=clock)
        if setup.retries:
            leg = RetryingCheckpointer(leg, attempts=2, deadline=5, clock=clock)
        return leg

    async def die(self, *, restart: bool) -> None:
        """End at once; with ``restart``, the next life begins with the journal as it is."""
        if not self.alive.is_set():
            return
        self.world.note(f"{self.name}.{self.life} dies")
        self.alive.clear()
        await self._end(restart=restart)

    async def stop(self) -> None:
        """End in an orderly way, and begin again."""
        self.world.note(f"{self.name}.{self.life} stops")
        self.alive.clear()
        try:
            await self.call(self.stack.close)
        finally:
            await self._end(restart=True)

    async def _end(self, *, restart: bool) -> None:
        """This life is over. Even if whoever ends it is cancelled over that, the next one begins: or nobody would."""
        for link in self.links:
            link.dead = True
        before, life, owners = self._journal, self.reader, self.world.owners
        self.life += 1
        abandon_journals(self.stack, before, self._journal if restart else None)
        assert owners is not None
        try:
            await owners.kill(life)
        except asyncio.CancelledError:
            await owners.kill(life)
            raise
        finally:
            if restart:
                self.start()

    async def call(self, work: Callable[[], Awaitable[Any]], patience: float = 120.0) -> Any:
        """Do something as this process; ``None`` when it failed, or the process died over it, or was too slow."""

        async def run() -> Any:
            return await work()

        with of_process(self.reader):
            task = asyncio.get_running_loop().create_task(run())
        task.add_done_callback(lambda ended: ended.cancelled() or ended.exception())  # who asked may be gone
        done, _ = await asyncio.wait([task], timeout=patience)
        if not done:
            task.cancel()
            await asyncio.wait([task])
        if task.cancelled():
            self.world.seen["left"] += 1
            return None
        error = task.exception()
        if isinstance(error, LocusTieredError):
            self.world.seen[f"raised {type(error).__name__}"] += 1
            self.world.note(f"{self.name}: {type(error).__name__}: {error}")
            return None
        if error is not None:
            self.world.problem(f"ERROR of no tree: {error!r}")
            raise error
        return task.result()

    async def deliver(self) -> bool:
        async def deliver() -> bool:
            await self.stack.deliver()
            return True

        return bool(await self.call(deliver))

    async def scrub(self, deep: bool = True) -> bool:
        async def scrub() -> bool:
            report = await self.stack.scrub(deep=deep)
            shown = replace(report, unreachable=sorted(report.unreachable))  # type: ignore[arg-type]
            self.world.note(f"{self.name}.{self.life} scrubbed: {shown}")
            if report.unmended and not report.unreachable:
                return any([await self.world.ruined(thread) for thread in self.world.history.names()])
            return report.in_step

        return bool(await self.call(scrub, 1200.0))
