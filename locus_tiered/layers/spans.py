"""One operation as it is traced: a :class:`Scope` per span, which sees the calls that are made below it.

A scope is an :class:`~locus_tiered.core.signals.Observer`. It is current while its call runs, in whatever task, and
opens a child for every tier that is asked and for every attempt. Where the trace is not sampled it opens no
spans, and still measures. Calls that outlive their operation are told so: they are linked to it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextvars import Token
from typing import Any, TypeVar

from locus.observability.context import current_run_id
from opentelemetry import context as otel
from opentelemetry.context import Context
from opentelemetry.trace import Link, Span, SpanKind, Status, StatusCode, set_span_in_context

from locus_tiered.core.checkpoint import Checkpoint
from locus_tiered.core.operations import Load, Save
from locus_tiered.core.signals import Observer, Signal, observe, unobserve
from locus_tiered.layers.legs import Leg
from locus_tiered.layers.tracing import Tracing, error_type
from locus_tiered.layers.vocabulary import SIGNALS

__all__ = ["Scope"]

T = TypeVar("T")

_NAMES: dict[str, str] = {}
_FACTS = {"attempt": "locus.attempt", "wait": "locus.wait", "checkpoints": "locus.checkpoints"}
_MOST_NEWS = 100
_LEFT = (asyncio.CancelledError, GeneratorExit)


class Scope(Observer):
    """An operation, a tier that is asked, or an attempt, for as long as it lasts."""

    __slots__ = (
        "_began",
        "_token",
        "_watching",
        "answered_by",
        "background",
        "bytes",
        "ended",
        "hit",
        "leg",
        "news",
        "notes",
        "number",
        "operation",
        "owner",
        "recording",
        "root",
        "span",
        "thread",
        "tracing",
    )

    def __init__(
        self,
        tracing: Tracing,
        operation: str,
        leg: Leg | None,
        *,
        thread: str | None = None,
        parent: Scope | None = None,
        number: int | None = None,
        owner: object = None,
        context: Context | None = None,
    ) -> None:
        self.tracing, self.operation, self.leg, self.number, self.owner = tracing, operation, leg, number, owner
        self.root: Scope = self if parent is None else parent.root
        self.thread: str | None = thread if parent is None else self.root.thread
        self.ended = False
        self.background = parent is not None and parent.ended
        self.bytes: int | None = None
        self.answered_by: str | None = None
        self.hit: bool | None = None
        self.notes: dict[str, Any] | None = None
        self.news: list[tuple[str, dict[str, Any]]] | None = None
        if parent is None and current_run_id() is not None:
            self.news = []
        self.span = self._open(parent, context)
        # Asked once: an ended span says that it does not record.
        self.recording: bool = self.span is not None and self.span.is_recording()
        self._began = tracing.clock.monotonic()

    # -- the span ------------------------------------------------------------------------------------

    def _open(self, parent: Scope | None, context: Context | None) -> Span | None:
        tracer = self.tracing.tracer
        if tracer is None or (parent is not None and not parent.recording):
            return None
        if parent is not None and self.background:
            return self._late(parent)
        return tracer.start_span(self._name, context, self._kind, self._attributes)

    def _late(self, cause: Scope, began: int | None = None) -> Span | None:
        """A span of its own for what goes on after ``cause`` has ended: that one's trace may be over."""
        tracer = self.tracing.tracer
        if tracer is None or cause.span is None:
            return None
        attributes = self._attributes | {"locus.background": True}
        links = [Link(cause.span.get_span_context())]
        return tracer.start_span(self._name, Context(), self._kind, attributes, links, began)

    @property
    def _name(self) -> str:
        if self.number is not None:
            return "checkpoint.attempt"
        name = _NAMES.get(self.operation)
        if name is None:
            name = _NAMES[self.operation] = f"checkpoint.{self.operation}"
        return name

    @property
    def _kind(self) -> SpanKind:
        return SpanKind.CLIENT if self.leg is not None and self.leg.foreign else SpanKind.INTERNAL

    @property
    def _attributes(self) -> dict[str, Any]:
        attributes = self.tracing.attributes(self.leg, self.operation)
        if self.thread is not None:
            attributes = {**attributes, "locus.thread.id": self.thread}
        if self.number is not None:
            attributes = {**attributes, "locus.attempt": self.number}
        return attributes

    @property
    def of_use(self) -> bool:
        """Whether anything below is worth a look."""
        return self.recording or self.tracing.instruments is not None or self.root.news is not None

    # -- its time ------------------------------------------------------------------------------------

    def enter(self) -> None:
        """Be what is current in this context."""
        self._token: Token[Context] | None = None
        if self.span is not None:
            self._token = otel.attach(set_span_in_context(self.span))
        self._watching = observe(self)

    def leave(self) -> None:
        """Give way to what was current before."""
        try:
            unobserve(self._watching)
        except ValueError:
            return  # a coroutine that is closed from elsewhere: this context was never ours
        if self._token is not None:
            otel.detach(self._token)

    async def watch(self, operation: Any, call: Callable[[], Awaitable[T]]) -> T:
        """Make the call that this scope is for."""
        self.enter()
        error: BaseException | None = None
        try:
            result = await call()
        except BaseException as caught:  # noqa: BLE001 - raised again below
            error = caught
        self.leave()
        if error is None:
            self.note(operation, result)
            self.end()
            return result
        # Not while the error is being handled: an exporter that fails then would log it, with all that it says.
        self.end(error)
        try:
            raise error
        finally:
            del error

    def remark(self, attribute: str) -> None:
        """Something that is true of this operation, and rare."""
        if self.notes is None:
            self.notes = {}
        self.notes[attribute] = True

    def note(self, operation: Any, result: object) -> None:
        """What an answer says about the operation."""
        size = None
        if isinstance(operation, Load):
            found = isinstance(result, Checkpoint)
            if isinstance(result, Checkpoint):
                size = result.body.size
                if self.leg is not None:
                    self.root.answered_by = self.leg.name
            if self.leg is not None and self.leg.near:
                self.hit = found
        elif isinstance(operation, Save) and operation.checkpoint is not None:
            size = operation.checkpoint.body.size
        if size is not None:
            self.bytes = size
            if self.root.operation == self.operation:
                self.root.bytes = size

    def end(self, error: BaseException | None = None) -> None:
        """The call has ended: with ``error``, or well."""
        self.ended = True
        left, failed = False, None
        if error is not None:
            left = isinstance(error, _LEFT)
            failed = None if left else error_type(error)
        if self.number is None and not left and self.tracing.instruments is not None:
            self.tracing.took(self.leg, self.operation, failed, self.tracing.clock.monotonic() - self._began)
        span = self.span
        if span is None or not self.recording:
            return
        attributes = self.notes or {}
        if self.bytes is not None and failed is None:
            attributes["locus.checkpoint.bytes"] = self.bytes
        if self.hit is not None and failed is None and self.operation == "load":
            attributes["locus.cache.hit"] = self.hit
        if self is self.root and self.leg is None and self.answered_by is not None and self.operation == "load":
            attributes["locus.tier"] = self.answered_by
        if left:
            attributes["locus.cancelled"] = True
        if failed is not None:
            attributes["error.type"] = failed
            span.set_status(Status(StatusCode.ERROR, failed))
        if self.root.ended and self.root is not self and self.root.span is not None and not self.background:
            attributes["locus.background"] = True
            span.add_link(self.root.span.get_span_context())
        if attributes:
            span.set_attributes(attributes)
        span.end()

    # -- what is seen below ---------------------------------------------------------------------------

    async def member(self, layer: Any, operation: Any, call: Callable[[], Awaitable[T]]) -> T:
        leg = self.tracing.legs.member(layer)
        if leg is None or not self.of_use:
            return await call()
        if leg is self.leg and not (self.ended and self is self.root):
            return await self._within(operation, call)
        return await Scope(self.tracing, operation.name, leg, parent=self).watch(operation, call)

    async def attempt(self, layer: Any, operation: Any, number: int, call: Callable[[], Awaitable[T]]) -> T:
        if not self.recording:
            return await call()
        return await Scope(self.tracing, operation.name, self.leg, parent=self, number=number).watch(operation, call)

    async def _within(self, operation: Any, call: Callable[[], Awaitable[T]]) -> T:
        """A layer of the leg that this scope is for: no span of its own, unless it outlives the scope."""
        if not self.recording:
            return await call()
        began = self.tracing.clock.wall()
        try:
            result = await call()
        except BaseException as error:
            self._outlived(began, error)
            raise
        self.note(operation, result)
        self._outlived(began, None)
        return result

    def _outlived(self, began: float, error: BaseException | None) -> None:
        if not self.ended:
            return
        span = self._late(self, int(began * 1e9))
        if span is not None:
            if error is not None and not isinstance(error, _LEFT):
                span.set_attribute("error.type", error_type(error))
                span.set_status(Status(StatusCode.ERROR, error_type(error)))
            span.end()

    def joined(self) -> None:
        self.remark("locus.answer.shared")

    def signal(self, signal: Signal) -> None:
        tier = self.tracing.tier(self.leg, signal)
        self.tracing.count(signal, tier, self.operation)
        root = self.root
        if signal.kind == "cache.hit":
            root.hit = True
        elif signal.kind == "cache.miss":
            root.hit = root.hit or False
        elif signal.kind == "answer.stale":
            root.remark("locus.answer.stale")
        heard = SIGNALS.get(signal.kind)
        if heard is None:
            return
        facts = {shown: signal.facts[fact] for fact, shown in _FACTS.items() if fact in signal.facts}
        if heard.event and self.span is not None and not self.ended:
            self.span.add_event(signal.kind, facts if tier is None else facts | {"locus.tier": tier})
        if heard.bus is not None and root.news is not None and len(root.news) < _MOST_NEWS:
            told = {fact: value for fact, value in signal.facts.items() if fact in ("attempt", "wait")}
            if heard.reason is not None:
                told["reason"] = heard.reason
            root.news.append((heard.bus, {"tier": tier, **told}))
