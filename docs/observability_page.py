"""``observability.md``: its tables come from ``layers/vocabulary.py`` and from the log calls in the package."""

from __future__ import annotations

import ast
from pathlib import Path

import locus_tiered
from locus_tiered.layers.vocabulary import ATTRIBUTES, BUS_EVENTS, METRICS, SIGNALS, SPANS

__all__ = ["observability"]

_LEVELS = ("error", "exception", "warning", "info", "debug")


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *(tuple(cell.replace("|", "\\|") for cell in row) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def spans_table() -> str:
    """One row per span."""
    return _table(("span", "what it is"), [(f"`{name}`", meaning) for name, meaning in SPANS.items()])


def attributes_table() -> str:
    """One row per attribute."""
    rows = [
        (f"`{each.name}`", each.kind, each.where or "metrics only", "yes" if each.metrics else "", each.meaning)
        for each in ATTRIBUTES
    ]
    return _table(("attribute", "type", "on", "metrics too", "meaning"), rows)


def metrics_table() -> str:
    """One row per metric."""
    rows = [
        (
            f"`{each.name}`",
            each.kind,
            f"`{each.unit}`",
            ", ".join(f"`{label}`" for label in each.labels),
            f"`{each.prometheus}`",
            each.meaning,
        )
        for each in METRICS.values()
    ]
    return _table(("metric", "kind", "unit", "labels", "in Prometheus", "meaning"), rows)


def events_table() -> str:
    """One row per event of a span."""
    rows = [
        (f"`{kind}`", f"`{heard.metric}`" if heard.metric else "", f"`{heard.bus}`" if heard.bus else "", heard.meaning)
        for kind, heard in SIGNALS.items()
    ]
    return _table(("what happens", "counted in", "told to the bus as", "meaning"), rows)


def bus_table() -> str:
    """One row per event of the SDK's bus."""
    return _table(("event", "meaning"), [(f"`{name}`", meaning) for name, meaning in BUS_EVENTS.items()])


def logs_table() -> str:
    """One row per line that the package may log, by what it says."""
    rows = []
    package = Path(locus_tiered.__file__).parent
    for floor in ("core", "stores", "layers"):
        for path in sorted((package / floor).glob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if (
                    isinstance(node, ast.Call)
                    and isinstance(node.func, ast.Attribute)
                    and isinstance(node.func.value, ast.Name)
                    and node.func.value.id == "logger"
                    and node.func.attr in _LEVELS
                    and isinstance(node.args[0], ast.Constant)
                ):
                    level = "error" if node.func.attr == "exception" else node.func.attr
                    rows.append((level.upper(), f"`{floor}.{path.stem}`", f"`{node.args[0].value}`"))
    rows.sort(key=lambda row: (_LEVELS.index(row[0].lower()), row))
    return _table(("level", "logger, below `locus_tiered.`", "message"), rows)


_BEFORE = """
The SDK emits two events about checkpoints and no span. `TracedCheckpointer` shows what a stack does: which tier
answered, how long each one took, what was tried again, what went wrong without anybody noticing. It goes around the
whole stack; the layers below report to it by themselves.

```python
from locus.agent import Agent
from locus.memory.backends import MemoryCheckpointer
from locus.testing import ScriptedModel
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from locus_tiered import BoundedMemoryCheckpointer, Tier, TieredCheckpointer, TracedCheckpointer, turn_span

exporter = InMemorySpanExporter()  # any exporter
tracers = TracerProvider()
tracers.add_span_processor(SimpleSpanProcessor(exporter))

checkpointer = TracedCheckpointer(
    TieredCheckpointer(BoundedMemoryCheckpointer(), Tier(MemoryCheckpointer(), name="far")),
    tracer_provider=tracers,  # left out: OpenTelemetry's global one
)
agent = Agent(model=ScriptedModel(["Hello, Ada."]), checkpointer=checkpointer, context_window=8_000)
async with turn_span(agent, "ada"):
    await agent.arun("My name is Ada.", thread_id="ada")

for span in sorted(exporter.get_finished_spans(), key=lambda span: span.start_time):
    print(span.name, span.attributes.get("locus.tier", ""))
```

```text
agent.turn
checkpoint.load
checkpoint.head far
checkpoint.save
checkpoint.save far
checkpoint.save memory
```

`pip install "locus-tiered[otel]"` brings the OpenTelemetry SDK and the OTLP exporter. Where no OpenTelemetry SDK is
configured, nothing is made: one check per operation. One that is configured later is found.
`python examples/traced_agent.py` shows a whole turn as a tree, with a save that is retried in it.

## A turn as one trace

An agent loads before its own spans begin, and saves for the last time after they have ended: of a turn's checkpoints,
only the iteration saves are inside the spans of the SDK's `TelemetryHook`. With `turn_span(agent, thread_id)` around
the run, all of them and the agent's own spans are one trace. It works with and without `TelemetryHook`, and with any
number of turns at once; a `TelemetryHook` itself is for one run at a time.

`agent.run_sync()` keeps the trace, unless it is called while an event loop runs: the SDK then moves the agent to a
thread and leaves the context behind. Loads and saves still find the turn of their thread, if it has only one under
way; the agent's own spans do not, and become a trace of their own. Use `arun()` where a loop runs.

## What is never shown

No message, tool argument, state, `metadata=`, key, connection string or message of an error is in any span, metric,
event or log line; of an error there is its class. A thread's id is shown in spans and events as `thread_id=` says:
`"plain"` (the default), `"hash"`, or `"off"`. Metrics never have it, nor the id of a checkpoint: how many series there
are depends on the stack, not on its traffic. `tests/tracing/test_secrets.py` plants secrets everywhere and looks.

## Errors

- `error.type`, and the span's status, are set where the call that the span stands for has failed. What a layer above
  made good (a retry, a near tier that failed) is an error of the attempt or the tier, not of the operation.
- An absent checkpoint is not an error, and no miss: a miss is a load that had to go further down and found something.
- A cancelled call is marked `locus.cancelled`. It is not an error, and not measured.
- What goes on after its operation has ended (a save whose caller left, a call that timed out) is marked
  `locus.background` and *linked* to the operation; what begins only then is a trace of its own.
- A call that is refused before anything is asked (a missing capability, a wrong `limit`) has no span.
"""

ALERTS = (
    (
        '`rate(db_client_operation_duration_seconds_count{db_system_name="locus_tiered",error_type!=""}[5m]) > 0`',
        "agents see failures: turns are lost",
        "look at which tier fails, below",
    ),
    (
        "`max by (locus_tier) (locus_checkpoint_breaker_state) == 2` for 1 min",
        "a store is down, and left alone",
        "mend the store; the breaker closes by itself",
    ),
    (
        '`rate(locus_checkpoint_degraded_total{locus_reason="damaged"}[5m]) > 0`',
        "a checkpoint is not what was saved",
        "look at the disk; the file is kept below `.damaged/`",
    ),
    (
        '`rate(locus_checkpoint_degraded_total{locus_reason="stale"}[5m]) > 0`',
        "answers may be old: home is out of reach",
        "as for the breaker",
    ),
    (
        '`rate(locus_checkpoint_degraded_total{locus_reason="tier_failed"}[5m]) > 0` for 10 min',
        "a near tier fails; all goes to the one below",
        "look at that tier: agents notice only the time",
    ),
    (
        "`rate(locus_checkpoint_retries_total[10m])` above 5 % of the tier's operations",
        "a store stumbles",
        "look at its own metrics: throttling, connections",
    ),
    (
        "hits of the nearest tier below 80 % of hits and misses, for 1 h",
        "the memory is too small, or agents move between processes",
        "raise `max_bytes`, or pin threads to processes",
    ),
)


def observability() -> str:
    """The whole page."""
    parts = [
        "# Observability\n",
        "<!-- Generated by `python -m docs.generate`. Do not edit. -->",
        _BEFORE,
        "## Spans\n",
        "A leg's tier is one span for all of its layers. A tier is called by the name of its `Tier`, or of its "
        "outermost layer, or by what it is (`s3`). A `TracedCheckpointer` around a leg of a traced stack names it; "
        "wrapping nothing but a leg traces that leg. Calls on somebody else's checkpointer are of kind `CLIENT`, all "
        "others `INTERNAL`.\n",
        spans_table(),
        "## Attributes\n",
        "`db.*` and `error.type` are those of OpenTelemetry's semantic conventions, `locus.*` are ours.\n",
        attributes_table(),
        "## Metrics\n",
        "An operation on the whole stack is in `db.client.operation.duration` with `db.system.name=locus_tiered` and "
        "without `locus.tier`; each call on a tier is there with both. Do not sum over the two.\n",
        metrics_table(),
        "## What happens on the way\n",
        "Hits and misses are attributes and counters; everything else here is also an event of the span that it "
        "happened in.\n",
        events_table(),
        "## The SDK's event bus\n",
        "Inside a run of it (`run_context()`, or a router) these are published beside the SDK's own, with `operation`, "
        "`stack`, and `thread_id` as it may be shown. They are published when the operation is over. No OpenTelemetry "
        "is needed for that.\n",
        bus_table(),
        "## Log lines\n",
        "Every module logs to the logger of its name. Records carry `trace_id` and `span_id` (empty when no span is "
        "active), for a format like `%(levelname)s %(trace_id)s %(name)s %(message)s`. Others' records have no such "
        'fields: give the formatter `defaults={"trace_id": ""}`, or attach it to the logger `locus_tiered`.\n',
        logs_table(),
        "## What to alert on\n",
        "[`docs/grafana/locus-tiered.json`](grafana/locus-tiered.json) is a dashboard of all of it, to import into "
        "Grafana.\n",
        _table(("when", "means", "do"), list(ALERTS)),
    ]
    return "\n".join(parts)
