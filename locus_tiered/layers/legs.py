"""Which layers of a stack belong to one leg, and what a trace calls it.

A leg is a chain of layers around one backend or store: in a span or a metric, all of them are the same tier. Its
name is that of its outermost layer where somebody gave it one, else short for what is at its bottom (``s3``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from locus_tiered.core.layer import Layer
from locus_tiered.core.leaf import Leaf
from locus_tiered.layers.breaker import Breaker
from locus_tiered.layers.cached import CachedCheckpointer
from locus_tiered.layers.guarded import GuardedCheckpointer
from locus_tiered.layers.names import short_name
from locus_tiered.layers.replicated import ReplicatedCheckpointer
from locus_tiered.layers.write_behind import WriteBehindCheckpointer

__all__ = ["OWN_SYSTEM", "Leg", "Legs", "system_of"]

OWN_SYSTEM = "locus_tiered"
"""``db.system.name`` of an operation on a whole stack."""

_MOST_STRANGERS = 50

_SYSTEMS = {  # the names of the semantic conventions, where they have one
    "pg": "postgresql",
    "postgresql": "postgresql",
    "mysql": "mysql",
    "redis": "redis",
    "opensearch": "opensearch",
    "oracle": "oracle.db",
    "s3": "aws.s3",
    "oci": "oci.object_storage",
}


def system_of(layer: Layer) -> str:
    """``db.system.name`` of what is at the bottom of a leg."""
    short = short_name(layer)
    return _SYSTEMS.get(short, short)


@dataclass(frozen=True, slots=True, eq=False)
class Leg:
    """One tier, as a trace shows it."""

    name: str
    """``locus.tier``."""
    system: str
    """``db.system.name``."""
    near: bool
    """It holds copies: an answer from it is a hit."""
    foreign: bool
    """At its bottom is somebody else's checkpointer: calls on it are a client's."""


class Legs:
    """The legs of one stack, by the layers in them."""

    def __init__(self, top: Layer) -> None:
        self._top = top  # alive as long as its ids are used here
        self._by_layer: dict[int, Leg] = {}
        self._by_name: dict[str, str] = {}
        self._above: set[int] = set()
        self._strangers: dict[str, Leg] = {}
        self.breakers: list[tuple[str, Breaker]] = []
        self.journals: list[tuple[str, WriteBehindCheckpointer]] = []
        self.replicas: list[tuple[str, Callable[[], int]]] = []
        self.names: set[str] = set()
        self._visit(top, near=False)

    def of(self, layer: Layer) -> Leg | None:
        """The leg that a layer belongs to; ``None`` for one that is above several."""
        return self._by_layer.get(id(layer))

    def member(self, layer: Layer) -> Leg | None:
        """As :meth:`of`; a layer that hides inside a foreign checkpointer is a leg by itself."""
        leg = self._by_layer.get(id(layer))
        if leg is not None or id(layer) in self._above:
            return leg
        name = layer.name if layer.name in self._strangers or len(self._strangers) < _MOST_STRANGERS else "_OTHER"
        stranger = self._strangers.get(name)
        if stranger is None:
            stranger = self._strangers[name] = Leg(name, system_of(layer), False, isinstance(layer, Leaf))
        return stranger

    def label(self, name: object) -> str | None:
        """What a trace calls the layer of this name, if it is the outermost of a leg."""
        return self._by_name.get(name) if isinstance(name, str) else None

    @property
    def all(self) -> Mapping[str, Leg]:
        """Every leg by its name."""
        return {leg.name: leg for leg in self._by_layer.values()}

    def _visit(self, layer: Layer, *, near: bool) -> None:
        chain = [layer]
        while len(members := chain[-1].members()) == 1:
            chain.append(members[0])
        last = chain[-1]
        if members:
            self._above.update(map(id, chain))
            for member in members:
                copies = isinstance(last, CachedCheckpointer) and member is last.near
                self._visit(member, near=near or copies)
            if isinstance(last, ReplicatedCheckpointer):
                for member, waiting in zip(members, last.hints_waiting, strict=True):
                    leg = self.of(member)
                    self.replicas.append((member.name if leg is None else leg.name, waiting))
            for each in chain:
                if isinstance(each, WriteBehindCheckpointer):
                    self.journals.append((self._free(_name(each)), each))
            return
        leg = Leg(self._free(_name(layer)), system_of(last), near, isinstance(last, Leaf))
        self._by_name.setdefault(layer.name, leg.name)
        for each in chain:
            self._by_layer[id(each)] = leg
            if isinstance(each, GuardedCheckpointer) and each.breaker is not None:
                self.breakers.append((leg.name, each.breaker))
            if isinstance(each, WriteBehindCheckpointer):
                self.journals.append((leg.name, each))

    def _free(self, name: str) -> str:
        number, candidate = 2, name
        while candidate in self.names:
            candidate, number = f"{name}-{number}", number + 1
        self.names.add(candidate)
        return candidate


def _name(layer: Layer) -> str:
    usual = type(layer.backend).__name__ if isinstance(layer, Leaf) else type(layer).__name__
    return short_name(layer) if layer.name == usual else layer.name
