"""One seed, one story: processes that save, read and delete through replicas that fail, in virtual time.

::

    simulate(17)                        # raises SimulationFailed with the seed and what broke
    python -m locus_tiered.testing.simulation 17 --trace

Two processes drive a ``ReplicatedCheckpointer`` each over the same two or three replicas. Connections fail before and
after the effect, hang, are slow, answer "nothing there", answer with other threads and stale newest, deliver effects
late, and are cut per process and replica; processes die and come back with their journal; clocks jump by an hour and
days pass; one replica loses index rows, acknowledges too early, is damaged, or is wiped. Every answer is judged at
once (``simulation_history``); when the run is over, faults end, hints are sent, the replicas are scrubbed, and must
then hold the same, right checkpoints, each with the right newest for readers without this library.

It promises that a seed is one story, whatever the machine. It does not simulate power cuts in the middle of a commit
(see ``testing.disk``), or more than one replica that loses what it acknowledged.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from unittest.mock import patch

from locus_tiered.core.errors import LocusTieredError
from locus_tiered.testing.simulation_client import Client, read_everything
from locus_tiered.testing.simulation_history import History
from locus_tiered.testing.simulation_nemesis import Nemesis
from locus_tiered.testing.simulation_process import Process, World
from locus_tiered.testing.simulation_setup import Setup
from locus_tiered.testing.simulation_world import Owners, Site, inline_journals
from locus_tiered.testing.virtual_time import run_virtual

__all__ = ["Setup", "SimulationFailed", "Story", "simulate"]

_LONGEST = 4 * 3600.0  # virtual seconds, jumps of clocks not counted


class SimulationFailed(AssertionError):
    """A law was broken. The message begins with the seed that shows it again; ``trace`` is the whole story."""

    trace: Sequence[str] = ()


@dataclass(slots=True)
class Story:
    """What happened in a simulation that kept the laws."""

    setup: Setup
    seen: Counter[str] = field(default_factory=Counter)
    """How often what happened: operations by outcome, faults, signals."""
    trace: list[str] = field(default_factory=list)


def simulate(seed: int, *, setup: Setup | None = None, directory: Path | None = None) -> Story:
    """Run the story of a seed to its end. Raises :class:`SimulationFailed`.

    ``setup`` replaces what the seed says about stack and faults; ``directory`` is where journals are kept for the
    while (on a file system in memory, if there is one).
    """
    setup = Setup.of(seed) if setup is None else setup
    memory = Path("/dev/shm")
    base = directory if directory is not None else (memory if memory.is_dir() else None)
    logger = logging.getLogger("locus_tiered")
    level, story = logger.level, Story(setup)
    logger.setLevel(logging.CRITICAL + 1)  # what goes wrong here goes wrong on purpose
    try:
        with (
            tempfile.TemporaryDirectory(prefix="locus-tiered-sim-", dir=base) as place,
            patch.object(tempfile, "tempdir", place),
            inline_journals(),
        ):
            run = _Run(setup, Path(place), story)
            try:
                problems = run_virtual(run.run)
            except RuntimeError as error:
                if not run.spins:
                    raise
                problems = [f"SPINS: the event loop is busy without end ({error})"]
    finally:
        logger.setLevel(level)
    if problems:
        tail = "\n".join(story.trace[-80:])
        shown = "\n".join(problems[:12])
        failed = SimulationFailed(f"seed {seed}: {setup}\n{shown}\n--- the end of the story ---\n{tail}")
        failed.trace = story.trace
        raise failed
    return story


class _Run:
    """One run."""

    def __init__(self, setup: Setup, place: Path, story: Story) -> None:
        self._setup, self._story = setup, story
        sites = [Site(f"r{number}") for number in range(setup.replicas)]
        history = History(skewed=setup.jumps, careless=setup.evil == "careless", single=setup.votes == 1)
        self._world = World(setup, place, history, sites, story.seen, story.trace)

    @property
    def spins(self) -> bool:
        """Whether some loop ran on and on while no time passed."""
        return self._world.owners is not None and self._world.owners.spins

    async def run(self) -> list[str]:
        world, setup = self._world, self._setup
        world.owners = Owners(asyncio.get_running_loop())
        processes = [Process(world, name) for name in ("p", "q")]
        for process in processes:
            process.start()
        nemesis = Nemesis(world, processes, Random(f"nemesis/{setup.seed}"))
        clients = [Client(world, process, number) for process in processes for number in range(2)]
        tormenting = asyncio.ensure_future(nemesis.run())
        working = [asyncio.ensure_future(client.run()) for client in clients]
        try:
            _, late = await asyncio.wait(working, timeout=_LONGEST, return_when=asyncio.FIRST_EXCEPTION)
            for client in working:
                if client.done():
                    client.result()
            if late:
                world.problem(f"HANGS: {len(late)} clients have not ended after {_LONGEST:g} virtual seconds")
            tormenting.cancel()
            await asyncio.wait([tormenting])
            if not tormenting.cancelled():
                tormenting.result()
            if not world.problems:
                await self._mend(nemesis, processes)
        finally:
            for task in (tormenting, *working):
                task.cancel()
            for process in processes:
                await process.die(restart=False)
        return world.problems

    # -- the end -------------------------------------------------------------------------------------

    async def _mend(self, nemesis: Nemesis, processes: list[Process]) -> None:
        """Faults end; everything that waits is sent; everything is compared. Then nothing may be wrong any more."""
        world = self._world
        world.note("-- quiescence")
        await nemesis.make_peace()
        await asyncio.sleep(120)  # pauses end, hints go, suspicions and latest checks are over
        if world.setup.evil == "damage":
            await self._insist("scrub", processes[0].scrub)  # where not even a list can be had, no hint can be sent
        for process in processes:
            await self._insist("deliver", process.deliver)
        for process in processes:
            await self._insist("scrub", process.scrub)
        await asyncio.sleep(60)
        await self._insist("scrub", processes[0].scrub)
        for process in processes:
            await read_everything(process)
        await asyncio.sleep(30)  # reading may have mended something: then what is the newest is looked at
        for thread in world.history.names():
            world.problems += await world.unequal(thread)

    async def _insist(self, what: str, call: object) -> None:
        assert callable(call)
        for _ in range(8):
            try:
                if await call():
                    return
            except LocusTieredError as error:
                self._world.note(f"{what} failed: {type(error).__name__}: {error}")
            await asyncio.sleep(90)
        self._world.problem(f"NO PEACE: {what} does not succeed though nothing is wrong any more")


def main(arguments: list[str] | None = None) -> int:
    """``python -m locus_tiered.testing.simulation SEED [COUNT] [--trace]``."""
    parser = argparse.ArgumentParser(prog="python -m locus_tiered.testing.simulation", description=__doc__)
    parser.add_argument("seed", type=int)
    parser.add_argument("count", type=int, nargs="?", default=1, help="so many seeds from this one on")
    parser.add_argument("--trace", action="store_true", help="print the whole story")
    options = parser.parse_args(arguments)
    failed = 0
    for seed in range(options.seed, options.seed + options.count):
        try:
            story = simulate(seed)
        except SimulationFailed as error:
            failed += 1
            print(*(error.trace if options.trace else ()), error, sep="\n")
        else:
            print(f"seed {seed}: the laws hold; {sum(story.seen.values())} events")
            if options.trace:
                print(story.setup, *story.trace, dict(story.seen), sep="\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
