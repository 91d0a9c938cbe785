"""What callers were promised, and whether a thread that was read keeps it: the laws, for one thread after crashes.

Every state that is saved carries a number of its own (its *mark*, in ``total_tokens_used``), so whatever is found can
be told apart from whatever was ever saved. A :class:`Ledger` holds, in the order in which they were begun, the calls of
all processes: acknowledged, or cut off by a crash, so that nobody knows whether they happened.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Literal

from locus.core.messages import Message
from locus.core.state import AgentState

from locus_tiered.core.checkpoint import ITERATION_KEY

_LONG_AGO = datetime(2026, 1, 1, tzinfo=UTC)
Status = Literal["begun", "done", "refused"]


@dataclass(slots=True)
class Event:
    """One call that changes something."""

    kind: Literal["save", "delete"]
    thread: str
    id: str | None
    mark: int = 0
    iteration: bool = False
    status: Status = "begun"
    """``begun``: it may have happened. ``refused``: it did not, and its caller was told so."""
    claims: bool = True
    """Whether its acknowledgement says that a checkpoint is gone: a delete that answered "there was none" may not."""

    by: int = 0
    """The process that made it."""

    def copy(self) -> Event:
        return replace(self)


@dataclass(slots=True)
class Expected:
    """What may and what must be found in one thread."""

    must: dict[str, int] = field(default_factory=dict)
    """Ids that were acknowledged and that nobody has tried to delete since, with the mark acknowledged last."""
    may: dict[str, set[int]] = field(default_factory=dict)
    """Ids that may be there, each with the marks that its state may carry."""
    nameless: set[int] = field(default_factory=set)
    """Marks of saves without an id that were cut off: found, if at all, under an id that nobody was told."""
    place: dict[int, int] = field(default_factory=dict)
    """The order of the saves, by their marks."""
    iteration: set[int] = field(default_factory=set)
    by: dict[int, int] = field(default_factory=dict)
    """Who saved it, by the marks."""
    survived: set[int] = field(default_factory=set)
    """Steps of a turn that whoever adopted them may have dropped: something newer was there, until he deleted it."""
    gone: set[int] = field(default_factory=set)
    """Marks whose delete, or replacement, was acknowledged."""


class Ledger:
    """The calls of all processes, in the order in which they were begun.

    ``torn``: the far store writes a checkpoint in several steps, so a second save of an id that was cut off may be
    found in the place of the first one.
    """

    def __init__(self, events: Iterable[Event] = (), *, torn: bool = False) -> None:
        self.torn = torn
        self.events = [event.copy() for event in events]
        self._marks = max((event.mark for event in self.events), default=0)

    def next_mark(self) -> int:
        self._marks += 1
        return self._marks

    def begin(self, event: Event) -> Event:
        self.events.append(event)
        return event

    def threads(self) -> list[str]:
        return list(dict.fromkeys(event.thread for event in self.events))

    def ids(self, thread: str) -> list[str]:
        return list(dict.fromkeys(e.id for e in self.events if e.thread == thread and e.id is not None))

    def expected(self, thread: str) -> Expected:
        """The thread after all that happened, as far as anybody can know."""
        found = Expected()
        for place, event in enumerate(self.events):
            if event.thread != thread or event.status == "refused":
                continue
            if event.kind == "save":
                self._saved(found, place, event)
            elif event.id is not None:
                self._uncovers(found, event)
                found.must.pop(event.id, None)
                if event.status == "done" and event.claims:
                    found.gone |= found.may.pop(event.id, set())
            else:
                found.must.clear()
                if event.status == "done":
                    found.gone |= found.nameless.union(*found.may.values())
                    found.may.clear()
                    found.nameless.clear()
        return found

    @staticmethod
    def _uncovers(found: Expected, event: Event) -> None:
        """A delete by another process than that which saved: in between, steps that are older were overtaken."""
        assert event.id is not None
        marks = found.may.get(event.id) or found.nameless
        covers = [found.place[mark] for mark in marks if mark not in found.iteration and found.by[mark] != event.by]
        newest = max(covers, default=-1)
        found.survived |= {mark for mark in found.must.values() if found.place[mark] < newest}

    @staticmethod
    def _saved(found: Expected, place: int, event: Event) -> None:
        found.place[event.mark], found.by[event.mark] = place, event.by
        if event.iteration:
            found.iteration.add(event.mark)
        if event.id is None:
            found.nameless.add(event.mark)
        elif event.status == "done":
            found.gone |= found.may.get(event.id, set())
            found.must[event.id] = event.mark
            found.may[event.id] = {event.mark}
        else:
            found.may.setdefault(event.id, set()).add(event.mark)

    def broken(self, thread: str, listed: Sequence[tuple[str, int]]) -> list[str]:
        """Which laws a thread breaks that reads so: (id, mark), newest first."""
        expected, problems = self.expected(thread), []
        marks = [mark for _, mark in listed]
        newest = max((expected.place.get(mark, -1) for mark in marks), default=-1)
        for name, mark in listed:
            if mark in expected.may.get(name, ()) or mark in expected.nameless:
                continue
            if mark in expected.gone:
                problems.append(f"RESURRECTED {thread}/{name} mark {mark}: its delete or replacement was acknowledged")
            else:
                problems.append(f"WRONG {thread}/{name} mark {mark}: never saved under this id")
        present = {name for name, _ in listed}
        for name, mark in expected.must.items():
            if name in present:
                continue
            if mark in expected.iteration and (expected.place[mark] < newest or mark in expected.survived):
                continue  # it existed to survive a crash that was survived by something newer
            problems.append(f"LOST {thread}/{name} mark {mark}: acknowledged, never deleted")
        if not self._in_order(expected, listed):
            problems.append(f"ORDER {thread}: marks {marks} newest first, but saved in another order")
        return problems

    def _in_order(self, expected: Expected, listed: Sequence[tuple[str, int]]) -> bool:
        before = len(self.events)
        for name, mark in listed:
            places = {expected.place.get(mark, -1)}
            if self.torn and len(expected.may.get(name, ())) > 1:
                places |= {expected.place[each] for each in expected.may[name]}
            fitting = [place for place in places if place < before]
            if not fitting:
                return False
            before = max(fitting)
        return True

    def durable(self, thread: str) -> dict[str, set[int]]:
        """Acknowledged saves that are no steps of a turn and must be there: id and possible marks."""
        expected = self.expected(thread)
        return {name: expected.may[name] for name, mark in expected.must.items() if mark not in expected.iteration}


def state_of(mark: int, iterations: Sequence[str] = ()) -> AgentState:
    """The one state that carries ``mark``, as an agent would save it."""
    metadata = {ITERATION_KEY: list(iterations)} if iterations else {}
    return AgentState(
        run_id=f"run-{mark}",
        messages=(Message.user(f"this is {mark}"),),
        metadata=metadata,
        total_tokens_used=mark,
        started_at=_LONG_AGO,
        updated_at=_LONG_AGO,
    )


def listed_iterations(state: AgentState | None) -> list[str]:
    """The steps of an unfinished turn, as its newest state lists them."""
    metadata: Mapping[str, object] = {} if state is None else state.metadata
    listed = metadata.get(ITERATION_KEY, [])
    assert isinstance(listed, list)
    return [str(each) for each in listed]
