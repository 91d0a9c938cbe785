"""What is measured: the requests that leave for S3, and the time that an agent waits for its checkpointer."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Awaitable
from dataclasses import dataclass, field
from threading import Lock
from typing import Any, TypeVar

from locus.core.protocols import CheckpointerCapabilities
from locus.core.state import AgentState
from locus.memory.checkpointer import BaseCheckpointer

__all__ = ["Requests", "Traffic", "Waited"]

T = TypeVar("T")

_KINDS = {
    "PutObject": "PUT",
    "GetObject": "GET",
    "HeadObject": "GET",
    "ListObjectsV2": "LIST",
    "DeleteObject": "DELETE",
    "DeleteObjects": "DELETE",
}


@dataclass(frozen=True, slots=True)
class Traffic:
    """What has gone over the wire: requests by kind, and the bytes of their bodies."""

    requests: Counter[str] = field(default_factory=Counter)
    sent: int = 0
    received: int = 0

    @property
    def total(self) -> int:
        """All requests."""
        return self.requests.total()

    def __add__(self, other: Traffic) -> Traffic:
        return Traffic(self.requests + other.requests, self.sent + other.sent, self.received + other.received)

    def __sub__(self, other: Traffic) -> Traffic:
        return Traffic(self.requests - other.requests, self.sent - other.sent, self.received - other.received)


class Requests:
    """Counts what one boto3 client sends, repeated attempts included, by botocore's own hooks."""

    def __init__(self, client: Any) -> None:
        self._lock = Lock()
        self._requests: Counter[str] = Counter()
        self._sent = self._received = 0
        client.meta.events.register("before-send.s3", self._sending)
        client.meta.events.register("response-received.s3", self._got)

    def so_far(self) -> Traffic:
        """Everything since this meter was made."""
        with self._lock:
            return Traffic(Counter(self._requests), self._sent, self._received)

    def _sending(self, request: Any, event_name: str, **_: Any) -> None:
        operation = event_name.rpartition(".")[2]
        with self._lock:
            self._requests[_KINDS.get(operation, operation)] += 1
            self._sent += int(request.headers.get("Content-Length", 0))

    def _got(self, response_dict: Any, **_: Any) -> None:
        if response_dict is not None:
            with self._lock:
                self._received += int(response_dict["headers"].get("Content-Length", 0))


class Waited(BaseCheckpointer):
    """Any checkpointer, with the time that its caller waited for it."""

    def __init__(self, inner: BaseCheckpointer) -> None:
        self.inner = inner
        self.seconds = 0.0

    async def _timed(self, call: Awaitable[T]) -> T:
        began = time.perf_counter()
        try:
            return await call
        finally:
            self.seconds += time.perf_counter() - began

    @property
    def capabilities(self) -> CheckpointerCapabilities:
        return self.inner.capabilities

    @property
    def deletes_single_checkpoints(self) -> bool:
        return self.inner.deletes_single_checkpoints

    async def save(
        self,
        state: AgentState,
        thread_id: str,
        checkpoint_id: str | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> str:
        return await self._timed(self.inner.save(state, thread_id, checkpoint_id, metadata))

    async def load(self, thread_id: str, checkpoint_id: str | None = None) -> AgentState | None:
        return await self._timed(self.inner.load(thread_id, checkpoint_id))

    async def list_checkpoints(self, thread_id: str, limit: int = 10) -> list[str]:
        return await self._timed(self.inner.list_checkpoints(thread_id, limit))

    async def delete(self, thread_id: str, checkpoint_id: str | None = None) -> bool:
        return await self._timed(self.inner.delete(thread_id, checkpoint_id))

    async def exists(self, thread_id: str, checkpoint_id: str | None = None) -> bool:
        return await self._timed(self.inner.exists(thread_id, checkpoint_id))

    async def close(self) -> None:
        await self.inner.close()
