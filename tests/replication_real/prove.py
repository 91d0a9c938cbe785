"""Three real replicas under load, each killed, stopped, cut off and wiped in turn: ``make test-replication``.

Two processes save 50 checkpoints a second to SeaweedFS, PostgreSQL and Valkey, load and delete in between, while one
replica after the other goes away in one way after the other and comes back. The processes are killed as well (-9), in
the midst of saves and with hints waiting, and live again on what they left. After a wipe an operator calls ``scrub()``
in both, under full load; where the servers of one machine cannot bear both, under a fifth of it. Then everything is
healed, and the history of every operation is judged together with what each store holds.

``LOCUS_TIERED_SECONDS`` (60) is the time under load, ``LOCUS_TIERED_RATE`` (50) the saves a second of both processes
together, ``LOCUS_TIERED_SEED`` (1) what the agents do.
"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from locus_tiered.testing.history import Event, holdings, read_history, threads_of
from locus_tiered.testing.history_check import Problem, check_history
from tests.replication_real.rig import FAULTS, Fault, Process, Rig, Site, clock
from tests.replication_real.worker import shared_threads

__all__ = ["Figures", "Step", "every_fault", "prove"]

_READS = {"a": "quorum", "b": "hedged"}
_PATIENCE = 30.0
"""Seconds that a rebuild gets under full load."""
_MOST_REBUILDING = 120.0


@dataclass(frozen=True, slots=True)
class Step:
    """Something that happens to one replica, and to a process while the replica is away."""

    site: str
    fault: Fault
    crash: Literal["a", "b"] | None = None


def every_fault() -> list[Step]:
    """Every fault at every replica; twice at each of them, a process is killed as well."""
    crashes: dict[Fault, Literal["a", "b"]] = {"killed": "b", "cut off": "a"}
    return [Step(site, fault, crashes.get(fault)) for fault in FAULTS for site in ("s3", "pg", "valkey")]


@dataclass(slots=True)
class Figures:
    """What came of it."""

    seconds: float = 0.0
    rebuilding: float = 0.0
    slow: float = 0.0
    """Seconds of that under a fifth of the load."""
    saves_slow: int = 0
    crashes: int = 0
    """How often a process was killed."""
    operations: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    saves: int = 0
    acknowledged: int = 0
    unknown: int = 0
    reads_failed: int = 0
    hinted: int = 0
    copied: int = 0
    copied_meanwhile: int = 0
    removed: int = 0
    converged: float = 0.0
    hints_sent: float = 0.0
    looked_late: float = 0.0
    checkpoints: int = 0
    threads: int = 0
    slowest: dict[str, float] = field(default_factory=dict)
    raised: Counter[str] = field(default_factory=Counter)
    signals: Counter[str] = field(default_factory=Counter)
    problems: list[Problem] = field(default_factory=list)
    unhealed: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        rules = Counter(problem.rule for problem in self.problems)
        kinds = ", ".join(f"{count} {kind}" for kind, count in self.kinds.most_common())
        slow = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in sorted(self.slowest.items()))
        full = (self.saves - self.saves_slow) / (self.seconds - self.slow)
        raised = ", ".join(f"{count} {name}" for name, count in self.raised.most_common()) or "none"
        return "\n".join(
            (
                f"under load            {self.seconds:.1f} s, of that rebuilding {self.rebuilding:.1f} s, and "
                f"{self.slow:.1f} s at a fifth; {full:.1f} saves/s at full load",
                f"operations            {self.operations} ({kinds})",
                f"saves                 {self.saves}: {self.acknowledged} acknowledged, {self.unknown} unknown",
                f"processes killed      {self.crashes}",
                f"reads that failed     {self.reads_failed} (errors of all kinds: {raised})",
                f"slowest               {slow}",
                f"hinted                {self.hinted} writes by those who lived to the end, all sent within "
                f"{self.hints_sent:.1f} s of it",
                f"copied                {self.copied_meanwhile} under load, {self.copied} at the end",
                f"time to converge      {self.converged:.1f} s, of that {self.looked_late:.1f} s until writes carried "
                "out late were looked for",
                f"in the end            {self.checkpoints} checkpoints in {self.threads} threads on each",
                f"acknowledged and lost {rules['lost']}",
                f"deleted and back      {rules['resurrected']}",
                f"other problems        {sum(rules.values()) - rules['lost'] - rules['resurrected']}"
                + "".join(f", {name}: {count}" for name, count in rules.items() if name not in ("lost", "resurrected")),
            )
        )


async def prove(
    directory: Path,
    steps: Sequence[Step],
    *,
    seconds: float,
    rate: float,
    seed: int,
    hold: float = 2.0,
    say: Callable[[str], None] = lambda line: None,
) -> Figures:
    """Load, faults, healing, judgement. The steps are spread over ``seconds``; each fault lasts ``hold``.

    With a process killed it lasts as long as that takes to start again beside, and so does the load.
    """
    figures = Figures()
    slow: list[tuple[float, float]] = []
    async with Rig(directory) as rig:
        processes = [
            await rig.process(name, read=read, rate=rate / len(_READS), seed=seed) for name, read in _READS.items()
        ]
        for process in processes:
            await process.told("load")
        began = clock()
        await asyncio.sleep(min(1.0, seconds / 10))
        planned = 0.0
        for step in steps:
            crashes = f", and process {step.crash} is killed" if step.crash else ""
            say(f"{clock() - began:6.1f} s  {step.site} is {step.fault}{crashes}")
            await _suffer(rig.sites[step.site], step, hold, processes)
            figures.crashes += step.crash is not None
            if step.fault == "wiped":
                since = clock()
                figures.copied_meanwhile += await _rebuild(processes, slow, say)
                figures.rebuilding += clock() - since
            planned += seconds / len(steps) + (hold if step.crash else 0.0)
            await asyncio.sleep(max(began + planned - clock(), 0.2))
        for process in processes:
            _count(figures, await process.told("stop"))
        figures.seconds = clock() - began
        say(f"{clock() - began:6.1f} s  no more load, all replicas are back")
        await _heal(figures, processes, say)
        events = read_history(*(file for process in processes for file in process.histories))
        held = [
            event for site in rig.sites.values() for event in await holdings(site.bare, site.name, threads_of(events))
        ]
        (directory / "holdings.jsonl").write_text("".join(f"{event.to_json()}\n" for event in held))
        for process in processes:
            await process.told("end")
    for since, until in slow:
        figures.slow += until - since
        figures.saves_slow += sum(event.kind == "save" and since <= event.begin < until for event in events)
    _judge(figures, events, held)
    return figures


async def _suffer(site: Site, step: Step, hold: float, processes: Sequence[Process]) -> None:
    await asyncio.to_thread(site.begin, step.fault)
    try:
        await asyncio.sleep(hold / 2 if step.crash else hold)
        for process in processes:
            if process.name == step.crash:  # hints wait by now
                await process.crash()
                await process.told("load")
                await asyncio.sleep(hold / 2)
    finally:
        await asyncio.to_thread(site.end, step.fault)


async def _rebuild(processes: Sequence[Process], slow: list[tuple[float, float]], say: Callable[[str], None]) -> int:
    """What an operator does when a replica has lost its data: a scrub, for every process to see.

    He repeats it until everybody was reached: a replica that has just come back may be left alone for a moment. And
    when the servers cannot bear it beside the load, he lowers that.
    """
    copied, since = 0, 0.0
    began = clock()
    for process in processes:
        report: dict[str, Any] = {}
        while not report.get("in_step"):
            await process.told("scrub")
            while (report := await process.told("scrubbed")).get("running"):
                if not since and clock() > began + _PATIENCE:
                    since = clock()
                    for each in processes:
                        await each.told("slow")
                await asyncio.sleep(0.2)
            copied += report.get("copied", 0)
            if clock() > began + _MOST_REBUILDING:
                say(f"          {process.name} could not scrub: {report}")
                break
            await asyncio.sleep(0.2)
    if since:
        slow.append((since, clock()))
        for process in processes:
            await process.told("fast")
    return copied


async def _heal(figures: Figures, processes: Sequence[Process], say: Callable[[str], None]) -> None:
    """Every process sends its hints and looks for writes carried out late, then one of them compares everything."""
    began = clock()
    for process in processes:
        await _until_nothing(process, "waiting", figures)
    figures.hints_sent = clock() - began
    for process in processes:
        await _until_nothing(process, "late", figures)
    figures.looked_late = clock() - began
    while True:
        await processes[0].told("scrub")
        while (report := await processes[0].told("scrubbed")).get("running"):
            await asyncio.sleep(0.05)
        figures.copied += report.get("copied", 0)
        figures.removed += report.get("deleted", 0)
        say(f"          scrub: {report}")
        if report.get("in_step"):
            break
        if clock() > began + 60:
            figures.unhealed.append(f"scrub: {report}")
            break
        await asyncio.sleep(0.2)
    figures.converged = clock() - began


async def _until_nothing(process: Process, what: str, figures: Figures) -> None:
    until = clock() + 60
    while True:
        answer = await process.told("deliver", within=300)
        if not answer[what] and "error" not in answer:
            return
        if clock() > until:
            figures.unhealed.append(f"{process.name} is not done after a minute: {answer}")
            return
        await asyncio.sleep(0.2)


def _count(figures: Figures, told: dict[str, Any]) -> None:
    figures.raised.update(told["raised"])
    figures.signals.update(told["signals"])
    figures.hinted += told["signals"].get("replica.hinted", 0)
    for name, seconds in told["slowest"].items():
        figures.slowest[name] = max(figures.slowest.get(name, 0.0), seconds)


def _judge(figures: Figures, events: list[Event], held: list[Event]) -> None:
    saves = [event for event in events if event.kind == "save"]
    figures.operations, figures.saves = len(events), len(saves)
    figures.kinds = Counter(event.kind for event in events)
    figures.acknowledged = sum(event.outcome == "ok" for event in saves)
    figures.unknown = sum(event.outcome == "unknown" for event in saves)
    changes = ("save", "delete")
    figures.reads_failed = sum(event.outcome != "ok" and event.kind not in changes for event in events)
    one = [event for event in held if event.process == held[0].process]
    figures.checkpoints = sum(len(event.listed or ()) for event in one)
    figures.threads = sum(bool(event.listed) for event in one)
    figures.problems = check_history([*events, *held], loose=shared_threads())


async def main() -> int:
    seconds = float(os.environ.get("LOCUS_TIERED_SECONDS", "60"))
    rate = float(os.environ.get("LOCUS_TIERED_RATE", "50"))
    seed = int(os.environ.get("LOCUS_TIERED_SEED", "1"))
    kept = os.environ.get("LOCUS_TIERED_KEEP")
    with tempfile.TemporaryDirectory(prefix="locus-replication-") as temporary:
        directory = Path(kept or temporary)
        directory.mkdir(parents=True, exist_ok=True)
        figures = await prove(directory, every_fault(), seconds=seconds, rate=rate, seed=seed, say=print)
    print(figures)
    for problem in [*figures.problems[:20], *figures.unhealed]:
        print(problem)
    return 1 if figures.problems or figures.unhealed else 0


if __name__ == "__main__":
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    sys.exit(asyncio.run(main()))
