"""The options of a replicated layer, checked."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Literal

from locus.memory.checkpointer import BaseCheckpointer

from locus_tiered.core.errors import StackConfigError, shorten
from locus_tiered.core.ids import RESERVED
from locus_tiered.core.layer import Layer
from locus_tiered.core.leaf import Leaf
from locus_tiered.layers.names import name_leg, short_name, stores_of, unique_homes_of

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
    if names is not None:
        _check_names(names, len(replicas))
    layers: list[Layer] = []
    taken: list[str] = []
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
        taken.append(name)
        layers.append(layer)
        _check_stores_apart(layers)
    for layer, name in zip(layers, taken, strict=True):
        name_leg(layer, name)
    _check_that_they_keep(layers)
    return layers


def _check_that_they_keep(layers: Sequence[Layer]) -> None:
    """What one of them forgets by itself the others would give back to it, and with it what was deleted."""
    for layer in layers:
        if (seconds := layer.traits.expires_after) is not None:
            raise StackConfigError(
                f"replica {layer.name} lets everything expire after {seconds:g} s: the others would give it back, and "
                "with the tombstones that expire as well also what was deleted",
                hint="leave its time to live out and call vacuum() from time to time, or put it before them as a tier",
            )
    pruning = [layer.name for layer in layers if layer.traits.prunes]
    if pruning and len(pruning) < len(layers):
        raise StackConfigError(
            f"replica {pruning[0]} keeps only the last checkpoints of a thread, others keep all: every comparison "
            "would give it back what it has just forgotten",
            hint="let all of them keep the same number, or none of them forget any",
        )


def _check_names(names: object, count: int) -> None:
    hint = 'like names=["paris", "tokyo"]'
    if not isinstance(names, Sequence) or isinstance(names, str | bytes | bytearray | memoryview | range):
        raise StackConfigError(f"names={shorten(names)} is not a list of names", hint=hint)
    if not all(isinstance(each, str) and each.strip() for each in names):
        raise StackConfigError("every one of names= has to be a word", hint=hint)
    if len(names) != count or len(set(names)) != count:
        raise StackConfigError("names= needs one different name for each replica", hint=hint)


def _check_stores_apart(layers: Sequence[Layer]) -> None:
    """A store that is there twice would have two votes for one copy: the last of ``layers`` against the others."""
    last = layers[-1]
    stores, homes = stores_of(last), unique_homes_of(last)
    for place, other in enumerate(layers[:-1]):
        same = any(one is each for one in stores_of(other) for each in stores)
        shared = sorted(homes & unique_homes_of(other))
        if same or shared:
            where = f" ({shorten(shared[0])})" if shared else ""
            raise StackConfigError(
                f"replicas {place + 1} and {len(layers)} are the same store twice{where}: what it loses, both lose",
                hint="each replica needs a store of its own",
            )


def check_scrub(threads: object, rate: object, progress: object = None) -> None:
    """The arguments of a ``scrub()`` as given by a user, or :class:`StackConfigError`."""
    hint = 'write a list of ids, like threads=["one"]; leave it out for all threads'
    if isinstance(threads, str):
        raise StackConfigError(f"threads={shorten(threads)} is one id", hint=hint)
    if threads is not None:
        if not isinstance(threads, Collection) or isinstance(threads, bytes | bytearray | memoryview | Mapping):
            raise StackConfigError(f"threads={shorten(threads)} is not a list of ids", hint=hint)
        for each in threads:
            if not isinstance(each, str) or not each:
                raise StackConfigError(f"threads= holds {shorten(each)}, which is not the id of a thread", hint=hint)
            if each.startswith(RESERVED):
                raise StackConfigError(
                    f"threads= holds {shorten(each)}: threads whose ids start so are the stack's own",
                    hint="leave it out: a scrub sees to them by itself",
                )
    if progress is not None and not callable(progress):
        raise StackConfigError(
            f"progress={shorten(progress)} cannot be called",
            hint="pass a function, like progress=print",
        )
    if rate is not None and (isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 < rate < math.inf):
        raise StackConfigError(f"rate={shorten(rate)}", hint="write how many threads a second, like rate=0.5")
