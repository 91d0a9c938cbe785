"""``TieredCheckpointer``: memory, then a directory, then an object store, as one checkpointer.

The tiers are listed nearest first; the last one is *home*: it holds everything and its word is the truth. It is
the rule of :class:`CachedCheckpointer`, folded: the first tier in front of (the second in front of (the third)).
All promises are those of ``cached.py``; what this class adds is names, checks and ``copy_thread``.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, Literal

from locus.memory.checkpointer import BaseCheckpointer

from locus_tiered.core.capabilities import SINGLE_DELETES, Explanation, Verdict
from locus_tiered.core.checkpoint import Checkpoint, Entry
from locus_tiered.core.clock import SYSTEM, Clock
from locus_tiered.core.errors import StackConfigError, shorten
from locus_tiered.core.layer import Layer, as_layer, construction, unusable
from locus_tiered.core.leaf import Leaf
from locus_tiered.core.operations import (
    Delete,
    Head,
    ListCheckpoints,
    ListThreads,
    ListWithMetadata,
    Load,
    QueryByMetadata,
    Row,
    Save,
    Vacuum,
)
from locus_tiered.layers.cached import CachedCheckpointer, CacheStats, Latest, OnOutage, check_latest
from locus_tiered.layers.names import name_leg, short_name
from locus_tiered.layers.write_behind import WriteBehindCheckpointer
from locus_tiered.layers.write_behind_options import Ack, check_ack
from locus_tiered.stores.base import Store
from locus_tiered.stores.directory import DirectoryCheckpointer
from locus_tiered.stores.journal import check_journal_path

__all__ = ["Tier", "TieredCheckpointer"]

Write = Literal["through", "behind"]


class Tier:
    """One tier of a :class:`TieredCheckpointer`, with what is to be said about it.

    Args:
        checkpointer: Any checkpointer.
        name: What errors, spans and ``explain()`` call it; by default ``s3``, ``directory``...
        write: ``"through"``: a save is acknowledged when home has it. ``"behind"``: a local journal stands in front
            of this tier, which must be home, and the stack needs ``journal=``.
        ack: What acknowledges a save of a tier that is written behind, as
            :class:`~locus_tiered.layers.write_behind.WriteBehindCheckpointer` has it; there ``"turn"`` by default.
    """

    def __init__(
        self,
        checkpointer: BaseCheckpointer,
        *,
        name: str | None = None,
        write: Write = "through",
        ack: Ack | None = None,
    ) -> None:
        if isinstance(checkpointer, Tier):
            raise StackConfigError("a Tier inside a Tier", hint="write Tier(checkpointer, ...) once")
        if not isinstance(checkpointer, BaseCheckpointer):
            raise unusable(checkpointer, "Tier")
        if name is not None and (not isinstance(name, str) or not name):
            raise StackConfigError(f"Tier name={shorten(name)} is not a name", hint="pass a non-empty string")
        if write not in ("through", "behind"):
            raise StackConfigError(f"Tier write={shorten(write)}", hint='write "through" or "behind"')
        usual: Ack = "turn" if write == "behind" else "far"
        check_ack(usual if ack is None else ack)
        if write == "through" and ack not in (None, "far"):
            raise StackConfigError(f'ack={ack!r} is for write="behind"', hint='add write="behind", or leave ack= out')
        self.checkpointer = checkpointer
        self.name = name
        self.write: Write = write
        self.ack: Ack = usual if ack is None else ack

    def __repr__(self) -> str:
        layer = as_layer(self.checkpointer, "Tier")  # whose repr shows no secret
        if self.name is None and self.write == "through":
            return repr(layer)
        behind = self.write == "behind"
        write, ack = ("behind" if behind else None), (self.ack if behind and self.ack != "turn" else None)
        return construction(self, layer, name=self.name, write=write, ack=ack)


class _Nowhere(Store):
    """The near tier of a stack of one: keeps nothing, so that nothing is special about such a stack."""

    expires = False

    async def on_save(self, op: Save) -> str:
        assert op.checkpoint is not None
        return op.checkpoint.id

    async def on_delete(self, op: Delete) -> bool:
        return False

    async def on_vacuum(self, op: Vacuum) -> int:
        return 0

    async def on_load(self, op: Load) -> Checkpoint | None:
        return None

    async def on_head(self, op: Head) -> Entry | None:
        return None

    async def on_list_checkpoints(self, op: ListCheckpoints) -> list[Entry]:
        return []

    async def on_list_threads(self, op: ListThreads) -> list[str]:
        return []

    async def on_list_with_metadata(self, op: ListWithMetadata) -> list[Row]:
        return []

    async def on_query_by_metadata(self, op: QueryByMetadata) -> list[Row]:
        return []

    async def close(self) -> None:
        """Nothing to close."""


class TieredCheckpointer(CachedCheckpointer):
    """Several checkpointers as one, nearest first; the last is home.

    Args:
        tiers: Checkpointers, or :class:`Tier` around one to say more about it.
        latest: How the newest checkpoint is read; see :class:`CachedCheckpointer`.
        on_outage: What happens when home cannot be reached; see there.
        journal: The directory of the write-behind journal, for a home with ``write="behind"``. For other bounds than
            the usual ones, put a ``WriteBehindCheckpointer`` around home instead.
        name: What errors, spans and ``explain()`` call this stack.
        near_timeout: Seconds that a call on a near tier may take; see :class:`CachedCheckpointer`.

    Example::

        checkpointer = TieredCheckpointer(
            BoundedMemoryCheckpointer(max_bytes="256MiB"),
            DirectoryCheckpointer("./checkpoints"),
            Tier(S3Backend(bucket="agents"), name="s3"),
        )
    """

    def __init__(
        self,
        *tiers: BaseCheckpointer | Tier,
        latest: Latest = "validate",
        on_outage: OnOutage = "raise",
        journal: str | os.PathLike[str] | None = None,
        name: str = "stack",
        near_timeout: float | None = 5.0,
        clock: Clock = SYSTEM,
    ) -> None:
        latest = check_latest(latest)
        self.tiers: tuple[Tier, ...] = tuple(tier if isinstance(tier, Tier) else Tier(tier) for tier in tiers)
        if not self.tiers:
            raise StackConfigError("a stack needs at least one tier", hint="list them nearest first, home last")
        behind = [tier for tier in self.tiers if tier.write == "behind"]
        if behind and behind != [self.tiers[-1]]:
            raise StackConfigError('write="behind" is for home, the last tier', hint="leave it out for the others")
        if behind and journal is None:
            raise StackConfigError('a tier with write="behind" needs a journal', hint='add journal="./journal"')
        if journal is not None and not behind:
            raise StackConfigError('journal= is for a tier with write="behind"', hint="leave it out")
        self.journal = None if journal is None else check_journal_path(journal)
        layers = _named_layers(self.tiers)
        if self.journal is not None:
            layers[-1] = WriteBehindCheckpointer(
                layers[-1],
                journal=self.journal,
                ack=self.tiers[-1].ack,
                exclusive=latest == "exclusive",
                name=layers[-1].name,
                clock=clock,
            )
        self.home = layers[-1]
        near = layers[:-1] or [_Nowhere(name="nowhere")]
        # Staleness must not add up: only the outermost tier counts seconds.
        below: Latest = latest if latest == "exclusive" else "validate"
        options: dict[str, Any] = {
            "on_outage": on_outage,
            "name": name,
            "near_timeout": near_timeout,
            "clock": clock,
        }
        inner = self.home
        for layer in reversed(near[1:]):
            inner = CachedCheckpointer(inner, near=layer, latest=below, **options)
        super().__init__(inner, near=near[0], latest=latest, **options)
        self._layers = layers

    @property
    def tier_stats(self) -> dict[str, CacheStats]:
        """What was done with each near tier, by its name, nearest first."""
        caches = [layer for layer in self.walk() if isinstance(layer, CachedCheckpointer)]
        names = [layer.name for layer in self._layers[:-1]]
        return {name: cache.stats for name, cache in zip(names, caches, strict=False)}

    def explain(self) -> Explanation:
        home = self.home.explain()
        single = Explanation.all_of([home, *(layer.explain() for layer in self._layers[:-1])], SINGLE_DELETES)
        branching = Verdict(True, self.name, "loads, stamps anew and saves, oldest first")
        return home.but(branching=branching, **{SINGLE_DELETES: single})

    def __repr__(self) -> str:
        return construction(
            self,
            *self.tiers,
            journal=None if self.journal is None else str(self.journal),
            latest=None if self.latest == "validate" else self.latest,
            on_outage=None if self.on_outage == "raise" else self.on_outage,
            name=None if self.name == "stack" else self.name,
        )


def _named_layers(tiers: Sequence[Tier]) -> list[Layer]:
    """The tiers as layers that carry the tiers' names; two of one name, or one object twice, is an error."""
    given = [tier.name for tier in tiers if tier.name is not None]
    for name in given:
        if given.count(name) > 1:
            raise StackConfigError(f"two tiers are called {name!r}", hint="give each Tier a name of its own")
    _check_stores([_stores(tier.checkpointer) for tier in tiers])
    layers: list[Layer] = []
    taken = set(given)
    for tier in tiers:
        name = tier.name or _free(short_name(tier.checkpointer), taken)
        taken.add(name)
        if isinstance(tier.checkpointer, Layer):
            layer = tier.checkpointer
            if tier.name is not None or layer.name == type(layer).__name__:
                name_leg(layer, name)
        else:
            layer = Leaf(tier.checkpointer, name=name, where=f"tier {name!r}")
        layers.append(layer)
    return layers


def _stores(checkpointer: BaseCheckpointer) -> set[object]:
    """What is at the bottom of a tier: objects, and resolved paths of directories."""
    found: set[object] = set()
    for layer in as_layer(checkpointer, "Tier").walk():
        if isinstance(layer, DirectoryCheckpointer):
            found.add(layer.path.resolve())
        found.add(id(layer.backend) if isinstance(layer, Leaf) else id(layer))
    return found


def _check_stores(stores: Sequence[set[object]]) -> None:
    """Two tiers on one store would each take the other's checkpoints for its own."""
    for place, mine in enumerate(stores):
        if any(mine & others for others in stores[:place]):
            raise StackConfigError("two tiers use one store", hint="each tier needs a store of its own")


def _free(name: str, taken: set[str]) -> str:
    number, candidate = 2, name
    while candidate in taken:
        candidate, number = f"{name}-{number}", number + 1
    return candidate
