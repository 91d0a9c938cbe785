"""The options of a replicated layer, checked."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from locus.memory.checkpointer import BaseCheckpointer

from locus_tiered.core.errors import StackConfigError, shorten
from locus_tiered.core.layer import Layer
from locus_tiered.core.leaf import Leaf
from locus_tiered.layers.names import short_name

__all__ = ["Read", "WriteQuorum", "check_read", "check_scrub", "named_replicas", "votes_needed"]

Read = Literal["one", "quorum", "hedged"]
WriteQuorum = Literal["majority", "all"] | int


def check_read(read: object) -> Read:
    """``read=`` as given by a user, or :class:`StackConfigError`."""
    if read in ("one", "quorum", "hedged"):
        return read
    raise StackConfigError(f"read={shorten(read)}", hint='write "one", "quorum" or "hedged"')


def votes_needed(write_quorum: object, count: int) -> int:
    """How many of ``count`` replicas must take a write; of two, a majority is one, with a durable hint."""
    if write_quorum == "majority":
        return 1 if count == 2 else count // 2 + 1
    if write_quorum == "all":
        return count
    if isinstance(write_quorum, int) and not isinstance(write_quorum, bool) and 1 <= write_quorum <= count:
        return write_quorum
    raise StackConfigError(
        f"write_quorum={shorten(write_quorum)} is not possible with {count} replicas",
        hint=f'write "majority", "all", or a number from 1 to {count}',
    )


def named_replicas(replicas: Sequence[BaseCheckpointer], names: Sequence[str] | None) -> list[Layer]:
    """The replicas as layers, each with a name of its own."""
    if names is not None and (len(names) != len(replicas) or len(set(names)) != len(names) or not all(names)):
        raise StackConfigError("names= needs one different name for each replica", hint='like names=["paris", "tokyo"]')
    layers: list[Layer] = []
    taken: set[str] = set()
    for place, replica in enumerate(replicas):
        if any(replica is other for other in replicas[:place]):
            raise StackConfigError("one checkpointer is given as two replicas", hint="each needs a store of its own")
        usual = None if names is None else names[place]
        layer = replica if isinstance(replica, Layer) else Leaf(replica, where=f"replica {place + 1}")
        unnamed = layer.name in (type(layer).__name__, type(replica).__name__)
        wanted = usual or (short_name(layer) if unnamed else layer.name)
        number, name = 2, wanted
        while name in taken:
            name, number = f"{wanted}-{number}", number + 1
        taken.add(name)
        layer.name = name
        layers.append(layer)
    return layers


def check_scrub(threads: object, rate: object) -> None:
    """The limits of a ``scrub()`` as given by a user, or :class:`StackConfigError`."""
    if isinstance(threads, str):
        raise StackConfigError(f"threads={shorten(threads)} is one id", hint='write a list, like threads=["one"]')
    if rate is not None and (isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 < rate < math.inf):
        raise StackConfigError(f"rate={shorten(rate)}", hint="write how many threads a second, like rate=0.5")
