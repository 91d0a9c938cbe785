"""Who makes things go wrong in a simulation, beside the weather on every link."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from random import Random

from locus_tiered.core.units import DAY
from locus_tiered.testing.fault_script import FaultKind
from locus_tiered.testing.simulation_process import Process, World
from locus_tiered.testing.simulation_world import Link

__all__ = ["Nemesis"]

_HOUR = 3600.0
_CUTS = (FaultKind.FAIL_BEFORE, FaultKind.FAIL_BEFORE, FaultKind.FAIL_AFTER, FaultKind.HANG, FaultKind.NONE_ON_OUTAGE)


class Nemesis:
    """Cuts and heals links, kills processes, moves clocks, and does to the last replica what the setup says."""

    def __init__(self, world: World, processes: Sequence[Process], random: Random) -> None:
        self._world, self._processes, self._random = world, processes, random

    async def run(self) -> None:
        """Go on until cancelled."""
        while True:
            await asyncio.sleep(self._random.choice((0.1, 0.5, 2.0, 5.0)))
            await self._once()

    async def _once(self) -> None:
        setup, random = self._world.setup, self._random
        chances: dict[str, float] = {"cut": 3, "cut site": 1, "heal": 5, "let go": 4, "scrub": 1, "deliver": 0.5}
        if setup.crashes:
            chances |= {"kill": 1.2, "stop": 0.4}
        if setup.jumps:
            chances |= {"jump": 1, "days": 0.15}
        if setup.evil in ("damage", "wipe"):
            chances |= {setup.evil: 1.5 if setup.evil == "damage" else 0.4}
        what = random.choices(list(chances), list(chances.values()))[0]
        self._world.seen[f"nemesis: {what}"] += 1
        process, link = random.choice(self._processes), random.choice(self._links())
        if what == "cut":
            self._cut(link)
        elif what == "cut site":
            site = link.site
            for each in self._links():
                if each.site is site:
                    self._cut(each)
        elif what == "heal":
            for each in random.sample(self._links(), 2):
                self._note(f"heals {each.site.name} for {each._owner[0]}")
                each.heal()
        elif what == "let go":
            for each in self._world.links:
                each.release(1)
                await each.land(1, newest_first=random.random() < 0.3)
        elif what in ("scrub", "deliver"):
            await (process.scrub(random.random() < 0.5) if what == "scrub" else process.deliver())
        elif what == "kill":
            await process.die(restart=True)
        elif what == "stop":
            await process.stop()
        elif what == "jump":
            self._jump(process)
        elif what == "days":
            await self._days()
        elif what == "damage":
            *others, last = self._world.sites
            self._note(f"damages {await last.damage(random, others)} in {last.name}")
        else:
            await self._wipe()

    def _links(self) -> list[Link]:
        return [link for process in self._processes for link in process.links]

    def _note(self, what: str) -> None:
        self._world.note(f"-- nemesis {what}")

    def _cut(self, link: Link) -> None:
        kinds = _CUTS if self._world.setup.guarded else tuple(kind for kind in _CUTS if kind is not FaultKind.HANG)
        kind = self._random.choice(kinds)
        self._note(f"cuts {link.site.name} from {link._owner[0]} ({kind.value})")
        link.partition(kind)

    def _jump(self, process: Process) -> None:
        sort = self._random.choice(("ahead", "back", "suspended"))
        self._note(f"moves the clock of {process.name} by an hour: {sort}")
        if sort == "back":
            process.clock.wall -= _HOUR
        else:
            process.clock.wall += _HOUR
        if sort == "suspended":
            process.clock.monotonic += _HOUR

    async def _days(self) -> None:
        """Days pass, in which one replica is away; much more is not done meanwhile."""
        days = self._random.choice((8, 16))
        site = self._random.choice(self._world.sites)
        self._note(f"{days} days pass without {site.name}")
        for each in self._links():
            if each.site is site:
                each.partition(FaultKind.FAIL_BEFORE)
        await asyncio.sleep(self._random.choice((0.5, 5.0)))
        for process in self._processes:
            process.clock.wall += days * DAY
            process.clock.monotonic += days * DAY
        await asyncio.sleep(self._random.choice((2.0, 10.0)))

    async def _wipe(self) -> None:
        """The last replica loses everything. Every process looks at its heartbeat before it is reached again."""
        site = self._world.sites[-1]
        self._note(f"wipes {site.name}")
        for each in self._world.links:
            if each.site is site:
                each.partition(FaultKind.FAIL_BEFORE)
                each.release()
                await each.land()
        await asyncio.sleep(2.0)
        for each in self._world.links:
            if each.site is site:
                await each.land()
        site.wipe()
        for process in self._processes:
            process.clock.monotonic += _HOUR + 60

    async def make_peace(self) -> None:
        """Nothing goes wrong any more."""
        for _ in range(3):
            for link in self._world.links:
                await link.calm()
            await asyncio.sleep(5)
