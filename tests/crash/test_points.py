"""A crash before and after every effect of write-behind, and again before and after every effect of the recovery.

For each program, each ``ack`` and both kinds of sharing: one run yields every crash of it (``points.py``). From each,
a new process recovers: the laws are checked on what it reads, then it drains, and the far store by itself must say
what the stack says. The recovery is recorded too, and a third process recovers from every crash of that.

Three recoveries (read first, drain first, go on with the turn) take turns; every 23rd recovery is recorded.
``LOCUS_TIERED_CRASHES=all`` has every recovery after every crash, and records them all.
"""

from __future__ import annotations

import asyncio
import itertools
import os
from pathlib import Path
from typing import Any

import pytest

from locus_tiered.layers.far import Far
from locus_tiered.layers.write_behind_options import Ack
from locus_tiered.stores.journal import Journal
from locus_tiered.testing.virtual_time import run_virtual
from tests.crash.ledger import Ledger, listed_iterations
from tests.crash.lives import Client, Script, behind, far_promises, in_step, look_everywhere
from tests.crash.points import RecordedFar, Recorder, Snapshot, recording, virtual_journals

ALL = os.environ.get("LOCUS_TIERED_CRASHES") == "all"


@pytest.fixture(autouse=True)
def virtual(monkeypatch: pytest.MonkeyPatch) -> None:
    virtual_journals(monkeypatch)


# -- programs ---------------------------------------------------------------------------------------------------------


async def two_turns(client: Client) -> None:
    await client.turn("t", 3)
    await client.turn("t", 2)


async def lingering_turns(client: Client) -> None:
    """The second step of the first turn is on its way to the far store before the turn ends."""
    await client.turn("t", 2, pause=20)
    await client.turn("t", 2, flush_after=0)


async def kept_steps(client: Client) -> None:
    """A turn whose process dies after the final save and never deletes its steps; the next turn does not either."""
    turn: list[str] = []
    await client.step("t", turn)
    await client.step("t", turn)
    await client.save("t")
    await asyncio.sleep(5)
    await client.turn("t", 1)


async def thread_delete(client: Client) -> None:
    await client.turn("t", 1)
    await client.save("t", "draft")
    await client.delete("t")
    await client.turn("t", 1)
    turn: list[str] = []
    await client.step("t", turn)
    await client.flush()
    await client.step("t", turn)
    await client.delete("t")
    await client.save("t", "draft")


async def named_ids(client: Client) -> None:
    await client.save("t", "draft")
    await client.save("t", "plan")
    await client.save("t", "draft")
    await asyncio.sleep(3)
    await client.save("t", "plan")
    await client.delete("t", "draft")
    await client.save("t", "draft")
    await client.delete("t", "plan")
    await client.delete("t", "never there")
    await client.flush()
    await client.delete("t", "draft")
    await client.save("t", "draft")


async def generated_ids_again(client: Client) -> None:
    """An agent that saves a generated id again, and one that goes back to an id that is a stamp."""
    turn: list[str] = []
    step = await client.step("t", turn)
    first = await client.save("t")
    await client.save("t", step, turn)
    await client.flush()
    await client.save("t", first)
    await client.save("t", step, turn)
    await client.delete("t", step)
    await client.delete("t", first)


async def ends_deleted(client: Client) -> None:
    """A turn whose end is deleted as well, before or after the far store has heard of it: nothing may come back."""
    for pause in (0.0, 3.0):
        turn: list[str] = []
        await client.step("t", turn)
        await client.step("t", turn)
        final = await client.save("t")
        for name in turn:
            await client.delete("t", name)
        await asyncio.sleep(pause)
        await client.delete("t", final)


async def restarts(client: Client) -> None:
    """Clean ends of the process in the middle of a turn, and a name that is used before and after."""
    turn: list[str] = []
    await client.save("t", "draft")
    await client.step("t", turn)
    await client.close()
    await client.step("t", turn)
    await client.save("t", "draft")
    await client.close()
    await client.finish("t", turn)
    await client.delete("t", "draft")


async def two_threads(client: Client) -> None:
    await asyncio.gather(client.turn("t", 2), client.turn("u", 2))
    await asyncio.gather(client.delete("u"), client.turn("t", 1))


PROGRAMS: dict[str, Script] = {
    program.__name__: program
    for program in (
        two_turns,
        lingering_turns,
        kept_steps,
        thread_delete,
        named_ids,
        generated_ids_again,
        ends_deleted,
        restarts,
        two_threads,
    )
}


# -- recoveries -------------------------------------------------------------------------------------------------------


async def reads(client: Client) -> list[str]:
    """Somebody reads first; then all is sent."""
    problems = await look_everywhere(client.stack, client.ledger)
    await client.flush()
    return problems


async def drains(client: Client) -> list[str]:
    """All is sent before anybody looks."""
    await client.flush()
    return []


async def goes_on(client: Client) -> list[str]:
    """The turn that was cut off is finished, as ``continue_turn`` does, and another one is taken."""
    for thread in client.ledger.threads():
        turn = listed_iterations(await client.stack.load(thread))
        await client.finish(thread, turn)
    problems = await look_everywhere(client.stack, client.ledger)
    await client.turn(client.ledger.threads()[0], 1)
    await client.close()
    return problems


RECOVERIES = {recovery.__name__: recovery for recovery in (reads, drains, goes_on)}


