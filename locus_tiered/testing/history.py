"""What processes asked of a checkpointer and what they were told, as JSON lines, to be judged afterwards.

::

    async with RecordingCheckpointer(stack, "a.jsonl", process="a") as checkpointer:
        ...                                     # Agent(checkpointer=checkpointer), any code, any faults
    events = read_history("a.jsonl", "b.jsonl")
    events += await holdings(S3Backend(...), "s3", threads_of(events))
    for problem in check_history(events): print(problem)      # locus_tiered.testing.history_check

Every operation is written twice: when it begins and when it ends. So a process may be killed at any moment, and what
it was doing then has an unknown outcome.

Moments are ``time.monotonic()``, which the processes of one machine share; histories of several machines cannot be put
together. Vacuums, copies of threads and the searches are passed on and not recorded: a history with the first two is
judged wrongly.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from os import PathLike
from pathlib import Path
from typing import IO, Any, Literal, TypeVar

from locus.memory.checkpointer import BaseCheckpointer

from locus_tiered.core.canonical import digest_of
from locus_tiered.core.checkpoint import Checkpoint, Entry
from locus_tiered.core.envelope import Envelope
from locus_tiered.core.errors import (
    CapabilityMissing,
    CheckpointTooLarge,
    InvalidArgument,
    LocusTieredError,
    StackConfigError,
)
from locus_tiered.core.layer import MOST, Layer, as_layer
from locus_tiered.core.operations import Delete, Exists, Head, ListCheckpoints, Load, Operation, Save

__all__ = ["NOTHING", "Event", "Outcome", "RecordingCheckpointer", "Seen", "holdings", "read_history", "threads_of"]

R = TypeVar("R")

Outcome = Literal["ok", "failed", "unknown"]
"""``ok``: answered. ``failed``: surely without effect. ``unknown``: it may have taken effect, or still may."""

Kind = Literal["save", "delete", "load", "head", "list_checkpoints", "exists", "holds"]
NOTHING = "nothing"
"""The value of what a store lists and has not got: an index that outlives what it lists."""

_RECORDED: tuple[type[Operation[Any]], ...] = (Save, Delete, Load, Head, ListCheckpoints, Exists)
_REFUSED = (InvalidArgument, CapabilityMissing, CheckpointTooLarge, StackConfigError)


@dataclass(frozen=True, slots=True)
class Seen:
    """A checkpoint in an answer. ``value`` is a digest of its state, where the answer had the state.

    ``id`` is empty where the stack does not stamp saves and the newest was asked for: then nobody knows it.
    """

    id: str
    stamp: str | None = None
    value: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One operation of one process, or (``holds``) what one store holds of a thread when all is over.

    ``id`` is the checkpoint that was asked for; ``None``: the newest, or the whole thread. ``end`` is ``None`` for what
    was still under way when the process ended. ``strict`` is set where the process was promised to see what *others*
    were acknowledged, as it is by ``read="quorum"``.
    """

    process: str
    number: int
    kind: Kind
    thread: str
    id: str | None = None
    begin: float = 0.0
    end: float | None = None
    outcome: Outcome = "unknown"
    stamp: str | None = None
    """Of what is saved."""
    value: str | None = None
    """A digest of the state that is saved."""
    iteration: bool = False
    """Saved by an agent inside a turn, to be deleted when the turn ends."""
    strict: bool = False
    found: Seen | None = None
    """The answer to ``load`` and ``head``; the store's own newest for ``holds``."""
    listed: tuple[Seen, ...] | None = None
    """The answer to ``list_checkpoints``, newest first; all that a store holds."""
    limit: int | None = None
    there: bool | None = None
    """The answer to ``exists`` and ``delete``."""
    error: str | None = None

    def to_json(self) -> str:
        """One line, without what is not set."""
        unset = {"iteration": False, "strict": False}
        return json.dumps({key: value for key, value in asdict(self).items() if value is not unset.get(key)})

    @classmethod
    def from_json(cls, line: str) -> Event:
        """The event in a line. Raises ``ValueError`` for what is none."""
        try:
            data = json.loads(line)
            found, listed = data.pop("found", None), data.pop("listed", None)
            return cls(
                **data,
                found=None if found is None else Seen(**found),
                listed=None if listed is None else tuple(Seen(**each) for each in listed),
            )
        except (TypeError, AttributeError, json.JSONDecodeError) as error:
            raise ValueError(f"not an event of a history: {line[:80]!r}") from error

    def __str__(self) -> str:
        ended = "…" if self.end is None else f"{self.end:.3f}"
        what = f"{self.kind} {self.thread}" + (f"/{self.id}" if self.id is not None else "")
        return f"[{self.begin:.3f}-{ended}] {self.process} {what} {self.outcome}"


