"""What members of a stack are called when nobody says."""

from __future__ import annotations

import re

from locus_tiered.core.layer import Layer
from locus_tiered.core.leaf import Leaf

__all__ = ["short_name"]

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
