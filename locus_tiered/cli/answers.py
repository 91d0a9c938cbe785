"""What every command answers, as models: ``--json`` prints them, ``docs/cli-schemas`` holds their JSON Schemas.

Fields are only ever added within one ``version``. Times are seconds since the epoch, sizes are bytes, ages and
durations are seconds, unless a name says otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

__all__ = [
    "ANSWERS",
    "Answer",
    "BenchAnswer",
    "BenchRow",
    "Change",
    "CheckAnswer",
    "DiffAnswer",
    "ExplainAnswer",
    "FlushAnswer",
    "Found",
    "FoundTier",
    "Histogram",
    "Journal",
    "Listed",
    "LsAnswer",
    "Member",
    "MigrateAnswer",
    "Problem",
    "PruneAnswer",
    "Pruned",
    "RepairAnswer",
    "Repaired",
    "ShowAnswer",
    "StatsAnswer",
    "ThreadRow",
    "ThreadsAnswer",
    "TierStats",
    "Verdict",
    "VerifyAnswer",
]


class Part(BaseModel):
    """A part of an answer."""

    model_config = ConfigDict(extra="forbid")


class Answer(Part):
    """What all answers have in common."""

    version: Literal[1] = 1
    stack: str = Field(description="the stack as it was named, without secrets")
    unreachable: dict[str, str] = Field(
        default_factory=dict, description="members that failed while others could answer, and how"
    )


class Problem(Answer):
    """Any command that failed."""

    command: str
    stack: str = ""
    error: str = Field(description="the kind of error")
    message: str
    hint: str | None = None
    code: int = Field(description="the exit code")


class Probe(Part):
    """One operation on one member, tried with ``--live``."""

    operation: str
    milliseconds: float
    error: str | None = None


class Member(Part):
    """One place in which checkpoints lie."""

    name: str
    role: Literal["near", "home", "replica"]
    kind: str
    private: bool = Field(description="the memory of one process: nothing of it can be seen from outside")
    traits: list[str] = Field(description="what is peculiar about it")
    probes: list[Probe] = Field(default_factory=list)
    reachable: bool | None = Field(default=None, description="null without --live")
    lacks: list[str] = Field(default_factory=list, description="capabilities that it does not have")


class CheckAnswer(Answer):
    """``check``"""

    ok: bool
    warnings: list[str]
    members: list[Member]


class Verdict(Part):
    """Whether a capability is there, and who says so."""

    granted: bool
    member: str
    reason: str


class Node(Part):
    """A layer of the stack, with those below it."""

    kind: str
    name: str
    description: str
    role: str | None = None
    members: list[Node] = Field(default_factory=list)


class ExplainAnswer(Answer):
    """``explain``"""

    tree: Node
    capabilities: dict[str, Verdict]


class ThreadRow(Part):
    """One thread; numbers are null with ``--quiet``."""

    thread: str
    checkpoints: int | None = None
    newest: str | None = Field(default=None, description="the id of its newest checkpoint")
    saved_at: float | None = Field(default=None, description="when that was saved, where its stamp tells")


class ThreadsAnswer(Answer):
    """``threads``"""

    total: int = Field(description="threads that match, also those that are not shown")
    threads: list[ThreadRow]
    pending: int = Field(default=0, description="rows in journals, which are not among these yet")


class Listed(Part):
    """One checkpoint of a thread."""

    id: str
    stamp: str | None
    saved_at: float | None
    tiers: dict[str, Literal["same", "other", "absent"]] = Field(
        description="by place: this version, another version under the id, or nothing"
    )
    size: int | None = None
    messages: int | None = None
    iteration: bool | None = Field(default=None, description="made inside a turn, to be deleted at its end")
    waits_for: str | None = Field(default=None, description="what a paused turn waits for")


class LsAnswer(Answer):
    """``ls``"""

    thread: str
    total: int
    places: list[str]
    checkpoints: list[Listed] = Field(description="newest first")
    pending: int = Field(default=0, description="rows in journals, of any thread, which are not among these yet")


class ShowAnswer(Answer):
    """``show``"""

    thread: str
    checkpoint: str
    stamp: str | None
    saved_at: float | None
    newest: bool
    size: int
    waits_for: str | None
    metadata: dict[str, Any] = Field(description="what was given to save as metadata=")
    state: dict[str, Any] = Field(description="the whole state")


class Change(Part):
    """One value that differs."""

    path: str
    before: Any
    after: Any


class DiffAnswer(Answer):
    """``diff``"""

    thread: str
    before: str
    after: str
    same: bool
    changes: list[Change] = Field(description="of the two states compared")
    only_before: list[str] = Field(default_factory=list, description="ids that only the first of two places has")
    only_after: list[str] = Field(default_factory=list)
    other_content: list[str] = Field(default_factory=list, description="ids whose content differs in the two places")


class TierStats(Part):
    """One place in numbers. Bytes are those of the states as JSON; null where bodies were not read."""

    name: str
    role: str
    private: bool
    checkpoints: int
    bytes: int | None


class Histogram(Part):
    """How many values fall into each class; a class reaches from ``above`` to ``up_to``."""

    what: str
    unit: str
    classes: list[tuple[float, float, int]]


class Journal(Part):
    """A write-behind journal."""

    name: str
    rows: int
    bytes: int
    oldest_age: float | None = None
    dead_letters: int = 0
    last_error: str | None = None
    others: int = Field(default=0, description="rows in journals of processes that live, which send them themselves")


class StatsAnswer(Answer):
    """``stats``"""

    threads: int
    sampled: bool = Field(description="only some of the threads were read")
    checkpoints: int
    bytes: int | None
    largest: int | None
    duplicates: int | None = Field(description="checkpoints equal to the one before them in their thread")
    waiting: int | None = Field(description="threads whose newest state is a paused turn")
    oldest: float | None
    newest: float | None
    tiers: list[TierStats]
    journals: list[Journal]
    histograms: list[Histogram]


class FlushAnswer(Answer):
    """``flush``"""

    before: list[Journal]
    after: list[Journal]


class Found(Part):
    """Something that ``verify`` found."""

    kind: Literal["damaged", "missing", "stale", "leftover", "latest", "unreadable"]
    place: str
    thread: str
    checkpoint: str | None
    what: str


class FoundTier(Part):
    """What was looked at in one place."""

    name: str
    role: str
    checked: int
    without_digest: int = Field(description="saved without a stack: readable, but nothing to compare with")


class VerifyAnswer(Answer):
    """``verify``"""

    threads: int
    checkpoints: int
    places: list[FoundTier]
    kinds: dict[str, int]
    found: list[Found]
    cut: int = Field(default=0, description="findings that are counted but not listed (--most)")


class Repaired(Part):
    """Something that ``repair`` did, or would do."""

    place: str
    thread: str
    checkpoint: str | None
    action: Literal["restored", "removed copy", "head saved again", "left"]
    why: str


class RepairAnswer(Answer):
    """``repair``"""

    dry_run: bool
    threads: int
    done: list[Repaired]
    left: list[Repaired] = Field(description="what was found and not mended")


class MigrateAnswer(Answer):
    """``migrate``"""

    source: str
    destination: str
    dry_run: bool
    state_file: str | None
    threads: int
    already: int = Field(description="threads that were up to date from an earlier run")
    copied: int = Field(description="checkpoints")
    bytes: int
    removed: int = Field(description="checkpoints of earlier runs that the source has deleted since")
    verified: int = Field(description="checkpoints read back and equal by digest")
    problems: dict[str, str] = Field(description="threads that could not be copied, and why")
    pending: int = Field(default=0, description="rows in journals of the source, which were not copied: flush it")


class Pruned(Part):
    """One checkpoint that goes, or went."""

    thread: str
    checkpoint: str
    saved_at: float | None
    size: int


class PruneAnswer(Answer):
    """``prune``"""

    dry_run: bool
    tier: str | None
    threads: int
    kept: int
    waiting: int = Field(description="checkpoints kept because a paused turn waits in them")
    pruned: int
    bytes: int
    checkpoints: list[Pruned]
    cut: int = Field(default=0, description="checkpoints that are counted but not listed (--most)")


class BenchRow(Part):
    """One figure, side by side."""

    what: str
    unit: str
    alone: float
    stack: float
    ratio: float | None
    budget: float | None = Field(description="the ratio that the design allows")
    kept: bool | None


class BenchAnswer(Answer):
    """``bench``"""

    home: str
    machine: str
    rounds: int
    rows: list[BenchRow]


ANSWERS: Mapping[str, type[Answer]] = {
    "check": CheckAnswer,
    "explain": ExplainAnswer,
    "threads": ThreadsAnswer,
    "ls": LsAnswer,
    "show": ShowAnswer,
    "diff": DiffAnswer,
    "stats": StatsAnswer,
    "flush": FlushAnswer,
    "verify": VerifyAnswer,
    "repair": RepairAnswer,
    "migrate": MigrateAnswer,
    "prune": PruneAnswer,
    "bench": BenchAnswer,
    "error": Problem,
}
"""The answer of each command, by its name; ``error`` is that of any command that failed."""
