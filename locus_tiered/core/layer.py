"""The base of everything in a stack: ``BaseCheckpointer`` outside, one method, ``handle``, inside.

To write a layer, subclass :class:`Layer` and override ``handle``::

    class Counted(Layer):
        def __init__(self, inner: BaseCheckpointer) -> None:
            super().__init__(inner)
            self.calls = 0

        async def handle(self, operation: Operation[R]) -> R:
            self.calls += 1
            return await self.inner.handle(operation)

That is a whole checkpointer: the thirteen public methods build the operation, check the arguments and call
``handle``; capabilities, ``close()``, ``async with`` and ``repr`` are the inner one's. A layer with a memory of
its own subclasses :class:`DispatchingLayer` and has one method per operation; forgetting one that changes
something is an error when the class is made.

``inner`` is always a :class:`Layer`: a foreign checkpointer given to a constructor is wrapped in
:class:`~locus_tiered.core.leaf.Leaf`.
"""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections.abc import Callable, Coroutine, Iterator
from types import EllipsisType
from typing import TYPE_CHECKING, Any, ClassVar, Self, TypeVar
from uuid import uuid4

from locus.core.protocols import CheckpointerCapabilities
from locus.memory.checkpointer import BaseCheckpointer

from locus_tiered.core.capabilities import SINGLE_DELETES, Explanation
from locus_tiered.core.checkpoint import ITERATION_KEY
from locus_tiered.core.errors import CapabilityMissing, InvalidArgument, StackConfigError, shorten
from locus_tiered.core.ids import RESERVED
from locus_tiered.core.operations import (
    OPERATIONS,
    CopyThread,
    Delete,
    Exists,
    GetMetadata,
    ListCheckpoints,
    ListThreads,
    ListWithMetadata,
    Load,
    Operation,
    QueryByMetadata,
    Row,
    Save,
    Search,
    Vacuum,
)
from locus_tiered.core.signals import observer
from locus_tiered.core.traits import ORDINARY, Traits

if TYPE_CHECKING:
    from locus.core.state import AgentState

    from locus_tiered.core.stamp import StampClock

__all__ = ["DispatchingLayer", "Layer", "as_layer", "construction"]

R = TypeVar("R")

MOST = 1_000_000_000
"""A larger ``limit`` is taken for this one: databases refuse numbers that do not fit."""


def _id(value: object, what: str) -> str:
    if type(value) is str and value:
        if value.startswith(RESERVED) and what.endswith("thread_id"):
            raise InvalidArgument(f"{what} starts with {RESERVED!r}, which a stack keeps for itself; nothing was done")
        return value
    if not isinstance(value, str):
        raise InvalidArgument(f"{what} must be a string, not {type(value).__name__}; nothing was done")
    if not value:
        raise InvalidArgument(f"{what} must not be empty; nothing was done")
    return str(value)


def _optional_id(value: object) -> str | None:
    return None if value is None else _id(value, "checkpoint_id (or None)")


