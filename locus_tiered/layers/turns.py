"""``turn_span``: the one span under which everything that belongs to a turn of an agent comes together.

An agent loads before its own spans begin, and saves for the last time after they have ended. With a span around
the whole turn, the load, the agent's invocation and the final save are parts of one trace::

    async with turn_span(agent, "thread-1"):
        await agent.arun("Hello", thread_id="thread-1")
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

from opentelemetry import context as otel
from opentelemetry.context import Context
from opentelemetry.trace import INVALID_SPAN, Span, SpanKind, Status, StatusCode, TracerProvider, set_span_in_context

from locus_tiered.layers.instruments import tracer_provider as tracers
from locus_tiered.layers.traced import TracedCheckpointer
from locus_tiered.layers.tracing import error_type, open_turns, shown_id

__all__ = ["turn_span"]


@asynccontextmanager
async def turn_span(
    agent: Any, thread_id: str, *, tracer_provider: TracerProvider | None = None
) -> AsyncIterator[Span]:
    """One span, ``agent.turn``, for a whole turn of ``agent`` on ``thread_id``; gives the span.

    Args:
        agent: The agent; its ``TracedCheckpointer`` says where spans go and how a thread's id is shown.
        thread_id: The thread that the turn is on.
        tracer_provider: Where the span goes, if not where the checkpointer's go.

    It fails with the block: ``error.type`` is set, the error's message is not. Concurrent turns do not mix. Where
    ``agent.run_sync()`` is called while an event loop runs, the SDK runs the agent on a thread without the caller's
    context: loads and saves of ``thread_id`` still find this span (when it is the thread's only turn), the agent's
    own spans do not. Without an OpenTelemetry SDK it does nothing.
    """
    checkpointer = getattr(getattr(agent, "config", None), "checkpointer", None)
    traced = checkpointer if isinstance(checkpointer, TracedCheckpointer) else None
    given = tracer_provider if tracer_provider is not None else None if traced is None else traced._tracers
    provider = tracers(given)
    if provider is None:
        yield INVALID_SPAN
        return
    attributes = {}
    shown = shown_id(thread_id, "plain" if traced is None else traced.thread_id)
    if shown is not None:
        attributes["locus.thread.id"] = shown
    agent_id = getattr(getattr(agent, "config", None), "agent_id", None)
    if isinstance(agent_id, str):
        attributes["locus.agent_id"] = agent_id
    span = provider.get_tracer("locus_tiered").start_span("agent.turn", None, SpanKind.INTERNAL, attributes)
    here = set_span_in_context(span)
    token = otel.attach(here)
    try:
        with _open(traced, thread_id, here):
            yield span
    except asyncio.CancelledError:
        span.set_attribute("locus.cancelled", True)
        raise
    except Exception as error:
        span.set_attribute("error.type", error_type(error))
        span.set_status(Status(StatusCode.ERROR, error_type(error)))
        raise
    finally:
        otel.detach(token)
        span.end()


@contextmanager
def _open(checkpointer: TracedCheckpointer | None, thread_id: str, here: Context) -> Iterator[None]:
    """Let operations that lost their context find the turn."""
    key = (id(checkpointer), thread_id)
    open_turns.setdefault(key, []).append(here)
    try:
        yield
    finally:
        open_turns[key].remove(here)
        if not open_turns[key]:
            del open_turns[key]
