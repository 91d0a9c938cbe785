"""The loggers of this package: the standard library's, whose records also carry the trace that is under way.

``record.trace_id`` and ``record.span_id`` are hex, as OpenTelemetry writes them, or empty when no span is active;
a format like ``"%(levelname)s %(trace_id)s %(message)s"`` shows them. A record never carries a payload or a key.
"""

from __future__ import annotations

import logging

from opentelemetry.trace import format_span_id, format_trace_id, get_current_span

__all__ = ["logger_for"]


class _TraceIds(logging.Filter):
    """Filters nothing; adds the ids to what is logged."""

    def filter(self, record: logging.LogRecord) -> bool:
        here = get_current_span().get_span_context()
        record.trace_id = format_trace_id(here.trace_id) if here.is_valid else ""
        record.span_id = format_span_id(here.span_id) if here.is_valid else ""
        return True


_TRACE_IDS = _TraceIds()


def logger_for(module: str) -> logging.Logger:
    """``logging.getLogger`` for a module of this package."""
    logger = logging.getLogger(module)
    logger.addFilter(_TRACE_IDS)  # adding it twice adds it once
    return logger
