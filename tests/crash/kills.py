"""``kill -9``, again and again: ``python -m tests.crash.kills`` (``make test-crash``).

Real processes (``child.py``) with real files, over a real S3 server, are killed at random moments of a seed. The next
one takes over the journal, looks at every thread, and what it sees is held against everything that was ever
acknowledged (``ledger.py``). Sometimes two processes share the directory, sometimes another journal is used in
between, sometimes a bystander deletes a thread through a stack of its own. At the end everything is drained, and the
bucket by itself must hold what the stack says.

``LOCUS_TIERED_KILLS`` is the number of kills (300), ``LOCUS_TIERED_SEED`` the seed.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import multiprocessing
import os
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from threading import Thread
from typing import Any

from locus_tiered.core.ids import marked_name
from locus_tiered.core.leaf import Leaf
from locus_tiered.testing.services import SeaweedFS, seaweedfs
from tests.crash.child import MOST, Life, live
from tests.crash.ledger import Event, Ledger
from tests.integration.agents import s3_options

_processes = multiprocessing.get_context("forkserver")

GROUPS = (("agent-a", "user:1/b"), ("agent-c", "thread d"))
THREADS = tuple(thread for group in GROUPS for thread in group)


@dataclass(slots=True)
class Figures:
    """What a campaign did and found."""

    kills: int = 0
    saves: int = 0
    deletes: int = 0
    cancelled: int = 0
    adopted: int = 0
    looks: int = 0
    lost: int = 0
    resurrected: int = 0
    unreadable: int = 0
    other: int = 0
    seconds: float = 0.0
    cut_off: int = 0
    problems: list[str] = field(default_factory=list)
    stories: list[str] = field(default_factory=list)
    """What had been asked of a thread that broke a law."""

    def note(self, problem: str) -> None:
        self.problems.append(problem)
        kind = problem.split(" ", 1)[0]
        name = {"LOST": "lost", "RESURRECTED": "resurrected", "UNREADABLE": "unreadable"}.get(kind, "other")
        setattr(self, name, getattr(self, name) + 1)

    def __str__(self) -> str:
        return (
            f"kills {self.kills}, acknowledged saves {self.saves}, acknowledged deletes {self.deletes}, calls cut off "
            f"{self.cut_off}, cancelled in the journal {self.cancelled}, rows adopted {self.adopted}, threads read "
            f"{self.looks}; lost {self.lost}, resurrected {self.resurrected}, journals unreadable {self.unreadable}, "
            f"other findings {self.other}; {self.seconds:.0f} s"
        )


class Process:
    """One child, and what it says."""

    def __init__(self, campaign: Campaign, life: Life) -> None:
        self.life = life
        self.heard = 0
        """How many times it has spoken."""
        self._campaign = campaign
        self.calls: dict[int, Event] = {}
        """What it has begun and not been answered."""
        reader, writer = _processes.Pipe(duplex=False)
        self.process = _processes.Process(target=live, args=(life, writer), daemon=True)
        self.process.start()
        writer.close()
        self._reader = reader
        self._listener = Thread(target=self._listen)
        self._listener.start()

    def _listen(self) -> None:
        rest = b""
        while chunk := os.read(self._reader.fileno(), 1 << 16):
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                self._campaign.heard(self, json.loads(line), self.calls)
                self.heard += 1
        self._reader.close()

    def kill(self) -> None:
        """``kill -9``, wherever it is."""
        self.process.kill()
        self.end()

    def end(self) -> None:
        """Wait until it has ended, and hear the last of what it said."""
        self.process.join()
        self._listener.join()
        self._campaign.ended(self)


class Campaign:
    """A seeded series of kills over one bucket."""

    def __init__(self, server: SeaweedFS, path: Path, seed: int) -> None:
        self.server, self.path, self.seed = server, path, seed
        self.bucket = server.bucket_name()
        with contextlib.closing(server.client()) as client:  # not by several processes at a time
            client.create_bucket(Bucket=self.bucket)
        self.figures = Figures()
        self.chance = Random(seed)
        self.ledger = Ledger(torn=True)
        self._numbers = 0
        # Who may hold operations of a thread that the bucket has not: living processes, and journals of dead ones.
        self._holders: dict[str, set[object]] = {thread: set() for thread in THREADS}
        # When the last of them had paid, in seconds of the clock that all processes of a machine share.
        self._owed_until = dict.fromkeys(THREADS, 0.0)

    # -- what they say --------------------------------------------------------------------------------

    def heard(self, process: Process, said: dict[str, Any], calls: dict[int, Event]) -> None:
        what, life = said.pop("what"), process.life
        getattr(self, f"_{what}", lambda *_: None)(life, said, calls)

    def _save(self, life: Life, said: dict[str, Any], calls: dict[int, Event]) -> None:
        event = Event("save", said["thread"], said["id"], said["mark"], said["iteration"], by=life.number)
        calls[said["call"]] = self.ledger.begin(event)
        self._holders[event.thread].add(life.number)

    def _saved(self, life: Life, said: dict[str, Any], calls: dict[int, Event]) -> None:
        event = calls.pop(said["call"])
        event.id, event.status = said["id"], "done"
        self.figures.saves += 1

    def _delete(self, life: Life, said: dict[str, Any], calls: dict[int, Event]) -> None:
        event = Event("delete", said["thread"], said["id"], by=life.number)
        calls[said["call"]] = self.ledger.begin(event)
        self._holders[event.thread].add(life.number)

    def _deleted(self, life: Life, said: dict[str, Any], calls: dict[int, Event]) -> None:
        event = calls.pop(said["call"])
        # "There was none" claims nothing of what another process has not sent yet.
        event.claims = said["answer"] or event.id is None
        event.status = "done"
        self.figures.deletes += said["answer"]

    def _open(self, life: Life, said: dict[str, Any], calls: dict[int, Event]) -> None:
        for key in ("damaged", "left", "poisoned"):
            if said[key]:
                self.figures.note(f"UNREADABLE process {life.number}: {key}={said[key]}")
        for holders in self._holders.values():
            if life.journal in holders:
                holders.discard(life.journal)
                holders.add(life.number)

    def _drained(self, life: Life, said: dict[str, Any], calls: dict[int, Event]) -> None:
        if said["rows"] or said["dead"]:
            self.figures.note(f"STUCK process {life.number}: {said}")
        for thread, holders in self._holders.items():
            if life.number in holders:
                holders.discard(life.number)
                self._owed_until[thread] = max(self._owed_until[thread], said["at"])

    def _closed(self, life: Life, said: dict[str, Any], calls: dict[int, Event]) -> None:
        self._drained(life, said, calls)

    def _saw(self, life: Life, said: dict[str, Any], calls: dict[int, Event]) -> None:
        thread, found = said["thread"], said["found"]
        if self._holders[thread] - {life.number} or said["begun"] < self._owed_until[thread]:
            return  # somebody else still owed the bucket something when this look began: nothing can be said
        self.figures.looks += 1
        (_, newest), *listed = found
        for name, mark in listed:
            if mark is None:
                self.figures.note(f"LOST {thread}/{name}: listed, and does not load")
        problems = self.ledger.broken(thread, [(name, mark) for name, mark in listed if mark is not None])
        if newest != (listed[0][1] if listed else None):
            problems.append(f"NEWEST {thread}: load() is not the first of the list")
        for problem in problems:
            self.figures.note(f"{problem} (seen by process {life.number}, {life.ack})")
        if problems:
            self.figures.stories.append(f"{thread} as process {life.number} saw it: {found}")
            self.figures.stories += [f"  {event}" for event in self.ledger.events if event.thread == thread][-60:]

    def _signal(self, life: Life, said: dict[str, Any], calls: dict[int, Event]) -> None:
        if said["kind"] == "journal.cancelled":
            self.figures.cancelled += 1
        elif said["kind"] == "journal.adopted":
            self.figures.adopted += said["rows"]
        else:
            self.figures.note(f"SIGNAL {said['kind']} in process {life.number}")

    def _error(self, life: Life, said: dict[str, Any], calls: dict[int, Event]) -> None:
        kind = "UNREADABLE" if said["error"].startswith("Journal") else "ERROR"
        self.figures.note(f"{kind} process {life.number}: {said['error']}: {said['text']}")

    def ended(self, process: Process) -> None:
        self.figures.cut_off += len(process.calls)
        for holders in self._holders.values():
            if process.life.number in holders:
                holders.discard(process.life.number)
                holders.add(process.life.journal)

    # -- what is done ---------------------------------------------------------------------------------

    def start(self, journal: str, **facts: Any) -> Process:
        self._numbers += 1
        chance = self.chance
        options: dict[str, Any] = {
            "ack": chance.choice(["turn", "journal", "journal", "far"]),
            "linger": chance.choice([0.0, 0.05, 0.3, 30.0]),
            "tiered": chance.random() < 0.3,
            "drains_first": chance.random() < 0.4,
        }
        s3 = s3_options(self.server, self.bucket)
        return Process(self, Life(self._numbers, self.seed, s3, str(self.path / journal), **(options | facts)))

    def working(self, journal: str, group: int | None = None) -> Process:
        threads = THREADS if group is None else GROUPS[group]
        return self.start(journal, looks_at=threads, works_on=threads)

    def wait_a_moment(self, *processes: Process) -> None:
        """Mostly until somewhere in the work, sometimes in the opening of the journal: however slow the machine is."""
        early = self.chance.random() < 0.15
        lines = self.chance.randrange(4) if early else self.chance.randrange(8, 90)
        deadline = time.monotonic() + 5
        while sum(process.heard for process in processes) < lines and time.monotonic() < deadline:
            time.sleep(0.002)
        time.sleep(self.chance.uniform(0.0, 0.02))

    def kill(self, process: Process) -> None:
        process.kill()
        self.figures.kills += 1

    def round(self) -> None:
        """One way in which processes come after, or live beside, one another."""
        kind = self.chance.choices(["alone", "beside", "elsewhere", "bystander", "clean"], weights=[8, 3, 2, 2, 1])[0]
        if kind == "beside":
            first, second = self.working("journal", 0), self.working("journal", 1)
            self.wait_a_moment(first, second)
            self.kill(first)
            third = self.working("journal", 0)
            self.wait_a_moment(second, third)
            for process in self.chance.sample([second, third], 2):
                self.kill(process)
            return
        if kind == "clean":
            self.start("journal", looks_at=THREADS, works_on=THREADS, turns=3).end()
            return
        process = self.working("elsewhere" if kind == "elsewhere" else "journal")
        self.wait_a_moment(process)
        self.kill(process)
        if kind == "bystander":
            self.start("bystander", deletes=self.chance.choice(THREADS), drains_first=False).end()
            self.start("bystander", drains_first=True).end()
        if kind == "elsewhere" and self.chance.random() < 0.75:
            self.start("elsewhere", drains_first=True).end()

    def run(self, kills: int) -> Figures:
        begun = time.monotonic()
        while self.figures.kills < kills:
            self.round()
        for journal in ("elsewhere", "bystander", "journal"):
            self.start(journal, drains_first=True).end()
        self.start("journal", looks_at=THREADS).end()
        asyncio.run(self._in_step())
        left = [str(path.parent.name) for path in self.path.rglob("*.db")]
        if left:
            self.figures.note(f"UNREADABLE: drained, and journals are left: {left}")
        self.figures.seconds = time.monotonic() - begun
        return self.figures

    async def _in_step(self) -> None:
        """The bucket by itself has what was acknowledged, and its newest is the newest."""
        bare = self.server.backend(bucket=self.bucket)
        rules = Leaf(bare).traits
        for thread in THREADS:
            place = rules.thread_ids.encode(thread)
            names = [name for name in await bare.list_checkpoints(place, MOST) if marked_name(name) is None]
            found = {name: await bare.load(place, name) for name in names}
            expected = self.ledger.expected(thread)
            ids = {rules.checkpoint_ids.decode(name) for name in found}
            for name in expected.must:
                if name not in ids and expected.must[name] not in expected.iteration:
                    self.figures.note(f"LOST {thread}/{name}: not in the bucket by itself")
            for name in ids - set(expected.may):
                if not expected.nameless:
                    self.figures.note(f"RESURRECTED {thread}/{name}: in the bucket by itself")
        await bare.close()


def preload() -> None:
    """Have every child begin with its modules imported."""
    _processes.set_forkserver_preload(["__main__", "tests.crash.warm"])


def main() -> int:
    kills = int(os.environ.get("LOCUS_TIERED_KILLS", "300"))
    seed = int(os.environ.get("LOCUS_TIERED_SEED", "1"))
    preload()
    with tempfile.TemporaryDirectory() as path, seaweedfs() as server:
        figures = Campaign(server, Path(path), seed).run(kills)
    print(f"seed {seed}: {figures}")
    for line in [*figures.problems[:50], *figures.stories[:400]]:
        print(f"  {line}")
    return 1 if figures.problems else 0


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(main())
