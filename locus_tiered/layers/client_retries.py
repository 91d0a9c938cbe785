"""Clients that retry by themselves: attempts multiply, so whoever adds a retry layer is told, once.

boto3 tries every request three times (its "standard" mode; five times in the older "legacy" mode): under
``RetryingCheckpointer(attempts=3)`` one save on S3 is then up to 9 requests per object. redis-py retries when its
client is built so; the SDK's ``RedisBackend`` with redis-py 8 does not (observed: one connection per call), other
versions are asked.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from locus_tiered.core.layer import Layer
from locus_tiered.core.leaf import Leaf
from locus_tiered.core.logs import logger_for

__all__ = ["warn_about_clients"]

logger = logger_for(__name__)

_told: set[str] = set()


_BY_MODE = {"legacy": 5, "standard": 3, "adaptive": 3}


def _boto(backend: Any) -> str | None:
    client = backend._client_override
    try:
        if client is not None:
            settings = client.meta.config.retries or {}
            mode, attempts = settings.get("mode", "legacy"), settings.get("total_max_attempts")
        else:
            from botocore.session import Session  # what boto3 will read: environment and AWS config file

            session = Session()
            mode, attempts = session.get_config_variable("retry_mode"), session.get_config_variable("max_attempts")
        attempts = int(attempts) if attempts else _BY_MODE.get(mode or "legacy", 5)
    except (ImportError, AttributeError, TypeError, ValueError):
        return None
    if attempts <= 1:
        return None
    return (
        f"boto3 tries each request {attempts} times by itself. Set AWS_MAX_ATTEMPTS=1, or give S3Backend a _client "
        "whose Config has retries={'total_max_attempts': 1}"
    )


def _redis(backend: Any) -> str | None:
    storage = backend._backend
    if type(storage).__name__ != "RedisBackend":
        return None
    try:
        from redis.asyncio import Redis

        retry = Redis.from_url("redis://localhost").get_retry()  # connects to nothing
        attempts = 0 if retry is None else int(retry.get_retries())
    except (ImportError, AttributeError, TypeError):
        return None
    if attempts == 0:
        return None
    return f"redis-py tries each command up to {attempts} more times by itself; keep attempts= low"


_CLIENTS: dict[str, Callable[[Any], str | None]] = {"S3Backend": _boto, "StorageBackendAdapter": _redis}


def warn_about_clients(layer: Layer) -> None:
    """Log, once per kind of client and process, that a backend below ``layer`` retries by itself."""
    for below in layer.walk():
        if not isinstance(below, Leaf):
            continue
        for kind in type(below.backend).__mro__:
            look = _CLIENTS.get(kind.__name__)
            if look is None or kind.__name__ in _told or not kind.__module__.startswith("locus."):
                continue
            said = look(below.backend)
            if said is not None:
                _told.add(kind.__name__)
                logger.warning("%s retries by itself, and a retry layer multiplies its attempts: %s", below.name, said)
