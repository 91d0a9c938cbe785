"""Every span, attribute, metric, event and signal that tracing speaks of, as data.

The tracer uses these names, ``docs/observability.md`` is generated from them, and the tests hold what is exported,
and every query of the dashboard, against them. There is no second list.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = [
    "ATTRIBUTES",
    "BUS_EVENTS",
    "DURATION_BUCKETS",
    "METRICS",
    "SIGNALS",
    "SPANS",
    "Attribute",
    "Heard",
    "Metric",
]

SPANS: Mapping[str, str] = {
    "checkpoint.<operation>": "One operation on the whole stack, or (with `locus.tier`) on one tier, retries included. "
    "Operations are those of the contract, and `head`: asking a tier for its newest checkpoint",
    "checkpoint.attempt": "One attempt of a `RetryingCheckpointer`; there is one even if it is the only one",
    "agent.turn": "A whole turn of an agent, from `turn_span()`",
}


@dataclass(frozen=True, slots=True)
class Attribute:
    """One attribute. ``metrics`` tells whether it is also a label of metrics."""

    name: str
    kind: str
    where: str
    meaning: str
    metrics: bool = False


ATTRIBUTES: tuple[Attribute, ...] = (
    Attribute(
        "db.system.name",
        "string",
        "operations, tiers, attempts",
        "`locus_tiered` for a whole stack; of a tier what is at its bottom: `aws.s3`, `postgresql`, `redis`, `memory`, "
        "`directory`...",
        metrics=True,
    ),
    Attribute("db.operation.name", "string", "operations, tiers, attempts", "`save`, `load`, `head`...", metrics=True),
    Attribute(
        "error.type",
        "string",
        "all, only if it failed",
        "the class of the error (of the backend's own where it is known); `_OTHER` after 50 different ones",
        metrics=True,
    ),
    Attribute(
        "locus.stack", "string", "operations, tiers, attempts", "the name of the `TracedCheckpointer`", metrics=True
    ),
    Attribute(
        "locus.tier",
        "string",
        "tiers, attempts; operations: which tier a load was answered by",
        "the name of the tier",
        metrics=True,
    ),
    Attribute("locus.cache.hit", "bool", "loads: of near tiers, of the stack", "whether a near tier had the state"),
    Attribute("locus.checkpoint.bytes", "int", "saves and loads", "the size of the state as JSON, where it is known"),
    Attribute("locus.thread.id", "string", "all", "as `thread_id=` says; at most 256 characters"),
    Attribute("locus.agent_id", "string", "turns", "the agent's id"),
    Attribute("locus.attempt", "int", "attempts, the event `retry`", "counted from 1"),
    Attribute("locus.answer.stale", "bool", "operations, only if so", "home was out of reach: the answer may be old"),
    Attribute("locus.answer.shared", "bool", "operations, only if so", "another call was asking the same already"),
    Attribute(
        "locus.background",
        "bool",
        "tiers, only if so",
        "it went on after its operation had ended; the span is linked to that operation's",
    ),
    Attribute("locus.cancelled", "bool", "all, only if so", "the caller left: neither an answer nor an error"),
    Attribute("locus.wait", "double", "the event `retry`", "seconds until the next attempt"),
    Attribute("locus.checkpoints", "int", "the event `cache.evicted`", "how many were let go"),
    Attribute("locus.reason", "string", "", "why an answer is degraded, or what a conflict was", metrics=True),
)


@dataclass(frozen=True, slots=True)
class Metric:
    """One instrument. ``labels`` are all that it ever carries."""

    name: str
    kind: str
    unit: str
    meaning: str
    labels: tuple[str, ...]

    @property
    def prometheus(self) -> str:
        """Its name after the usual translation, for a histogram without ``_bucket``, ``_sum``, ``_count``."""
        unit = {"s": "_seconds", "By": "_bytes"}.get(self.unit, "")
        name = self.name.replace(".", "_").removesuffix(unit) + unit
        return name + ("_total" if self.kind == "counter" else "")


_TIER = ("locus.stack", "locus.tier")

METRICS: Mapping[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric(
            "db.client.operation.duration",
            "histogram",
            "s",
            "How long an operation took: on the whole stack (`db.system.name` is `locus_tiered`), and on each tier",
            ("db.system.name", "db.operation.name", "error.type", *_TIER),
        ),
        Metric("locus.checkpoint.hits", "counter", "{hit}", "Loads that a near tier answered", _TIER),
        Metric(
            "locus.checkpoint.misses", "counter", "{miss}", "Loads that it did not, and that were found below", _TIER
        ),
        Metric("locus.checkpoint.retries", "counter", "{retry}", "Attempts made again", (*_TIER, "db.operation.name")),
        Metric("locus.checkpoint.evictions", "counter", "{checkpoint}", "Checkpoints let go to make room", _TIER),
        Metric(
            "locus.checkpoint.degraded",
            "counter",
            "{answer}",
            "Answers not as they should be: `stale`, `tier_failed` (it came from below), `damaged`, `journal` "
            "(a save that the far store was to acknowledge is on this disk only) or `journal_failed` (it was written "
            "through)",
            (*_TIER, "locus.reason"),
        ),
        Metric(
            "locus.checkpoint.conflicts",
            "counter",
            "{conflict}",
            "A change got in the way: `fill_dropped` (the thread changed during a load), `differed` (a near tier's "
            "copy was not what home has), `writers` (two processes saved to one thread at the same time)",
            (*_TIER, "locus.reason"),
        ),
        Metric(
            "locus.checkpoint.cancelled",
            "counter",
            "{checkpoint}",
            "Checkpoints that were saved and deleted before the far store heard of them",
            _TIER,
        ),
        Metric("locus.checkpoint.pending.rows", "gauge", "{row}", "Operations that a journal still has to send", _TIER),
        Metric("locus.checkpoint.pending.bytes", "gauge", "By", "Bytes of them", _TIER),
        Metric("locus.checkpoint.pending.age", "gauge", "s", "Age of the oldest of them", _TIER),
        Metric(
            "locus.checkpoint.dead_letters", "gauge", "{row}", "Operations that the far store will never take", _TIER
        ),
        Metric(
            "locus.checkpoint.hints", "gauge", "{row}", "Writes that a replica missed and that are kept for it", _TIER
        ),
        Metric(
            "locus.checkpoint.repairs",
            "counter",
            "{repair}",
            "Mended in a replica: `missing` (a checkpoint that it lacked), `damaged` (its copy), `latest` (its "
            "own newest, for readers without this library)",
            (*_TIER, "locus.reason"),
        ),
        Metric("locus.checkpoint.breaker.state", "gauge", "{state}", "0 closed, 1 half-open, 2 open", _TIER),
    )
}

DURATION_BUCKETS = (0.0001, 0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0)
"""Seconds: those of the semantic conventions, and two below, for memory."""

BUS_EVENTS: Mapping[str, str] = {
    "memory.checkpoint.answered": "A load found a checkpoint: `tier`, `hit`, `stale`",
    "memory.checkpoint.retried": "An attempt failed and is made again: `tier`, `attempt`, `wait`",
    "memory.checkpoint.degraded": "An answer is not as it should be: `tier`, `reason`",
}
"""What goes to the SDK's event bus; all have ``thread_id``, ``operation`` and ``stack``."""