def _limit(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise InvalidArgument(f"limit must be a whole number, not {shorten(value)}")
    if value < 0:
        raise InvalidArgument(f"limit must be 0 or more, not {value}")
    return min(value, MOST)


def _is_iteration_save(state: Any, checkpoint_id: str | None) -> bool:
    """Whether the state itself lists the id as one that the agent made up for this turn."""
    if checkpoint_id is None:
        return False
    metadata = getattr(state, "metadata", None)
    listed = metadata.get(ITERATION_KEY) if isinstance(metadata, dict) else None
    return isinstance(listed, list | tuple) and checkpoint_id in listed


class Layer(BaseCheckpointer):
    """A checkpointer that is one step of a stack.

    Args:
        inner: What this layer wraps; a foreign checkpointer is wrapped in a ``Leaf``. Left out: a store.
        name: What errors, spans and ``explain()`` call this layer; the class's name by default.

    The constructor touches no event loop, file or socket.
    """

    orders: ClassVar[bool] = False
    """Whether this layer stamps saves (section 4 of the design: cache, tiers, write-behind, replication)."""

    def __init__(self, inner: BaseCheckpointer | EllipsisType = ..., *, name: str | None = None) -> None:
        self._inner = None if inner is ... else as_layer(inner, type(self).__name__)
        self.name = name or type(self).__name__
        self._orderer: Layer | None = None
        self._knows_orderer = False

    # -- the seam ------------------------------------------------------------------------------------

    @abstractmethod
    async def handle(self, operation: Operation[R]) -> R:
        """Carry out one operation. Cancellation leaves at once; what was begun inside is not killed."""

    @property
    def inner(self) -> Layer:
        """The layer below."""
        if self._inner is None:
            raise AttributeError(f"{type(self).__name__} has no inner checkpointer")
        return self._inner

    def members(self) -> tuple[Layer, ...]:
        """The layers directly below."""
        return () if self._inner is None else (self._inner,)

    def walk(self) -> Iterator[Layer]:
        """This layer and everything below it, outermost first."""
        yield self
        for member in self.members():
            yield from member.walk()

    # -- facts, all derived from the layers below ----------------------------------------------------

    def explain(self) -> Explanation:
        """For every capability flag: granted or not, by which member, and why."""
        return self.inner.explain()

    @property
    def capabilities(self) -> CheckpointerCapabilities:
        return self.explain().capabilities

    @property
    def deletes_single_checkpoints(self) -> bool:
        return self.explain()[SINGLE_DELETES].granted

    @property
    def traits(self) -> Traits:
        """What is peculiar about whoever holds the truth below."""
        return ORDINARY if self._inner is None else self._inner.traits

    def ordering(self) -> Layer | None:
        """The outermost layer from here downwards that stamps saves, or ``None``."""
        if not self._knows_orderer:
            below = None if self._inner is None else self._inner.ordering()
            self._orderer = self if self.orders else below
            self._knows_orderer = True
        return self._orderer

    def put_in_order(self) -> None:
        """Called by an ordering layer above, when it is made: leaves below keep one call per thread in flight."""
        for member in self.members():
            member.put_in_order()

    def share_stamps(self, stamps: StampClock) -> None:
        """Called by an ordering layer above, when it is made: a thread has one clock in a stack."""
        if self._inner is not None:
            self._inner.share_stamps(stamps)

    @property
    def saves_without_home(self) -> bool:
        """Whether a save can be acknowledged while whoever holds the truth cannot be reached."""
        return self._inner is not None and self._inner.saves_without_home

    @property
    def lays_tombstones(self) -> bool:
        """Whether a delete leaves by itself what keeps old writes from coming back, with its own stamp."""
        return self._inner is not None and self._inner.lays_tombstones

    async def freeze(self, operation: Save) -> Save:
        """Settle a save: encode the state, stamp it, fix its id. Only a layer that ``orders`` can."""
        raise NotImplementedError(f"{type(self).__name__} does not stamp saves")

    def _require(self, operation: Operation[Any]) -> None:
        if operation.flag is not None:
            self._demand(operation.flag, f"{operation.name}()")

    def _demand(self, flag: str, call: str, *, outcome: str = "") -> None:
        """Raise :class:`CapabilityMissing` unless the capability is granted."""
        verdict = self.explain()[flag]
        if not verdict:
            raise CapabilityMissing(
                f"{call} needs the capability {flag!r}, which {verdict.member} lacks: {verdict.reason}{outcome}"
            )

    # -- the public face -----------------------------------------------------------------------------

    async def save(
        self,
        state: AgentState,
        thread_id: str,
        checkpoint_id: str | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> str:
        """Keep ``state`` as the newest checkpoint of the thread; answers its id.

        The id is settled here, once, before anything is tried: whatever is retried, replicated or replayed
        below never makes a second checkpoint. Raises :class:`InvalidArgument` before anything is written.
        """
        thread_id = _id(thread_id, "thread_id")
        checkpoint_id = _optional_id(checkpoint_id)
        if not callable(getattr(state, "to_checkpoint", None)):
            raise InvalidArgument(f"save() needs an AgentState, not {type(state).__name__}; nothing was saved")
        if metadata is not None and not isinstance(metadata, dict):
            raise InvalidArgument(f"metadata must be a dict, not {type(metadata).__name__}; nothing was saved")
        iteration = _is_iteration_save(state, checkpoint_id)
        operation = Save(thread_id, state, checkpoint_id, metadata, None, iteration)
        ordering = self.ordering()
        if ordering is not None:
            operation = await ordering.freeze(operation)
        elif checkpoint_id is None:
            operation = Save(thread_id, state, uuid4().hex, metadata)
        return await self.handle(operation)

    async def load(self, thread_id: str, checkpoint_id: str | None = None) -> AgentState | None:
        """The state of one checkpoint, or of the newest; the caller's own copy.

        ``None`` means that whoever holds the truth said so; a member that failed raises.
        """
        found = await self.handle(Load(_id(thread_id, "thread_id"), _optional_id(checkpoint_id)))
        if found is None:
            return None
        return found.body.hand_over() if self.ordering() is None else await found.body.take()

    async def list_checkpoints(self, thread_id: str, limit: int = 10) -> list[str]:
        """The thread's checkpoint ids, newest (last saved) first."""
        thread_id, limit = _id(thread_id, "thread_id"), _limit(limit)
        if limit == 0:
            return []
        return [entry.id for entry in await self.handle(ListCheckpoints(thread_id, limit))]

    async def delete(self, thread_id: str, checkpoint_id: str | None = None) -> bool:
        """Remove one checkpoint, or (``checkpoint_id=None``) the thread. ``False``: there was none."""
        return await self.handle(Delete(_id(thread_id, "thread_id"), _optional_id(checkpoint_id)))

    async def exists(self, thread_id: str, checkpoint_id: str | None = None) -> bool:
        """Whether the checkpoint is there, or any checkpoint of the thread."""
        return await self.handle(Exists(_id(thread_id, "thread_id"), _optional_id(checkpoint_id)))

    async def search(self, query: str, limit: int = 10) -> list[Row]:
        """Full-text search, where the stack has it."""
        operation = Search(query, _limit(limit))
        self._require(operation)
        return await self.handle(operation) if operation.limit else []

    async def query_by_metadata(self, key: str, value: Any, limit: int = 100) -> list[Row]:
        """Rows (``thread_id``, ``checkpoint_id``, ...) of the checkpoints whose metadata has ``key: value``."""
        operation = QueryByMetadata(_id(key, "key"), value, _limit(limit))
        self._require(operation)
        return await self.handle(operation) if operation.limit else []

    async def get_metadata(self, thread_id: str, checkpoint_id: str | None = None) -> Row | None:
        """``thread_id``, ``checkpoint_id``, ``metadata`` (as given to ``save``) and what else is known."""
        operation = GetMetadata(_id(thread_id, "thread_id"), _optional_id(checkpoint_id))
        self._require(operation)
        return await self.handle(operation)

    async def vacuum(self, older_than_days: int = 30) -> int:
        """Delete what is older than so many days; answers how many were deleted."""
        days = older_than_days
        if not isinstance(days, int | float) or isinstance(days, bool) or not 0 <= days < float("inf"):
            raise InvalidArgument(f"older_than_days must be 0 or more, not {shorten(days)}; nothing was deleted")
        operation = Vacuum(min(days, 36_500))
        self._require(operation)
        return await self.handle(operation)

    async def copy_thread(self, source_thread_id: str, dest_thread_id: str) -> bool:
        """Copy every checkpoint of one thread to another, in order. ``False``: the source has none."""
        operation = CopyThread(_id(source_thread_id, "source_thread_id"), _id(dest_thread_id, "dest_thread_id"))
        self._require(operation)
        if source_thread_id == dest_thread_id:
            raise InvalidArgument("copy_thread() needs two different threads; nothing was copied")
        return await self.handle(operation)

    async def list_threads(self, limit: int = 100, pattern: str = "*") -> list[str]:
        """Thread ids that match a shell-style pattern."""
        operation = ListThreads(_limit(limit), _id(pattern, "pattern"))
        self._require(operation)
        return await self.handle(operation) if operation.limit else []

    async def list_with_metadata(self, limit: int = 100) -> list[Row]:
        """Rows of all checkpoints of all threads, newest first where the backend can tell."""
        operation = ListWithMetadata(_limit(limit))
        self._require(operation)
        return await self.handle(operation) if operation.limit else []

    async def close(self) -> None:
        """Let go of everything that belongs to this event loop; the next call takes it up again.

        Idempotent and bounded in time. The SDK's ``run_sync`` calls it after every run. A member that fails to
        close does not keep the others from closing; the first such failure is raised at the end.
        """
        failures = await asyncio.gather(*(member.close() for member in self.members()), return_exceptions=True)
        for failure in failures:
            if isinstance(failure, BaseException):
                raise failure

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def __repr__(self) -> str:
        return construction(self, *self.members())


Handler = Callable[[Any, Any], Coroutine[Any, Any, Any]]


class DispatchingLayer(Layer):
    """A layer with a memory: one ``on_<operation>`` method per operation, chosen by the operation's type.

    An operation that changes something **must** be named: a class that leaves one out is refused when it is
    made. Those that only read and are not named go to the layer below as they are.
    """

    _handlers: ClassVar[dict[type[Operation[Any]], Handler]]

    def __init_subclass__(cls, base: bool = False, **kwargs: Any) -> None:
        """``base=True``: a class that others finish, which need not name every operation yet."""
        super().__init_subclass__(**kwargs)
        cls._handlers = {}
        missing = []
        for kind in OPERATIONS:
            handler = getattr(cls, f"on_{kind.name}", None)
            if handler is not None:
                cls._handlers[kind] = handler
            elif kind.changes:
                missing.append(f"on_{kind.name}")
        if missing and not base:
            raise TypeError(f"{cls.__name__} must say what it does on {', '.join(missing)}")

    async def handle(self, operation: Operation[R]) -> R:
        handler = self._handlers.get(type(operation))
        if handler is None:
            return await self.inner.handle(operation)
        if self._inner is None and (watching := observer()) is not None:
            return await watching.member(self, operation, lambda: handler(self, operation))
        return await handler(self, operation)  # type: ignore[no-any-return]


def as_layer(checkpointer: object, where: str) -> Layer:
    """``checkpointer`` as a layer, or :class:`StackConfigError` that says what to pass instead."""
    if isinstance(checkpointer, Layer):
        return checkpointer
    from locus_tiered.core.leaf import Leaf  # the leaf is itself a layer

    return Leaf(checkpointer, where=where)


def construction(obj: object, *arguments: object, **options: object) -> str:
    """A ``repr`` that reads as the code that builds ``obj``; options that are ``None`` are left out."""
    parts = [repr(argument) for argument in arguments]
    parts += [f"{name}={value!r}" for name, value in options.items() if value is not None]
    return f"{type(obj).__name__}({', '.join(parts)})"


def unusable(checkpointer: object, where: str) -> StackConfigError:
    """Why something that is not a checkpointer cannot be part of a stack, and what to pass instead."""
    kind = type(checkpointer)
    factories = {
        "RedisBackend": "redis_checkpointer",
        "PostgreSQLBackend": "postgresql_checkpointer",
        "MySQLBackend": "mysql_checkpointer",
        "OpenSearchBackend": "opensearch_checkpointer",
        "OracleBackend": "oracle_checkpointer",
    }
    for base in kind.__mro__:
        if base.__name__ in factories and base.__module__.startswith("locus."):
            factory = factories[base.__name__]
            return StackConfigError(
                f"{where}: {kind.__name__} is a key-value store, not a checkpointer",
                hint=f"use locus.memory.backends.{factory}(...), or StorageBackendAdapter around it",
            )
    if isinstance(checkpointer, type):
        return StackConfigError(
            f"{where}: {checkpointer.__name__} is a class, not an instance",
            hint=f"write {checkpointer.__name__}(...)",
        )
    if kind.__name__ == "DeltaCheckpointer":
        return StackConfigError(
            f"{where}: DeltaCheckpointer is not a BaseCheckpointer (its checkpoints depend on one another)",
            hint="put the checkpointer that it wraps into the stack",
        )
    return StackConfigError(
        f"{where}: a {kind.__name__} is not a checkpointer",
        hint="pass an instance of a subclass of locus.memory.checkpointer.BaseCheckpointer",
    )
