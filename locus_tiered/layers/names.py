"""What members of a stack are called when nobody says, and what is known of the stores at the bottom of a leg."""

from __future__ import annotations

import re

from locus_tiered.core.layer import Layer
from locus_tiered.core.leaf import Leaf

__all__ = ["home_of", "loses_index_rows", "name_leg", "short_name", "stores_of", "unique_home_of", "unique_homes_of"]

_SHORT = {
    "BoundedMemoryCheckpointer": "memory",
    "DirectoryCheckpointer": "directory",
    "MemoryCheckpointer": "memory",
    "FileCheckpointer": "file",
    "HTTPCheckpointer": "http",
    "S3Backend": "s3",
    "OCIBucketBackend": "oci",
    "PgCheckpointer": "pg",
    "RedisBackend": "redis",
    "PostgreSQLBackend": "postgresql",
    "MySQLBackend": "mysql",
    "OpenSearchBackend": "opensearch",
    "OracleBackend": "oracle",
}


def short_name(checkpointer: object) -> str:
    """What a tier is called when nobody says: ``s3``, ``memory``, or its class's name in lower case."""
    while isinstance(checkpointer, Leaf):
        checkpointer = checkpointer.backend
    kind = type(checkpointer).__name__
    if kind == "StorageBackendAdapter":
        kind = type(getattr(checkpointer, "_backend", checkpointer)).__name__
    if kind not in _SHORT and isinstance(checkpointer, Layer) and len(checkpointer.members()) == 1:
        return short_name(checkpointer.inner)
    return _SHORT.get(kind) or re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", kind).lower()


def name_leg(layer: Layer, name: str) -> None:
    """Give a member of a stack its name, down to its store: who failed, or lacks a capability, is told from below.

    What somebody has named there keeps its name. A leg ends above a layer of several members: they have names of their
    own.
    """
    before, layer.name = layer.name, name
    while len(members := layer.members()) == 1 and len(members[0].members()) < 2:
        (layer,) = members
        kind = type(layer.backend) if isinstance(layer, Leaf) else type(layer)
        if layer.name in (before, kind.__name__, short_name(layer)):
            layer.name = name


def home_of(layer: Layer) -> str | None:
    """Where the stores below a layer keep things, as far as anybody can tell."""
    homes = sorted({each.traits.home for each in layer.walk() if not each.members() and each.traits.home})
    return "; ".join(homes) or None


def unique_homes_of(layer: Layer) -> set[str]:
    """Of the stores below a layer, the homes that no other store can have."""
    traits = [each.traits for each in layer.walk() if not each.members()]
    return {each.home for each in traits if each.home and each.home_is_unique}


def unique_home_of(layer: Layer) -> str | None:
    """The home of the store that holds the truth below a layer, where no other store can have it."""
    return layer.traits.home if layer.traits.home_is_unique else None


def stores_of(layer: Layer) -> tuple[object, ...]:
    """The objects that keep things below a layer: our own stores, the backends of others."""
    found: list[object] = []
    for each in layer.walk():
        if each.members():
            continue
        store: object = each
        while isinstance(store, Leaf):
            store = store.backend
        if type(store).__name__ == "StorageBackendAdapter":
            store = getattr(store, "_backend", store)
        found.append(store)
    return tuple(found)


def loses_index_rows(layer: Layer) -> bool:
    """Whether lists of a store below may lack what another process has saved."""
    return any(each.traits.loses_index_rows for each in layer.walk())
