"""``TracedCheckpointer``: who answered, how long it took, what was tried again, as OpenTelemetry sees it.

Put it around a whole stack. Every operation becomes one span, with a child for every tier that was asked and for
every attempt; the layers below tell the tracer by themselves, nobody has to wrap each of them. Around one leg it
traces that leg; inside another ``TracedCheckpointer`` it only gives its leg a name.

It promises: a span carries no payload, key, connection string, or message of an error; a metric never carries
the id of a thread or a checkpoint; an absent checkpoint is not an error, nor is a failure that a layer above made
good; background work is linked to what caused it. An operation's span covers freezing a state and making it anew
for the caller. Without an OpenTelemetry SDK, and without a run of the SDK's event bus, it makes nothing: one check.

It does not trace calls that are refused before anything is asked (a missing capability, a limit of 0), except for
``save`` and ``load``, whose arguments are checked inside the span. It never fails an operation by itself.

All names are in ``vocabulary.py`` and in the documentation's page on observability.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, TypeVar

from locus.memory.checkpointer import BaseCheckpointer
from locus.observability.context import current_run_id
from locus.observability.emit import emit as publish
from opentelemetry.metrics import MeterProvider
from opentelemetry.trace import TracerProvider

from locus_tiered.core.clock import SYSTEM, Clock
from locus_tiered.core.layer import Layer, construction
from locus_tiered.core.operations import Operation
from locus_tiered.core.signals import observer
from locus_tiered.layers.instruments import meter_provider as meters
from locus_tiered.layers.instruments import tracer_provider as tracers
from locus_tiered.layers.names import short_name
from locus_tiered.layers.spans import Scope
from locus_tiered.layers.tracing import ThreadIds, Tracing, check_thread_ids, turn_of

if TYPE_CHECKING:
    from locus.core.state import AgentState

__all__ = ["TracedCheckpointer"]

R = TypeVar("R")
T = TypeVar("T")


class TracedCheckpointer(Layer):
    """A stack that can be seen.

    Args:
        inner: The whole stack, or one leg.
        name: ``locus.stack``; by default what the stack is called.
        tracer_provider: Where spans go; by default OpenTelemetry's global one, once there is one.
        meter_provider: Where metrics go; likewise.
        thread_id: How ``locus.thread.id`` shows a thread's id in spans and events: ``"plain"``, as a ``"hash"``
            (16 hex characters, the same in every process), or not at all (``"off"``). Metrics never have it.

    A cancelled operation is marked ``locus.cancelled`` and is neither an error nor measured.
    """

    def __init__(
        self,
        inner: BaseCheckpointer,
        *,
        name: str | None = None,
        tracer_provider: TracerProvider | None = None,
        meter_provider: MeterProvider | None = None,
        thread_id: ThreadIds = "plain",
        clock: Clock = SYSTEM,
    ) -> None:
        super().__init__(inner, name=name)
        self.thread_id: ThreadIds = check_thread_ids(thread_id)
        self._tracers, self._meters = tracer_provider, meter_provider
        self._clock = clock
        self._tracing: Tracing | None = None

    async def handle(self, operation: Operation[R]) -> R:
        watching = observer()
        if watching is None:
            if not self._seen():
                return await self.inner.handle(operation)
            thread = operation.threads
            return await self._traced(
                operation.name, thread[0] if thread else None, lambda: self.inner.handle(operation), operation
            )
        if isinstance(watching, Scope) and watching.owner is self:  # inside our own save() or load()
            result = await self.inner.handle(operation)
            watching.note(operation, result)
            return result
        return await watching.member(self, operation, lambda: self.inner.handle(operation))

    async def save(
        self,
        state: AgentState,
        thread_id: str,
        checkpoint_id: str | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> str:
        if observer() is None and not self._seen():
            return await self.inner.save(state, thread_id, checkpoint_id, metadata)
        save = super().save
        if observer() is not None:
            return await save(state, thread_id, checkpoint_id, metadata)
        return await self._traced("save", thread_id, lambda: save(state, thread_id, checkpoint_id, metadata))

    async def load(self, thread_id: str, checkpoint_id: str | None = None) -> AgentState | None:
        if observer() is None and not self._seen():
            return await self.inner.load(thread_id, checkpoint_id)
        load = super().load
        if observer() is not None:
            return await load(thread_id, checkpoint_id)
        return await self._traced("load", thread_id, lambda: load(thread_id, checkpoint_id))

    def _seen(self) -> bool:
        """Whether anybody looks."""
        if self._tracing is not None:
            return self._tracing.ready()
        if tracers(self._tracers) is None and meters(self._meters) is None and current_run_id() is None:
            return False
        return self.tracing.ready()

    @property
    def tracing(self) -> Tracing:
        """What it traces with; made when it is first needed."""
        if self._tracing is None:
            named = self.name != type(self).__name__
            below = self.inner.name if self.inner.members() else short_name(self.inner)
            name = self.name if named else below
            self._tracing = Tracing(self, name, self._clock, self.thread_id, (self._tracers, self._meters))
        return self._tracing

    async def _traced(
        self, name: str, thread_id: object, call: Callable[[], Awaitable[T]], operation: object = None
    ) -> T:
        tracing = self.tracing
        scope = Scope(
            tracing,
            name,
            tracing.own_leg,
            thread=tracing.thread(thread_id),
            owner=self,
            context=turn_of(self, thread_id),
        )
        try:
            result = await scope.watch(operation, call)
        except Exception:
            await self._publish(scope)
            raise
        if scope.news is not None and scope.operation == "load" and scope.answered_by is not None:
            stale = scope.notes is not None and "locus.answer.stale" in scope.notes
            told = {"tier": scope.answered_by, "hit": bool(scope.hit), "stale": stale}
            scope.news.append(("memory.checkpoint.answered", told))
        await self._publish(scope)
        return result

    async def _publish(self, scope: Scope) -> None:
        """Tell the SDK's event bus, inside a run of it."""
        news, scope.news = scope.news, None
        if not news:
            return
        about: dict[str, Any] = {"operation": scope.operation, "stack": scope.tracing.name}
        if scope.thread is not None:
            about["thread_id"] = scope.thread
        for what, told in news:
            await publish(what, **about, **told)

    def __repr__(self) -> str:
        return construction(
            self,
            self.inner,
            name=None if self.name == type(self).__name__ else self.name,
            thread_id=None if self.thread_id == "plain" else self.thread_id,
        )