def read_history(*paths: str | PathLike[str]) -> list[Event]:
    """The events of several files, in the order in which they began. A line that was cut off by a crash is left out."""
    events: dict[tuple[str, str, int], Event] = {}
    for path in paths:
        lines = Path(path).read_text().splitlines(keepends=True)
        for place, line in enumerate(lines, 1):
            if line.endswith("\n") or place < len(lines):
                event = Event.from_json(line)
                events[str(path), event.process, event.number] = event
    return sorted(events.values(), key=lambda event: event.begin)


def threads_of(events: Iterable[Event]) -> list[str]:
    """Every thread of a history."""
    return sorted({event.thread for event in events})


class RecordingCheckpointer(Layer):
    """Writes what passes through to a file. The outermost layer: what it records is what the caller was told.

    Args:
        inner: The stack.
        path: The file, which is appended to; one per process.
        process: A name for this life of the process: one that was restarted has another.
        strict: See :class:`Event`.
        now: Seconds; the processes of a history need the same clock.
    """

    def __init__(
        self,
        inner: BaseCheckpointer,
        path: str | PathLike[str],
        *,
        process: str,
        strict: bool = False,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(inner)
        self.path, self.process, self.strict = Path(path), process, strict
        self._now = now
        self._number = 0
        self._file: IO[str] | None = None

    async def handle(self, operation: Operation[R]) -> R:
        if not isinstance(operation, _RECORDED):
            return await self.inner.handle(operation)
        event = self._begun(operation)
        self._write(event)
        answer: Any
        try:
            answer = await self.inner.handle(operation)
        except BaseException as error:
            surely = isinstance(error, _REFUSED) or not operation.changes
            outcome: Outcome = "failed" if surely else "unknown"
            self._write(replace(event, end=self._now(), outcome=outcome, error=type(error).__name__))
            raise
        self._write(replace(_answered(event, answer), end=self._now(), outcome="ok"))
        return answer  # type: ignore[no-any-return]

    def _begun(self, operation: Any) -> Event:
        self._number += 1
        event = Event(
            process=self.process,
            number=self._number,
            kind=operation.name,
            thread=operation.thread_id,
            id=getattr(operation, "checkpoint_id", None),
            strict=self.strict,
            limit=getattr(operation, "limit", None),
        )
        if isinstance(operation, Save):
            event = replace(event, iteration=operation.iteration, **_saved(operation))
        return replace(event, begin=self._now())

    def _write(self, event: Event) -> None:
        if self._file is None:
            self._file = self.path.open("a")
        self._file.write(event.to_json() + "\n")
        self._file.flush()

    async def close(self) -> None:
        try:
            await super().close()
        finally:
            if self._file is not None:
                self._file.close()
                self._file = None

    def __repr__(self) -> str:
        return f"RecordingCheckpointer({self.inner!r}, {str(self.path)!r}, process={self.process!r})"


def _saved(operation: Save) -> dict[str, Any]:
    checkpoint = operation.checkpoint
    if checkpoint is None:
        return {"value": digest_of(operation.state.to_checkpoint())}
    return {"id": checkpoint.id, "stamp": checkpoint.stamp, "value": _value(checkpoint)}


def _value(checkpoint: Checkpoint) -> str:
    return digest_of(json.loads(checkpoint.body.encoded))


def _answered(event: Event, answer: Any) -> Event:
    match answer:
        case Checkpoint():
            return replace(event, found=Seen(answer.id, answer.stamp, _value(answer)))
        case Entry():
            return replace(event, found=Seen(answer.id, answer.stamp))
        case bool():
            return replace(event, there=answer)
        case list():
            return replace(event, listed=tuple(Seen(each.id, each.stamp) for each in answer))
        case _:
            return event


async def holdings(checkpointer: BaseCheckpointer, name: str, threads: Iterable[str]) -> list[Event]:
    """What one store holds of these threads and of every other that it lists, for the end of a history.

    Every checkpoint is loaded. ``found`` is the newest as the store has it for readers without this library.
    """
    leg = as_layer(checkpointer, "holdings")
    there = set(threads)
    if leg.explain()["list_threads"]:
        there.update(await leg.list_threads(MOST))
    events = []
    for number, thread in enumerate(sorted(there)):
        begin = time.monotonic()
        held = []
        for entry in await leg.handle(ListCheckpoints(thread, MOST, ordered=True)):
            try:
                found = await leg.handle(Load(thread, entry.id))
                value = None if found is None else _value(found)
            except LocusTieredError as error:
                value = type(error).__name__
            held.append(Seen(entry.id, entry.stamp, value or NOTHING))
        own = await checkpointer.load(thread) if not isinstance(checkpointer, Layer) else await leg.load(thread)
        envelope = None if own is None else Envelope.read(own.metadata)
        newest = None if envelope is None else Seen(envelope.id, envelope.stamp)
        events.append(
            Event(
                process=name, number=number, kind="holds", thread=thread, begin=begin, end=time.monotonic(),
                outcome="ok", listed=tuple(held), found=newest,
            )
        )  # fmt: skip
    return events