class Bench:
    """Runs programs and recoveries of one configuration in numbered directories."""

    def __init__(self, path: Path, ack: Ack, exclusive: bool) -> None:
        self.options = {"ack": ack, "exclusive": exclusive}
        self._paths = (path / str(number) for number in itertools.count())
        self.runs = 0

    def record(self, program: Script) -> list[Snapshot]:
        """Every crash of a program."""
        ledger = Ledger()
        recorder = Recorder(next(self._paths), ledger)
        far = RecordedFar(recorder=recorder)

        async def life() -> None:
            client = Client(behind(far, recorder.base, 1, **self.options), ledger)
            await program(client)
            await client.close()

        with recording(recorder):
            run_virtual(life)
        assert not far_promises(far, ledger)
        return recorder.snapshots

    def recover(self, crash: Snapshot, how: str, seen: set[object] | None = None) -> tuple[list[str], list[Snapshot]]:
        """What a new process makes of a crash: the laws that it breaks, and (with ``seen``) its own crashes."""
        base = next(self._paths)
        crash.restore(base)
        ledger = Ledger(crash.events)
        recorder = Recorder(base, ledger, crash, seen)
        far = RecordedFar(crash.stored, recorder)
        self.runs += 1
        problems: list[str] = []
        if self.options["ack"] != "journal":
            problems += far_promises(far, ledger)

        async def life() -> None:
            nonlocal problems
            client = Client(behind(far, base, 2 + self.runs, **self.options), ledger)
            base.mkdir(parents=True, exist_ok=True)
            problems += await RECOVERIES[how](client)
            problems += await look_everywhere(client.stack, ledger)
            stack = client.stack
            pending = stack.pending()  # type: ignore[attr-defined]
            if how != "goes_on" and (pending.rows or pending.dead_letters):
                problems.append(f"PENDING: {pending}")
            if pending.damaged or pending.left:
                problems.append(f"UNREADABLE: {pending}")
            problems += await in_step(stack, far, ledger)
            await client.close()

        if seen is None:
            far.recorder = None
            run_virtual(life, start=crash.time + 1)
        else:
            with recording(recorder):
                run_virtual(life, start=crash.time + 1)
        return problems, recorder.snapshots if seen is not None else []


CONFIGURATIONS = [(ack, exclusive) for ack in ("turn", "journal", "far") for exclusive in (False, True)]


def named(crash: Snapshot, how: str, problems: list[str]) -> list[str]:
    return [f"{crash.number} {crash.label} / {how}: {problem}" for problem in problems]


@pytest.mark.parametrize(("ack", "exclusive"), CONFIGURATIONS)
@pytest.mark.parametrize("program", PROGRAMS)
def test_a_crash_at_any_point_breaks_no_law(program: str, ack: Ack, exclusive: bool, tmp_path: Path):
    bench = Bench(tmp_path, ack, exclusive)
    crashes = bench.record(PROGRAMS[program])
    assert len(crashes) > 10
    broken: list[str] = []
    for number, crash in enumerate(crashes):
        for how in RECOVERIES if ALL else [list(RECOVERIES)[number % 3]]:
            broken += named(crash, how, bench.recover(crash, how)[0])
    assert not broken, "\n".join(broken)


@pytest.mark.parametrize(("ack", "exclusive"), CONFIGURATIONS[:4])
@pytest.mark.parametrize("program", PROGRAMS)
def test_a_crash_at_any_point_of_the_recovery_breaks_no_law(program: str, ack: Ack, exclusive: bool, tmp_path: Path):
    bench = Bench(tmp_path, ack, exclusive)
    crashes = bench.record(PROGRAMS[program])
    seen: set[object] = {crash.key for crash in crashes}
    broken: list[str] = []
    seconds = 0
    for crash in crashes if ALL else crashes[len(program) % 23 :: 23] or crashes[-1:]:
        for how in ("drains", "goes_on"):
            problems, again = bench.recover(crash, how, seen)
            broken += named(crash, how, problems)
            for second in again:
                seconds += 1
                found = named(second, how, bench.recover(second, "reads")[0])
                broken += [f"{problem}, after {crash.label}" for problem in found]
    assert seconds > 0
    assert not broken, "\n".join(broken)


# -- the bench is sharp -----------------------------------------------------------------------------------------------


def broken_laws(program: str, ack: Ack, path: Path) -> set[str]:
    """The kinds of broken laws over all crashes of a program."""
    bench = Bench(path, ack, exclusive=False)
    crashes = bench.record(PROGRAMS[program])
    problems = [each for crash in crashes for how in RECOVERIES for each in bench.recover(crash, how)[0]]
    return {problem.split(" ")[0] for problem in problems}


def test_a_row_that_is_dropped_before_it_was_sent_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    real = Far.send

    async def send(self: Far, key: str, row: Any, checkpoint: Any) -> None:
        await asyncio.sleep(0)
        journal = journals[-1]
        await journal.drop([row])
        await real(self, key, row, checkpoint)

    journals: list[Journal] = []
    attach = Journal.attach.__func__

    async def noted(cls: type[Journal], *arguments: Any, **options: Any) -> Journal:
        journals.append(await attach(cls, *arguments, **options))
        return journals[-1]

    monkeypatch.setattr(Journal, "attach", classmethod(noted))
    monkeypatch.setattr(Far, "send", send)
    assert "LOST" in broken_laws("two_turns", "journal", tmp_path)


def test_a_delete_that_the_far_store_never_hears_of_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Far, "may_hold", lambda *_: False)
    assert "RESURRECTED" in broken_laws("generated_ids_again", "journal", tmp_path)


def test_a_recovery_that_asks_nobody_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    async def objections(self: Far, key: str, rows: Any) -> dict[Any, str]:
        return {}

    monkeypatch.setattr(Far, "objections", objections)
    assert broken_laws("thread_delete", "turn", tmp_path)


def test_an_older_row_after_which_nothing_is_mended_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    async def mend(self: Far, thread_id: str) -> list[Any]:
        return []

    monkeypatch.setattr(Far, "mend", mend)
    assert "BARE" in broken_laws("kept_steps", "turn", tmp_path)
