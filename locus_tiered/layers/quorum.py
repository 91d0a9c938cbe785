"""Asking several replicas: until enough have voted, or until one has the answer."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from locus_tiered.core.checkpoint import Entry
from locus_tiered.core.errors import LocusTieredError, cause_of, shorten
from locus_tiered.core.ids import RESERVED
from locus_tiered.core.operations import Operation
from locus_tiered.layers.latency import HedgeBudget
from locus_tiered.layers.replica import Replica

__all__ = ["Answers", "ask_until", "described", "doubt_of", "newest_versions", "thread_of"]

T = TypeVar("T")


@dataclass(slots=True)
class Answers(Generic[T]):
    """What was answered, by replica."""

    found: tuple[Replica, T] | None = None
    """The answer that was good enough to stop at."""
    others: dict[Replica, T] = field(default_factory=dict)
    """Answers that were not."""
    errors: dict[Replica, BaseException] = field(default_factory=dict)

    def known(self, yes: str, no: str) -> dict[str, str]:
        """What is known of each replica, for an error."""
        known = {replica.name: f"failed ({cause_of(error)})" for replica, error in self.errors.items()}
        known |= {replica.name: no for replica in self.others}
        if self.found is not None:
            known[self.found[0].name] = yes
        return known


def described(known: dict[str, str]) -> str:
    """What is known of each replica, in one line."""
    return "; ".join(f"{name}: {what}" for name, what in known.items())


def thread_of(op: Operation[Any]) -> str:
    """Which thread a call is about, for a message: users know nothing of the stack's own."""
    thread = op.threads[0] if op.threads else ""
    return "the notes of what was deleted" if thread.startswith(RESERVED) else f"thread {shorten(thread)}"


def doubt_of(replica: Replica, key: str) -> str:
    """Why a replica was not asked about a thread, in a few words."""
    if replica.fenced and replica.checked:
        return "not believed until scrub()"
    if replica.has_holes:
        return "hints for it were damaged: not believed until scrub()"
    if replica.is_unread:
        return "not believed: its hints cannot be opened"
    if not replica.checked:
        return f"not looked at since it failed ({replica.flusher.last_error or 'at first'})"
    if key in replica.marked:
        return "missed more of the thread than was kept: not believed until that is compared"
    return "a write to the thread is still under way" if key in replica.lagging else "not asked"


async def ask_until(
    replicas: Sequence[Replica],
    ask: Callable[[Replica], Awaitable[T]],
    good: Callable[[Replica, T], bool],
    *,
    operation: str,
    at_once: int = 1,
    hedge: HedgeBudget | None = None,
    enough: Callable[[Answers[T]], bool] = lambda answers: False,
) -> Answers[T]:
    """Ask ``at_once`` replicas, and another one for every answer that is not ``good`` and every error.

    With ``hedge``, another one is also asked when the first took longer than its p95. Stops at a good answer, when
    ``enough`` is known without one, or when nobody is left. Questions still in the air are cancelled then.
    """
    answers: Answers[T] = Answers()
    waiting = list(replicas)
    asked: dict[asyncio.Task[T], Replica] = {}

    def begin() -> None:
        replica = waiting.pop(0)
        asked[asyncio.ensure_future(ask(replica))] = replica

    try:
        for _ in range(min(at_once, len(waiting))):
            begin()
        while asked:
            patience = None
            if hedge is not None and waiting:
                patience = min(replica.latency.p95(operation) for replica in asked.values())
            done, _ = await asyncio.wait(asked, timeout=patience, return_when=asyncio.FIRST_COMPLETED)
            if not done:
                if hedge is not None and hedge.spend():
                    begin()
                else:
                    hedge = None
                continue
            for task in [each for each in asked if each in done]:
                replica = asked.pop(task)
                if _settle(answers, replica, task, good):
                    return answers
                if waiting:
                    begin()
            if enough(answers):
                return answers
        return answers
    finally:
        for task in asked:
            task.cancel()
            task.add_done_callback(_heard)


def _heard(task: asyncio.Task[Any]) -> None:
    """Whatever came of a question that nobody waits for any more."""
    if not task.cancelled():
        task.exception()


def _settle(answers: Answers[T], replica: Replica, task: asyncio.Task[T], good: Callable[[Replica, T], bool]) -> bool:
    """Note one answer; tells whether it was good."""
    try:
        result = task.result()
    except (LocusTieredError, OSError) as error:
        answers.errors[replica] = error
        return False
    if good(replica, result):
        answers.found = (replica, result)
        return True
    answers.others[replica] = result
    return False


def newest_versions(lists: Iterable[Iterable[Entry]]) -> dict[str, Entry]:
    """Every checkpoint of several lists by its id; where they differ about one, the version with the greatest stamp."""
    found: dict[str, Entry] = {}
    for listed in lists:
        for entry in listed:
            best = found.get(entry.id)
            if best is None or (best.stamp or "") < (entry.stamp or ""):
                found[entry.id] = entry
    return found
