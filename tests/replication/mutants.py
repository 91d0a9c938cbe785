"""The implementation, broken on purpose in one place at a time: does a test notice?

``make mutants`` (``python -m tests.replication.mutants``) breaks replication in each of the ways below, runs every
scenario and, for what takes a longer story, seeds of the simulation, and prints which caught which. It fails when a
mutant survives. A mutant is the source of one function with a piece replaced, compiled in its own module, so it breaks
what really runs; when the code moves on and the piece is not there any more, that is an error, not a pass.
"""

from __future__ import annotations
import __future__

import argparse
import functools
import importlib
import inspect
import logging
import signal
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from time import perf_counter
from types import ModuleType
from typing import Any
from unittest.mock import patch

import pytest

from locus_tiered.core.layer import Layer
from locus_tiered.testing.simulation import SimulationFailed, simulate
from tests.replication import (
    test_away,
    test_deletes,
    test_first_look,
    test_found_outside,
    test_half_deleted,
    test_late_writes,
    test_meanwhile,
    test_mending,
    test_reads,
    test_rolling,
    test_scrub,
    test_vacuum,
    test_waiting_saves,
    test_writes,
)

_STORIES = (
    test_writes,
    test_reads,
    test_away,
    test_deletes,
    test_mending,
    test_late_writes,
    test_meanwhile,
    test_scrub,
    test_found_outside,
    test_vacuum,
    test_rolling,
    test_first_look,
    test_half_deleted,
    test_waiting_saves,
)

__all__ = ["MUTANTS", "Mutant", "broken", "catchers", "scenarios"]

SEEDS = range(40)
"""Stories that are tried on a mutant that no scenario has caught."""
_LONGEST = 6.0
"""Seconds of the processor for a scenario, which usually takes a few hundredths of one."""


@dataclass(frozen=True, slots=True)
class Mutant:
    """One way to be wrong. ``where`` is ``module:Class.method`` or ``module:function`` below ``locus_tiered``."""

    name: str
    where: str
    right: str
    wrong: str