@dataclass(frozen=True, slots=True)
class Heard:
    """What tracing makes of one kind of signal."""

    meaning: str
    metric: str | None = None
    reason: str | None = None
    event: bool = True
    """Whether it is an event of the span; what an attribute says is not."""
    bus: str | None = None


SIGNALS: Mapping[str, Heard] = {
    "cache.hit": Heard("A near tier had the state", "locus.checkpoint.hits", event=False),
    "cache.miss": Heard("It had not", "locus.checkpoint.misses", event=False),
    "cache.evicted": Heard("Checkpoints were let go to make room", "locus.checkpoint.evictions"),
    "cache.too_large": Heard("A state larger than the near tier's whole budget passed through"),
    "cache.fill_dropped": Heard(
        "The thread changed during a load: its copy was not kept", "locus.checkpoint.conflicts", "fill_dropped"
    ),
    "tier.differed": Heard("A near tier's copy is not what home has", "locus.checkpoint.conflicts", "differed"),
    "tier.failed": Heard(
        "A near tier failed; the answer comes from below",
        "locus.checkpoint.degraded",
        "tier_failed",
        bus="memory.checkpoint.degraded",
    ),
    "answer.stale": Heard(
        "Home is out of reach: the answer may be old",
        "locus.checkpoint.degraded",
        "stale",
        bus="memory.checkpoint.degraded",
    ),
    "store.damaged": Heard(
        "A damaged checkpoint was found and put aside",
        "locus.checkpoint.degraded",
        "damaged",
        bus="memory.checkpoint.degraded",
    ),
    "journal.kept": Heard("The journal has acknowledged a save or a delete"),
    "journal.cancelled": Heard(
        "A checkpoint was deleted before the far store heard of it", "locus.checkpoint.cancelled", event=False
    ),
    "journal.sent": Heard("What was pending has reached the far store", event=False),
    "journal.send_failed": Heard("What is pending could not be sent; it is tried again after a pause"),
    "journal.dropped": Heard("What a journal held was deleted or overtaken by another process: not sent"),
    "journal.dead_letter": Heard("What a journal held can never be applied; it is kept, and can be read"),
    "journal.adopted": Heard("What a former process left in its journal was taken over"),
    "journal.waiting": Heard("A journal has reached its bounds: a save waits for room"),
    "journal.failed": Heard(
        "The journal could not keep a save: it was written through",
        "locus.checkpoint.degraded",
        "journal_failed",
        bus="memory.checkpoint.degraded",
    ),
    "save.degraded": Heard(
        "The far store did not take a save: the journal keeps it, on this disk only",
        "locus.checkpoint.degraded",
        "journal",
        bus="memory.checkpoint.degraded",
    ),
    "replica.hinted": Heard("A replica missed a write; a hint waits for it"),
    "replica.window": Heard("A replica has missed too many writes of a thread: the thread will be compared"),
    "replica.mended": Heard("A replica was given a checkpoint that it lacked", "locus.checkpoint.repairs", "missing"),
    "replica.damaged": Heard("A replica's copy is not what was saved", "locus.checkpoint.degraded", "damaged"),
    "replica.restored": Heard("A replica's damaged copy was replaced", "locus.checkpoint.repairs", "damaged"),
    "replica.latest_mended": Heard("A replica's own newest was wrong", "locus.checkpoint.repairs", "latest"),
    "replica.quarantined": Heard("What only a fenced replica had was put aside"),
    "replica.fenced": Heard("A replica was away for too long, or is new: not believed until scrub() compared it"),
    "replica.conflict": Heard(
        "Another process saved to the thread at the same time: both are kept", "locus.checkpoint.conflicts", "writers"
    ),
    "retry": Heard("An attempt failed and is made again", "locus.checkpoint.retries", bus="memory.checkpoint.retried"),
    "retry.unknown_error": Heard("An error that no table knows; not retried"),
    "guard.timeout": Heard("An attempt took too long and was abandoned"),
    "guard.refused": Heard("The open breaker refused the call"),
    "guard.overloaded": Heard("Too many calls wait already; this one was turned away"),
    "breaker.opened": Heard("The breaker opened"),
    "breaker.closed": Heard("The breaker is closed again"),
}
