"""What one ``TracedCheckpointer`` traces with: its tracer, its instruments, its legs, its rules about ids.

Everything is looked up when it is first needed, so that an OpenTelemetry SDK may be configured after the stack
was built, or never.
"""

from __future__ import annotations

import hashlib
from importlib.metadata import version
from typing import Any, Literal

from locus.observability.context import current_run_id
from opentelemetry.context import Context
from opentelemetry.metrics import MeterProvider
from opentelemetry.trace import Tracer, TracerProvider, get_current_span

from locus_tiered.core.clock import Clock
from locus_tiered.core.errors import BackendError, StackConfigError, shorten
from locus_tiered.core.layer import Layer
from locus_tiered.core.signals import Signal
from locus_tiered.layers.instruments import Gauges, Instruments, instruments_for, meter_provider, tracer_provider
from locus_tiered.layers.legs import OWN_SYSTEM, Leg, Legs
from locus_tiered.layers.vocabulary import SIGNALS

__all__ = ["ThreadIds", "Tracing", "check_thread_ids", "error_type", "open_turns", "shown_id", "turn_of"]

ThreadIds = Literal["plain", "hash", "off"]

_LONGEST_ID = 256
_ERROR_TYPES = 50

_error_types: set[str] = set()

open_turns: dict[tuple[int, str], list[Context]] = {}
"""The turns under way (see ``turns.py``), by checkpointer and thread."""


def turn_of(checkpointer: object, thread_id: object) -> Context | None:
    """The only turn under way of a thread, for an operation that comes without a span around it."""
    if not open_turns or not isinstance(thread_id, str) or get_current_span().get_span_context().is_valid:
        return None
    turns = open_turns.get((id(checkpointer), thread_id), [])
    return turns[0] if len(turns) == 1 else None


def check_thread_ids(given: object) -> ThreadIds:
    """``thread_id=`` as given by a user, or :class:`StackConfigError`."""
    if given in ("plain", "hash", "off"):
        return given
    raise StackConfigError(f"thread_id={shorten(given)}", hint='write "plain", "hash" or "off"')


def error_type(error: BaseException) -> str:
    """``error.type``: the class of an error, the backend's own where it is known; never its message."""
    if type(error) is BackendError and error.__cause__ is not None:
        error = error.__cause__
    kind = type(error)
    own = kind.__module__ == "builtins" or kind.__module__.startswith("locus_tiered.")
    name = kind.__qualname__ if own else f"{kind.__module__}.{kind.__qualname__}"
    if name not in _error_types:
        if len(_error_types) >= _ERROR_TYPES:
            return "_OTHER"
        _error_types.add(name)
    return name


def shown_id(thread_id: str, how: ThreadIds) -> str | None:
    """A thread id as spans and events may show it."""
    if how == "off":
        return None
    if how == "hash":
        return hashlib.blake2b(thread_id.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()
    if thread_id.isascii():
        return thread_id[:_LONGEST_ID]
    return thread_id[:_LONGEST_ID].encode("utf-8", "replace").decode()  # a lone surrogate has no place in OTLP


class Tracing:
    """The means of one traced stack."""

    def __init__(
        self,
        stack: Layer,
        name: str,
        clock: Clock,
        thread_ids: ThreadIds,
        providers: tuple[TracerProvider | None, MeterProvider | None],
    ) -> None:
        self.name = name
        self.clock = clock
        self.thread_ids: ThreadIds = thread_ids
        self.legs = Legs(stack)
        self.own_leg = self.legs.of(stack)
        self.tracer: Tracer | None = None
        self.instruments: Instruments | None = None
        self._providers = providers
        self._gauges = Gauges(name, self.legs)
        self._spans: dict[tuple[Leg | None, str], dict[str, Any]] = {}
        self._durations: dict[tuple[Leg | None, str, str | None], dict[str, str]] = {}

    def ready(self) -> bool:
        """Whether anybody may want to know anything. Looks for what was not there the last time."""
        if self.tracer is None:
            tracers = tracer_provider(self._providers[0])
            if tracers is not None:
                self.tracer = tracers.get_tracer("locus_tiered", version("locus-tiered"))
        if self.instruments is None:
            meters = meter_provider(self._providers[1])
            if meters is not None:
                self.instruments = instruments_for(meters, version("locus-tiered"))
                self.instruments.watch(self._gauges)
        return self.tracer is not None or self.instruments is not None or current_run_id() is not None

    def thread(self, thread_id: object) -> str | None:
        """A thread id as it may be shown."""
        return shown_id(thread_id, self.thread_ids) if isinstance(thread_id, str) else None

    def attributes(self, leg: Leg | None, operation: str) -> dict[str, Any]:
        """What a span of this operation begins with; not to be changed."""
        key = (leg, operation)
        found = self._spans.get(key)
        if found is None:
            found = self._spans[key] = {
                "db.system.name": OWN_SYSTEM if leg is None else leg.system,
                "db.operation.name": operation,
                "locus.stack": self.name,
            } | ({} if leg is None else {"locus.tier": leg.name})
        return found

    def took(self, leg: Leg | None, operation: str, error: str | None, seconds: float) -> None:
        """Record a duration."""
        if self.instruments is None:
            return
        key = (leg, operation, error)
        labels = self._durations.get(key)
        if labels is None:
            labels = dict(self.attributes(leg, operation))
            if error is not None:
                labels["error.type"] = error
            self._durations[key] = labels
        self.instruments.duration.record(seconds, labels)

    def tier(self, leg: Leg | None, signal: Signal) -> str | None:
        """Which tier a signal that came in a call on ``leg`` is about."""
        if leg is not None:
            return leg.name
        return self.legs.label(signal.facts.get("tier")) or self.legs.label(signal.member)

    def count(self, signal: Signal, tier: str | None, operation: str) -> None:
        """Count what a signal says."""
        heard = SIGNALS.get(signal.kind)
        if heard is None or heard.metric is None or self.instruments is None:
            return
        labels: tuple[tuple[str, str], ...] = (("locus.stack", self.name),)
        if tier is not None:
            labels += (("locus.tier", tier),)
        if heard.reason is not None:
            labels += (("locus.reason", heard.reason),)
        if signal.kind == "retry":
            labels += (("db.operation.name", operation),)
        self.instruments.add(heard.metric, labels, signal.facts.get("checkpoints", 1))
