"""Every call on a checkpointer as a value.

One small frozen class per operation, typed by its result, with the facts about it that retry, tracing, fault
injection, conformance and the docs read: there is no second list of operations anywhere.

===================  =========================================================================
fact                 meaning
===================  =========================================================================
``name``             the method's name on ``BaseCheckpointer``; also the span's and the metric's
``flag``             the field of ``CheckpointerCapabilities`` that it needs, or ``None``
``changes``          whether it changes what is stored
``repeatable``       whether doing it twice leaves what doing it once does
``threads``          the threads that it touches (none named: possibly all)
===================  =========================================================================
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

from locus_tiered.core.checkpoint import Checkpoint, Entry

__all__ = [
    "OPERATIONS",
    "CopyThread",
    "Delete",
    "Exists",
    "GetMetadata",
    "Head",
    "ListCheckpoints",
    "ListThreads",
    "ListWithMetadata",
    "Load",
    "Operation",
    "QueryByMetadata",
    "Row",
    "Save",
    "Search",
    "Vacuum",
]

R_co = TypeVar("R_co", covariant=True)

Row = dict[str, Any]
"""What the listing operations answer: ``thread_id``, ``checkpoint_id``, ``metadata`` and what else is known."""


class Operation(Generic[R_co]):
    """One call, not yet made. ``await layer.handle(operation)`` makes it and answers its result."""

    __slots__ = ()
    name: ClassVar[str]
    flag: ClassVar[str | None] = None
    changes: ClassVar[bool] = False
    repeatable: ClassVar[bool] = True

    @property
    def threads(self) -> tuple[str, ...]:
        """The threads it touches; empty when it may touch any."""
        thread: str | None = getattr(self, "thread_id", None)
        return () if thread is None else (thread,)


@dataclass(frozen=True, slots=True)
class Save(Operation[str]):
    """Keep a state; answers its id.

    ``checkpoint`` is set once the save was *frozen* by the outermost ordering layer: encoded, stamped, its id
    settled. From then on ``state`` and ``metadata`` are of no interest. In a stack without an ordering layer
    it stays ``None`` and the backend gets what the caller gave, under an id that is settled all the same.

    ``iteration`` marks a save that the agent makes inside a turn and deletes when the turn ends.
    """

    name: ClassVar[str] = "save"
    changes: ClassVar[bool] = True

    thread_id: str
    state: Any
    checkpoint_id: str | None = None
    metadata: Mapping[str, Any] | None = None
    checkpoint: Checkpoint | None = None
    iteration: bool = False


@dataclass(frozen=True, slots=True)
class Load(Operation[Checkpoint | None]):
    """One checkpoint, by id, or the newest (``checkpoint_id=None``).

    With ``stamp``, only a checkpoint of exactly that stamp will do: an older one under the same id is a miss.
    """

    name: ClassVar[str] = "load"

    thread_id: str
    checkpoint_id: str | None = None
    stamp: str | None = None


@dataclass(frozen=True, slots=True)
class Head(Operation[Entry | None]):
    """The newest checkpoint's id and stamp, without its state. ``None``: the thread has no checkpoint."""

    name: ClassVar[str] = "head"

    thread_id: str


@dataclass(frozen=True, slots=True)
class ListCheckpoints(Operation[list[Entry]]):
    """The thread's checkpoints, newest first, at most ``limit``.

    ``ordered`` asks for the order of stamps (ordering layers do); otherwise a backend's own order will do.
    """

    name: ClassVar[str] = "list_checkpoints"

    thread_id: str
    limit: int = 10
    ordered: bool = False


@dataclass(frozen=True, slots=True)
class Delete(Operation[bool]):
    """Remove one checkpoint, or the whole thread; answers whether there was anything to remove.

    ``stamp`` is the moment of the call, given once, by the outermost layer that stamps saves: what is saved after the
    call, and waits behind the delete, is above it. ``late``: it was acknowledged then, and what was saved since stays.
    """

    name: ClassVar[str] = "delete"
    changes: ClassVar[bool] = True

    thread_id: str
    checkpoint_id: str | None = None
    stamp: str | None = None
    late: bool = False


@dataclass(frozen=True, slots=True)
class Exists(Operation[bool]):
    """Whether the checkpoint is there, or any checkpoint of the thread."""

    name: ClassVar[str] = "exists"

    thread_id: str
    checkpoint_id: str | None = None


@dataclass(frozen=True, slots=True)
class Search(Operation[list[Row]]):
    """Full-text search over all threads."""

    name: ClassVar[str] = "search"
    flag: ClassVar[str | None] = "search"

    query: str
    limit: int = 10


@dataclass(frozen=True, slots=True)
class QueryByMetadata(Operation[list[Row]]):
    """The checkpoints whose metadata holds ``value`` under ``key``."""

    name: ClassVar[str] = "query_by_metadata"
    flag: ClassVar[str | None] = "metadata_query"

    key: str
    value: Any
    limit: int = 100


@dataclass(frozen=True, slots=True)
class GetMetadata(Operation[Row | None]):
    """What is known of one checkpoint without loading its state."""

    name: ClassVar[str] = "get_metadata"
    flag: ClassVar[str | None] = "metadata_query"

    thread_id: str
    checkpoint_id: str | None = None


@dataclass(frozen=True, slots=True)
class Vacuum(Operation[int]):
    """Delete what is older than so many days; answers how many checkpoints (or what the backend counts)."""

    name: ClassVar[str] = "vacuum"
    flag: ClassVar[str | None] = "vacuum"
    changes: ClassVar[bool] = True
    repeatable: ClassVar[bool] = False

    older_than_days: float = 30


@dataclass(frozen=True, slots=True)
class CopyThread(Operation[bool]):
    """Copy every checkpoint of one thread to another, in order; ``False`` when there is none."""

    name: ClassVar[str] = "copy_thread"
    flag: ClassVar[str | None] = "branching"
    changes: ClassVar[bool] = True
    repeatable: ClassVar[bool] = False

    source_thread_id: str
    dest_thread_id: str

    @property
    def threads(self) -> tuple[str, ...]:
        return (self.source_thread_id, self.dest_thread_id)


@dataclass(frozen=True, slots=True)
class ListThreads(Operation[list[str]]):
    """The ids of the threads that match a shell-style ``pattern``."""

    name: ClassVar[str] = "list_threads"
    flag: ClassVar[str | None] = "list_threads"

    limit: int = 100
    pattern: str = "*"


@dataclass(frozen=True, slots=True)
class ListWithMetadata(Operation[list[Row]]):
    """Checkpoints of all threads with their metadata, newest first."""

    name: ClassVar[str] = "list_with_metadata"
    flag: ClassVar[str | None] = "list_with_metadata"

    limit: int = 100


OPERATIONS: tuple[type[Operation[Any]], ...] = (
    Save,
    Load,
    Head,
    ListCheckpoints,
    Delete,
    Exists,
    Search,
    QueryByMetadata,
    GetMetadata,
    Vacuum,
    CopyThread,
    ListThreads,
    ListWithMetadata,
)
