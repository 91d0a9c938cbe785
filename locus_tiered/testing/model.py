"""The model that a checkpointer is held against: a plain dictionary of threads.

:class:`DictionaryModel` is law 1 as code: the newest is the last saved, saving an id again makes it newest,
what is deleted is gone. Beside it the two tools of the state machine: :func:`scribble` changes everything
changeable in a value that somebody else may share, :func:`difference` says how two values differ.

Nothing here touches a checkpointer.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from reprlib import Repr
from typing import Any

from locus.core.messages import ToolCall
from locus.core.state import AgentState
from pydantic import BaseModel

__all__ = ["DictionaryModel", "Saved", "brief", "difference", "scribble"]

_BRIEF = Repr()
_BRIEF.maxstring, _BRIEF.maxother, _BRIEF.maxlevel = 72, 2_000, 10
_BRIEF.maxlist = _BRIEF.maxtuple = _BRIEF.maxdict = _BRIEF.maxset = 40


@dataclass(frozen=True, slots=True)
class Saved:
    """One checkpoint as it must come back: copies that nobody else holds."""

    state: AgentState
    metadata: dict[str, Any]


class DictionaryModel:
    """Threads of checkpoints.

    ``threads`` maps thread -> id -> :class:`Saved`, oldest first; a thread without checkpoints is not in it.
    """

    def __init__(self) -> None:
        self.threads: dict[str, dict[str, Saved]] = {}
        self.deleted: dict[str, dict[str, None]] = {}
        """Ids that must stay deleted, per thread, in the order of their deletion."""

    def save(self, thread: str, name: str, state: AgentState, metadata: dict[str, Any] | None) -> None:
        """Keep what ``state`` and ``metadata`` are now, as the thread's newest."""
        copy = AgentState.from_checkpoint(json.loads(json.dumps(state.to_checkpoint())))
        self._put(thread, name, Saved(copy, json.loads(json.dumps(metadata or {}))))

    def _put(self, thread: str, name: str, saved: Saved) -> None:
        kept = self.threads.setdefault(thread, {})
        kept.pop(name, None)
        kept[name] = saved
        self.deleted.get(thread, {}).pop(name, None)

    def find(self, thread: str, name: str | None = None) -> Saved | None:
        """The checkpoint, or (``None``) the newest."""
        kept = self.threads.get(thread)
        if not kept:
            return None
        return kept[next(reversed(kept))] if name is None else kept.get(name)

    def state(self, thread: str, name: str | None = None) -> AgentState | None:
        """What ``load`` must answer."""
        found = self.find(thread, name)
        return None if found is None else found.state

    def ids(self, thread: str) -> list[str]:
        """What ``list_checkpoints`` must answer: newest first."""
        return list(reversed(self.threads.get(thread, {})))

    def delete(self, thread: str, name: str | None = None) -> bool:
        """Remove one or all; answers whether there was anything."""
        going = self.ids(thread)[::-1] if name is None else [name] * (self.find(thread, name) is not None)
        for each in going:
            self._drop(thread, each)
            self.deleted.setdefault(thread, {})[each] = None
        return bool(going)

    def _drop(self, thread: str, name: str) -> None:
        del self.threads[thread][name]
        if not self.threads[thread]:
            del self.threads[thread]

    def retain(self, thread: str, names: Iterable[str]) -> None:
        """Forget what a bounded store no longer has; unlike the deleted, it is never asked for again."""
        kept = set(names)
        for name in self.ids(thread):
            if name not in kept:
                self._drop(thread, name)

    def copy(self, source: str, dest: str) -> bool:
        """Copy a thread's checkpoints, oldest first, on top of what ``dest`` has."""
        moving = dict(self.threads.get(source, {}))
        for name, saved in moving.items():
            self._put(dest, name, saved)
        return bool(moving)

    def rows(self) -> list[tuple[str, str]]:
        """Every (thread, id), sorted by thread and newest first within each.

        Sorted, because of saves at once to several threads nobody knows which ends first: a program must mean
        the same when it is run again.
        """
        return [(thread, name) for thread in sorted(self.threads) for name in self.ids(thread)]


def scribble(value: Any) -> None:
    """Change in place whatever in ``value`` can be changed: containers at any depth, unfrozen models."""
    if isinstance(value, dict):
        for inner in list(value.values()):
            scribble(inner)
        value["scribbled"] = ["over"]
    elif isinstance(value, list):
        for inner in list(value):
            scribble(inner)
        value.append("scribbled")
    elif isinstance(value, tuple):
        for inner in value:
            scribble(inner)
    elif isinstance(value, BaseModel):
        for name, inner in list(value):
            if isinstance(inner, list):
                # A list of models: what is put in must be one, for the state is to stay a valid one.
                for model in inner:
                    scribble(model)
                inner[:] = [*inner, ToolCall(id="scribbled", name="over")] if name == "tool_calls" else []
            else:
                scribble(inner)
            if isinstance(inner, str) and not value.model_config.get("frozen"):
                setattr(value, name, "scribbled")


def brief(value: object) -> str:
    """The ``repr`` of ``value`` with what is very long in it cut in the middle."""
    return _BRIEF.repr(value)


def difference(got: object, want: object) -> str:
    """How two values differ, in few lines: of two states only the fields that do."""
    if not isinstance(got, AgentState) or not isinstance(want, AgentState):
        return f"  got  {brief(got)}\n  want {brief(want)}"
    lines = []
    for name in AgentState.model_fields:
        have, should = getattr(got, name), getattr(want, name)
        if have != should:
            lines += [f"  {name}:", f"    got  {brief(have)}", f"    want {brief(should)}"]
    return "\n".join(lines)
