"""What is peculiar about a backend, declared in one place.

The SDK's checkpointers differ in what they do with ids, with the order of saves, with an outage. A ``Leaf``
asks the backend's :class:`Traits` instead of guessing. Those of the SDK's own backends are in
``core/sdk_traits.py``; a user's backend that keeps the contract needs none, and declares others as::

    class MyBackend(BaseCheckpointer):
        locus_tiered_traits = Traits(thread_ids=IdRule(most=200))
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Literal

from locus_tiered.core.ids import ANY, IdRule

__all__ = ["ORDINARY", "Traits"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Traits:
    """Declared peculiarities of one backend; the defaults are those of a backend that keeps the contract."""

    # ids
    thread_ids: IdRule = ANY
    """The thread ids that it keeps faithfully."""
    checkpoint_ids: IdRule = ANY
    """The checkpoint ids that it keeps faithfully."""

    # order
    prunes: bool = False
    """It may delete a thread's older checkpoints by itself, in the order in which writes arrived."""
    expires_after: float | None = None
    """Seconds after which what was saved is gone by itself; ``None``: never."""
    lists_at_most: int | None = None
    """It lists no more ids of a thread than this, and not surely the newest."""
    loses_index_rows: bool = False
    """Two processes may each drop the other's id from a thread's list, which may also outlive what it lists."""
    own_latest: Callable[[str], Awaitable[str | None]] | None = None
    """The name of a thread's newest checkpoint as the backend itself has it, where its list may order it wrongly.

    Only asked for threads without any stamp: elsewhere it is a hint that nobody needs.
    """
    reads_metadata: bool = False
    """``get_metadata`` answers without transferring the state."""

    # outage
    none_is_unknown: bool = False
    """``None``, ``[]`` or ``False`` may also mean that the backend could not be reached."""
    probe: Callable[[], Awaitable[bool]] | None = None
    """Decides such a case: ``True`` when the backend can be reached."""

    absent: Callable[[Exception], bool] | None = None
    """Whether an error only means that nothing was ever saved there (a bucket that the first save makes)."""

    # values
    shares_values: bool = False
    """What it loads shares nested values with what it stores."""
    normalise: Callable[[Any], Any] | None = None
    """What it does to a state before storing it; done by the stack first, so that all tiers hold the same."""
    digest_leaves_out: Collection[str] = ()
    """State fields that it may rewrite by itself later."""
    partition: Callable[[str], str | None] | None = None
    """Which tenant a call on this thread belongs to, in the caller's context; ``None`` for the usual one."""

    scope: Callable[[str], AbstractContextManager[object]] | None = None
    """What a call on this thread must run in, when the backend judges by the thread's id."""

    # event loops
    first_call_alone: bool = False
    """The first call in an event loop must not run beside others (lazy pools, ``CREATE TABLE``)."""
    one_at_a_time: bool = False
    """It holds a lock across awaits that a second event loop could not take; calls go one by one."""

    one_loop_at_a_time: bool = False
    """What it opened in one event loop it drops in another: two live loops take turns, one waits for the other's
    calls to end."""

    # answers
    masks: Mapping[str, str] = field(default_factory=dict)
    """Capability flags that it declares without having them, with the reason."""
    thread_names: Callable[[], Awaitable[list[str]]] | None = None
    """Lists the names of all threads where ``list_threads`` answers something else."""
    keeps_empty_threads: bool = False
    """A thread whose checkpoints were deleted one by one is still there for ``delete`` and ``list_threads``."""
    rows_in_order: bool = True
    """``list_with_metadata`` answers newest first."""
    row_ids: Literal["columns", "joined"] = "columns"
    """Rows name thread and checkpoint in columns, or joined as ``thread:checkpoint``."""
    bare_metadata: bool = False
    """``get_metadata`` answers the caller's metadata itself, not a row that holds it."""
    deletes_at_most: int | None = None
    """Deleting a thread removes no more checkpoints than this."""
    home: str | None = None
    """Names the place where it keeps things, without any secret: what was meant for one is never sent to another."""
    home_is_unique: bool = False
    """No other store has the same ``home``, on whatever server: two backends with one home are one store."""

    shown: tuple[str, ...] = ()
    """Attributes that its ``repr`` may show (never a secret)."""


ORDINARY = Traits()
"""Those of a backend that keeps the contract, and of our own stores."""
