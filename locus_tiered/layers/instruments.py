"""The instruments of one meter provider, and what is recorded with them.

Labels are a tier's name, an operation, a class of errors: never an id, so that what a backend has to keep is
bounded by the stack, not by its traffic.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from threading import Lock
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

from opentelemetry import metrics, trace
from opentelemetry.metrics import CallbackOptions, MeterProvider, Observation
from opentelemetry.metrics import _internal as _metrics_api
from opentelemetry.trace import TracerProvider

from locus_tiered.layers.legs import Legs
from locus_tiered.layers.vocabulary import DURATION_BUCKETS, METRICS
from locus_tiered.stores.journal import Pending

__all__ = ["Gauges", "Instruments", "instruments_for", "meter_provider", "tracer_provider"]

_Labels = tuple[tuple[str, str], ...]
_BREAKER = {"closed": 0, "half-open": 1, "open": 2}
_MISSING = object()


def tracer_provider(given: TracerProvider | None) -> TracerProvider | None:
    """The provider to trace with, or ``None`` where there is no OpenTelemetry SDK."""
    # The function of the API looks into os.environ on every call as long as nothing is configured: 1 us.
    found: Any = given if given is not None else getattr(trace, "_TRACER_PROVIDER", _MISSING)
    if found is _MISSING:
        found = trace.get_tracer_provider()
    if found is None or isinstance(found, trace.NoOpTracerProvider | trace.ProxyTracerProvider):
        return None
    return found  # type: ignore[no-any-return]


def meter_provider(given: MeterProvider | None) -> MeterProvider | None:
    """The provider to measure with, or ``None`` where there is no OpenTelemetry SDK."""
    found: Any = given if given is not None else getattr(_metrics_api, "_METER_PROVIDER", _MISSING)
    if found is _MISSING:
        found = metrics.get_meter_provider()
    if found is None or isinstance(found, metrics.NoOpMeterProvider | _metrics_api._ProxyMeterProvider):
        return None
    return found  # type: ignore[no-any-return]


_PENDING: Mapping[str, Callable[[Pending], float | None]] = {
    "locus.checkpoint.pending.rows": lambda pending: pending.rows,
    "locus.checkpoint.pending.bytes": lambda pending: pending.bytes,
    "locus.checkpoint.pending.age": lambda pending: pending.oldest_age or 0.0,
    "locus.checkpoint.dead_letters": lambda pending: pending.dead_letters,
}


class Gauges:
    """The breakers and journals of one stack, for as long as the stack lives."""

    def __init__(self, stack: str, legs: Legs) -> None:
        self._breakers = [({"locus.stack": stack, "locus.tier": tier}, breaker) for tier, breaker in legs.breakers]
        self._journals = [({"locus.stack": stack, "locus.tier": tier}, layer) for tier, layer in legs.journals]
        self._replicas = [({"locus.stack": stack, "locus.tier": tier}, hints) for tier, hints in legs.replicas]

    def observe(self, metric: str) -> Iterable[Observation]:
        """What each has to say now."""
        if metric == "locus.checkpoint.breaker.state":
            for labels, breaker in self._breakers:
                yield Observation(_BREAKER[breaker.state], labels)
            return
        if metric == "locus.checkpoint.hints":
            for labels, hints in self._replicas:
                yield Observation(hints(), labels)
            return
        for labels, layer in self._journals:
            value = _PENDING[metric](layer.pending())
            if value is not None:
                yield Observation(value, labels)


class Instruments:
    """All instruments of one meter provider.

    Counts are kept here and asked for when they are exported: adding to a counter of the SDK costs 7 us.
    """

    def __init__(self, provider: MeterProvider, version: str) -> None:
        meter = provider.get_meter("locus_tiered", version)
        self._stacks: WeakSet[Gauges] = WeakSet()
        self._lock = Lock()
        self._counts: dict[str, dict[_Labels, int]] = {}
        for metric in METRICS.values():
            about: dict[str, Any] = {"unit": metric.unit, "description": metric.meaning.replace("`", "")}
            if metric.kind == "counter":
                self._counts[metric.name] = {}
                meter.create_observable_counter(metric.name, [partial(self._counted, metric.name)], **about)
            elif metric.kind == "gauge":
                meter.create_observable_gauge(metric.name, [partial(self._observed, metric.name)], **about)
            else:
                advice: dict[str, Any] = {"explicit_bucket_boundaries_advisory": DURATION_BUCKETS}
                try:
                    self.duration = meter.create_histogram(metric.name, **about, **advice)
                except TypeError:  # before version 1.30 of the API
                    self.duration = meter.create_histogram(metric.name, **about)

    def watch(self, gauges: Gauges) -> None:
        """Include the breakers and journals of one more stack."""
        self._stacks.add(gauges)

    def add(self, metric: str, labels: _Labels, amount: int = 1) -> None:
        """Count. The labels are pairs in a fixed order."""
        with self._lock:
            counts = self._counts[metric]
            counts[labels] = counts.get(labels, 0) + amount

    def _counted(self, metric: str, _: CallbackOptions) -> Iterable[Observation]:
        with self._lock:
            counts = list(self._counts[metric].items())
        return [Observation(value, dict(labels)) for labels, value in counts]

    def _observed(self, metric: str, _: CallbackOptions) -> Iterable[Observation]:
        for stack in list(self._stacks):
            yield from stack.observe(metric)


_instruments: WeakKeyDictionary[MeterProvider, Instruments] = WeakKeyDictionary()


def instruments_for(provider: MeterProvider, version: str) -> Instruments:
    """The instruments of a provider; several stacks share them."""
    found = _instruments.get(provider)
    if found is None:
        found = _instruments[provider] = Instruments(provider, version)
    return found