MUTANTS = (
    # -- votes
    Mutant("a hint counts as a vote", "layers.said:Said.vote", "self.took and", "self.kept and"),
    Mutant("a fenced replica has a vote", "layers.said:Said.vote", " and not self.replica.fenced", ""),
    Mutant("one vote is a majority of three", "layers.replicated_options:votes_needed", "count // 2 + 1", "1"),
    Mutant("one no is absence", "layers.replicated_base:ReplicatedBase._begin", "len(replicas) - votes + 1", "1"),
    Mutant(
        "the id is not pinned",
        "layers.replica:Replica._now",
        "result = await self.layer.handle(op)",
        "result = await self.layer.handle(op if isinstance(op, Delete) else Save(op.thread_id, None, None, None, "
        'op.checkpoint.moved(id=f"{self._clock.random_bits(128):032x}")))',
    ),
    # -- hints
    Mutant(
        "hints are sent newest first",
        "layers.flusher:Flusher._send_rows",
        "rows = [row for row in journal.index.unsent(key) if",
        "rows = [row for row in reversed(journal.index.unsent(key)) if",
    ),
    Mutant(
        "a write overtakes the hints before it",
        "layers.replica:Replica._write",
        "if journal is not None and journal.index.unsent(key):",
        "if False:",
    ),
    Mutant(
        "a write that is under way at the end is forgotten",
        "layers.replicated:ReplicatedCheckpointer.close",
        "await replica.hint(key, op, stamp, attempted=True)",
        "pass",
    ),
    Mutant(
        "hints that outgrow their window are dropped silently",
        "layers.replica:Replica.hint",
        'row = self._row(op, stamp, attempted=True, kind="scrub")',
        "return row",
    ),
    Mutant(
        "the next process does not know what was dropped",
        "layers.replica:Replica.open",
        'if row.kind == "scrub":',
        "if False:",
    ),
    Mutant(
        "a hint of a former life is sent whatever happened since",
        "layers.flusher:Flusher._vetted",
        "objections = await self._far.objections(key, rows)",
        "objections = {}",
    ),
    # -- who is believed
    Mutant(
        "a replica that was away for too long is believed",
        "layers.replica:Replica.is_believed",
        "self.checked and not (self.fenced or self.has_holes or self.is_unread)",
        "True",
    ),
    Mutant(
        "a replica that comes back empty is taken for up to date",
        "layers.heartbeat:Heartbeats._look",
        "(self._was_away(found) and not is_first)",
        "False",
    ),
    Mutant(
        "a replica is read from while a write to it hangs",
        "layers.replica:Replica.is_doubtful",
        " or key in self.lagging",
        "",
    ),
    Mutant(
        "hints are not read when a newest is asked for",
        "layers.replicated_reads:ReplicatedReads.on_head",
        "rows = replica.rows(key)",
        "rows = ()",
    ),
    Mutant(
        "hints are not read when an id is asked for",
        "layers.replicated_reads:ReplicatedReads._copy",
        "last = last_word(replica.rows(key), wanted)",
        "last = None",
    ),
    # -- reads
    Mutant(
        "the floor of this process is ignored",
        "layers.replicated_reads:ReplicatedReads._head_by_one",
        "found is not None and self._floors.above(key, found) is None",
        "found is not None",
    ),
    Mutant(
        "a read by quorum mends nobody",
        "layers.replicated_base:ReplicatedBase._mend",
        "await replica.mend(key, found)",
        "pass",
    ),
    Mutant(
        "a read by quorum answers the first instead of the newest",
        "layers.replicated_reads:ReplicatedReads._head_by_quorum",
        'newest = max(heads, key=lambda entry: entry.stamp or "")',
        "return heads[0]",
    ),
    Mutant(
        "a read by quorum asks no tombstone",
        "layers.replicated_base:ReplicatedBase._is_buried",
        "if thread_id.startswith(RESERVED):",
        "if True:",
    ),
    Mutant(
        "a replica that is reached alone is believed, wiped or not",
        "layers.heartbeat:Heartbeats._look",
        "if self._newest is None and len(reached) < self._least:",
        "if False:",
    ),
    Mutant(
        "a replica that is back is left alone although a quorum needs it",
        "layers.replicated_writes:ReplicatedWrites._after_all",
        "if missed.replica.checked",
        "if False",
    ),
    Mutant(
        "a replica that is asked late takes what is older than what it has",
        "layers.replica:Replica._catch_up",
        " or not ours",
        "",
    ),
    Mutant(
        "what a replica that is back refuses counts as taken",
        "layers.replica:Replica._catch_up",
        "return replace(missed, error=error)",
        "return Said(self, took=True)",
    ),
    # -- deletes
    Mutant(
        "a delete leaves no tombstone",
        "layers.replicated:ReplicatedCheckpointer.on_delete",
        "await self._lay(op, stamp)",
        "pass",
    ),
    Mutant(
        "a delete that too few have noted is left to its tombstone",
        "layers.replicated:ReplicatedCheckpointer._lay",
        "await self._to_all(self._key(op.thread_id), op, stamp)",
        "pass",
    ),
    Mutant(
        "a comparison leaves what is buried where all have it",
        "layers.scrub_thread:_Work.doubted",
        "if may_bury(self.rounds.names, self.thread_id, None):",
        "return set()\n    if False:",
    ),
    Mutant(
        "a hint for what was deleted is there still",
        "layers.replicated_reads:ReplicatedReads.on_exists",
        " and last.stamp > deleted",
        "",
    ),
    Mutant(
        "tombstones are purged at once",
        "layers.tombstones:Tombstones.tidy",
        "before = self._clock.wall() - KEPT_DAYS * DAY",
        'before = float("inf")',
    ),
    Mutant(
        "a delete takes what is newer than its tombstone",
        "layers.versions:delete_up_to",
        'newer = listed[0].stamp or ""',
        "return await layer.handle(op), newer",
    ),
    Mutant(
        "a delete does not come again above what was newer",
        "layers.replicated:ReplicatedCheckpointer.on_delete",
        "if not newer or op.late:",
        "if True:",
    ),
    Mutant(
        "a delete is stamped when its turn comes",
        "layers.replicated:ReplicatedCheckpointer._above_all",
        "stamp = above(asked, await self._look_around(op.thread_id, key), *known)",
        "await self._look_around(op.thread_id, key)\n        stamp = self._stamps.issue(key)",
    ),
    Mutant(
        "what waits behind a delete that went higher stays below it",
        "core.ordering:OrderingLayer._lifted",
        "not asked < checkpoint.stamp <= raised",
        "True",
    ),
    Mutant(
        "what is late goes above a delete that found a later one",
        "layers.replicated:ReplicatedCheckpointer._above_all",
        "if not op.late:\n        self._raise_delete",
        "if True:\n        self._raise_delete",
    ),
    Mutant(
        "what is written behind is deleted as of now",
        "layers.replicated:ReplicatedCheckpointer._above_all",
        "stamp = asked",
        "stamp = self._stamps.issue(key) if op.late else asked",
    ),
    Mutant(
        "a delete does not look for what is above its call",
        "layers.replicated:ReplicatedCheckpointer._above_all",
        "await self._look_around(op.thread_id, key), *known",
        "*known",
    ),
    Mutant(
        "a save after a delete is not put above it",
        "layers.replicated_base:ReplicatedBase._mind_graves",
        "self._stamps.observe(key, stamp)",
        "pass",
    ),
    # -- mending
    Mutant(
        "no look at the newest after a repair",
        "layers.versions:ReplicaFar.check_latest",
        "if own is not None and own.stamp == head.stamp:",
        "if True:",
    ),
    Mutant(
        "no look at the newest after deletes",
        "layers.replicated:ReplicatedCheckpointer.on_delete",
        "self._look_at_latest(op.thread_id, key, compare=bury and again)",
        "pass",
    ),
    Mutant(
        "a comparison asks no tombstone",
        "layers.scrub_thread:_Work.bury",
        "gone = await self.owner.tombstones.among(graves_of(self.thread_id, [*partly, *doubted]))",
        "gone = {}",
    ),
    Mutant(
        "a comparison copies the newest first",
        "layers.scrub_thread:_Work.copy",
        'sorted(reversed(wanted.values()), key=lambda each: each.stamp or "")',
        'sorted(wanted.values(), key=lambda each: each.stamp or "", reverse=True)',
    ),
    Mutant(
        "steps of a turn are copied",
        "layers.scrub_thread:_Work.bury",
        "elif is_iteration_save(found):",
        "elif False:",
    ),
    Mutant(
        "an older version of a name than before is an answer",
        "layers.replicated_reads:ReplicatedReads.on_load",
        "least = self._told.of(key, wanted)",
        'least = ""',
    ),
    Mutant(
        "a list may lack what an earlier one had",
        "layers.replicated_reads:ReplicatedReads.on_list_checkpoints",
        "and not self._told.is_less(key, found)",
        "",
    ),
    Mutant(
        "a floor that has gone takes those before it along",
        "layers.replicated_base:ReplicatedBase._settle_floor",
        "if self._floors.of(key) is None and",
        "if False and",
    ),
    Mutant(
        "a hint is believed whatever was deleted since",
        "layers.replicated_reads:ReplicatedReads._copy",
        'if found is not None and self.read == "quorum" and',
        "if False and",
    ),
    Mutant(
        "a quorum believes lists that forget",
        "layers.replicated_base:ReplicatedBase._ask",
        "if by_lists else []",
        "if False else []",
    ),
    Mutant(
        "a comparison leaves writes no time",
        "layers.replicated_mending:ReplicatedMending._give_way",
        "if seconds > 0 and self._under_way():",
        "if False:",
    ),
    Mutant(
        "a comparison copies what is just being saved",
        "layers.scrub_steps:Rounds.is_news",
        "return self.newest is not None and",
        "return False and",
    ),
    Mutant(
        "a scrub that was stopped begins at the beginning",
        "layers.scrub:Scrubber.run",
        "self._after[whose] = way.reached",
        "pass",
    ),
    Mutant(
        "the older version of a name wins",
        "layers.quorum:newest_versions",
        '(best.stamp or "") < (entry.stamp or "")',
        '(best.stamp or "") > (entry.stamp or "")',
    ),
    Mutant(
        "a repair replaces what was saved meanwhile",
        "layers.replica:Replica._has_newer",
        "if entry.id == entry.stamp:",
        "if True:",
    ),
    Mutant(
        "a damaged copy is copied",
        "core.envelope:unseal",
        "if not intact:",
        "if False:",
    ),
    Mutant(
        "a damaged copy that is read stays",
        "layers.replicated_reads:ReplicatedReads.on_load",
        "if damaged and found is not None:",
        "if False:",
    ),
    Mutant(
        "what only a fenced replica has is deleted rather than put aside",
        "layers.scrub_thread:_Work._remove",
        "if replica.fenced and not known_elsewhere:",
        "if False:",
    ),
    Mutant(
        "nobody looks for a write that is carried out late",
        "layers.versions:ReplicaFar.gave_up",
        "if not isinstance(error, BreakerOpen | Overloaded):",
        "if False:",
    ),
    Mutant(
        "a repair brings back what was deleted while it was read",
        "layers.replica:Replica.mend",
        "if unless() or",
        "if",
    ),
    Mutant(
        "what another process is just saving is put aside",
        "layers.scrub_steps:is_under_way",
        "return entry.stamp is not None and",
        "return False and",
    ),
    Mutant(
        "two writers of one thread are not noticed",
        "layers.conflicts:Conflicts.saved",
        'self._saves[key] = ("" if base is None else base.stamp or "", entry.stamp or "")',
        "pass",
    ),
)


def _place(mutant: Mutant) -> tuple[Any, str, ModuleType]:
    """Where the function is, by what name, and the module in whose words it is written."""
    path, _, name = mutant.where.partition(":")
    module = importlib.import_module(f"locus_tiered.{path}")
    owner: Any = module
    *outer, last = name.split(".")
    for part in outer:
        owner = getattr(owner, part)
    return owner, last, module


@contextmanager
def broken(mutant: Mutant) -> Iterator[None]:
    """While inside, the implementation is the mutant."""
    owner, name, module = _place(mutant)
    original = vars(owner)[name]
    function = original.fget if isinstance(original, property) else original
    source = textwrap.dedent(inspect.getsource(function))
    if source.count(mutant.right) != 1:
        raise LookupError(f"{mutant.name}: {mutant.where} holds {mutant.right!r} {source.count(mutant.right)} times")
    code = compile(
        source.replace(mutant.right, mutant.wrong),
        f"<mutant: {mutant.name}>",
        "exec",
        flags=__future__.annotations.compiler_flag,
        dont_inherit=True,
    )
    made: dict[str, Any] = {}
    exec(code, vars(module), made)  # noqa: S102  # our own source
    with ExitStack() as stack:
        stack.enter_context(patch.object(owner, name, made[name]))
        for place in _held(function):
            stack.enter_context(patch.dict(place, {key: made[name] for key in place if place[key] is function}))
        yield


def _held(function: Any) -> Iterator[dict[Any, Any]]:
    """Where else a function is held: in modules that imported it, and in the tables by which layers dispatch."""
    for module in list(sys.modules.values()):
        if getattr(module, "__name__", "").startswith("locus_tiered") and function in _values(module):
            yield vars(module)
    layers = [Layer]
    while layers:
        layer = layers.pop()
        layers += layer.__subclasses__()
        if "_handlers" in vars(layer) and function in layer._handlers.values():
            yield layer._handlers


def _values(module: ModuleType) -> list[Any]:
    return [each for each in vars(module).values() if inspect.isfunction(each)]


def scenarios() -> list[tuple[str, Callable[[], None]]]:
    """The short stories, by name; one for each set of parameters."""
    found: list[tuple[str, Callable[[], None]]] = []
    for module in _STORIES:
        tests = [test for name, test in vars(module).items() if name.startswith("test_")]
        found += [case for test in tests if not inspect.iscoroutinefunction(test) for case in _cases(test)]
    return found


def _cases(test: Callable[..., None]) -> Iterator[tuple[str, Callable[[], None]]]:
    marks = [mark for mark in getattr(test, "pytestmark", ()) if mark.name == "parametrize"]
    if not marks:
        yield test.__name__, test
    for mark in marks:
        (name,) = inspect.signature(test).parameters
        for value in mark.args[1]:
            yield f"{test.__name__}[{value}]", functools.partial(test, **{name: value})


class _Hangs(KeyboardInterrupt):
    """A scenario does not end on a mutant. (Of this kind, because an event loop lets nothing else out of a task.)"""


@contextmanager
def _not_for_ever() -> Iterator[None]:
    def hangs(*_: object) -> None:
        raise _Hangs

    before = signal.signal(signal.SIGVTALRM, hangs)
    signal.setitimer(signal.ITIMER_VIRTUAL, _LONGEST, 1.0)  # again, should it not end when its tasks are cancelled
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def catchers(mutant: Mutant, *, every: bool, seeds: Sequence[int] = SEEDS) -> Iterator[str]:
    """The names of what fails on a mutant: scenarios, and if there is none, the first seed. ``every``: not only one."""
    caught = False
    with broken(mutant):
        for name, scenario in scenarios():
            try:
                with _not_for_ever():
                    scenario()
            except (Exception, _Hangs, pytest.fail.Exception):  # any way to fail is good
                caught = True
                yield name
                if not every:
                    return
        if caught:
            return
        for seed in seeds:
            try:
                simulate(seed)
            except SimulationFailed:
                yield f"simulation, seed {seed}"
                return


def main(arguments: Sequence[str] | None = None) -> int:
    """``python -m tests.replication.mutants [WORD ...]``: those whose names hold one of the words, or all."""
    parser = argparse.ArgumentParser(prog="python -m tests.replication.mutants", description=main.__doc__)
    parser.add_argument("words", nargs="*")
    wanted = parser.parse_args(arguments).words
    logging.getLogger().addHandler(logging.NullHandler())  # what goes wrong here goes wrong on purpose
    for _, scenario in scenarios():
        scenario()  # on the right implementation all of them hold
    tried = [mutant for mutant in MUTANTS if not wanted or any(word in mutant.name for word in wanted)]
    survivors = 0
    for mutant in tried:
        began = perf_counter()
        found = list(catchers(mutant, every=True))
        survivors += not found
        print(f"{'caught  ' if found else 'SURVIVED'} {mutant.name}  [{mutant.where}]  {perf_counter() - began:.1f} s")
        for name in found:
            print(f"           {name}")
    print(f"{len(tried) - survivors} of {len(tried)} mutants caught, {survivors} survived")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
