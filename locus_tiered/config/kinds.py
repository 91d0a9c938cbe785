"""The types of tiers that come with the package: our stores, and every checkpointer of the SDK.

The options of the SDK's are read from their constructors, so that an option of a newer SDK works at once. Nothing
here connects, and no driver is imported.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

from pydantic import BaseModel

from locus_tiered.config.registry import TierType

__all__ = ["built_in"]

Described = tuple[Callable[..., Any], type[BaseModel] | None]


def _memory_options() -> type[BaseModel]:
    from locus_tiered.config.models import MemoryOptions

    return MemoryOptions


def _directory_options() -> type[BaseModel]:
    from locus_tiered.config.models import DirectoryOptions

    return DirectoryOptions


def _memory(policy: str | None = None, **options: Any) -> Any:
    import cachetools

    from locus_tiered.stores.memory import BoundedMemoryCheckpointer

    kinds = {
        "lru": cachetools.LRUCache,
        "lfu": cachetools.LFUCache,
        "fifo": cachetools.FIFOCache,
        "rr": cachetools.RRCache,
    }
    if policy is not None:
        options["policy"] = kinds[policy]
    return BoundedMemoryCheckpointer(**options)


def _directory(**options: Any) -> Any:
    from locus_tiered.stores.directory import DirectoryCheckpointer

    return DirectoryCheckpointer(**options)


def _sdk_memory() -> Described:
    from locus.memory.backends.memory import MemoryCheckpointer

    return MemoryCheckpointer, None


def _file() -> Described:
    from locus.memory.backends.file import FileCheckpointer

    return FileCheckpointer, None


def _http() -> Described:
    from locus.memory.backends.http import HTTPCheckpointer

    return HTTPCheckpointer, None


def _redis() -> Described:
    from locus.memory.backends.adapters import redis_checkpointer
    from locus.memory.backends.redis import RedisConfig

    return redis_checkpointer, RedisConfig


def _postgresql() -> Described:
    from locus.memory.backends.adapters import postgresql_checkpointer
    from locus.memory.backends.postgresql import PostgreSQLConfig

    return postgresql_checkpointer, PostgreSQLConfig


def _pg() -> Described:
    from locus.memory.backends.pg_checkpointer import PgCheckpointer

    return PgCheckpointer, None


def _mysql() -> Described:
    from locus.memory.backends.adapters import mysql_checkpointer
    from locus.memory.backends.mysql import MySQLConfig

    return mysql_checkpointer, MySQLConfig


def _opensearch() -> Described:
    from locus.memory.backends.adapters import opensearch_checkpointer
    from locus.memory.backends.opensearch import OpenSearchConfig

    return opensearch_checkpointer, OpenSearchConfig


def _s3() -> Described:
    from locus.memory.backends.s3 import S3Backend

    return S3Backend, None


def _oci() -> Described:
    from locus.memory.backends.oci_bucket import OCIBucketBackend, OCIBucketConfig

    return OCIBucketBackend, OCIBucketConfig


def _oracle() -> Described:
    from locus.memory.backends._oracle_config import OracleConfig
    from locus.memory.backends.adapters import oracle_checkpointer

    return oracle_checkpointer, OracleConfig


_SDK: Mapping[str, tuple[Callable[[], Described], str, str]] = {
    "sdk-memory": (_sdk_memory, "The SDK's `MemoryCheckpointer`: unbounded, gone with the process", "sdk-memory"),
    "file": (_file, "The SDK's `FileCheckpointer`", "file: {base_dir: ./states}"),
    "http": (_http, "The SDK's `HTTPCheckpointer`", 'http: {base_url: "https://host/api"}'),
    "redis": (_redis, "Redis or Valkey", 'redis: {url: "rediss://host:6379"}'),
    "postgresql": (_postgresql, "PostgreSQL, as a key-value store", 'postgresql: {dsn: "postgresql://host/database"}'),
    "pg": (_pg, "PostgreSQL, the SDK's `PgCheckpointer`", 'pg: {dsn: "postgresql://host/database"}'),
    "mysql": (_mysql, "MySQL", "mysql: {host: localhost, database: agents}"),
    "opensearch": (_opensearch, "OpenSearch", 'opensearch: {hosts: ["host:9200"]}'),
    "s3": (_s3, "S3, and what speaks its protocol", "s3: {bucket: agents}"),
    "oci": (_oci, "OCI Object Storage", "oci: {bucket_name: agents, namespace: mytenancy}"),
    "oracle": (_oracle, "Oracle Database", "oracle: {dsn: mydb_high, user: admin}"),
}

_PATHS = {"base_dir", "config_file", "ca_certs", "wallet_location"}
# Functions and objects, which no file can hold.
_WITHOUT = {"tenant_of", "retry_strategy"}


@cache
def _sdk_type(name: str) -> TierType:
    described, summary, example = _SDK[name]

    def make(**options: Any) -> Any:
        return described()[0](**options)

    def options() -> type[BaseModel]:
        from locus_tiered.config.options import options_of

        made_by, more = described()
        return options_of(name, made_by, more=more, without=_WITHOUT, paths=_PATHS)

    return TierType(name, make, options, summary, example, foreign=False)


_OURS = {
    "memory": TierType(
        "memory",
        _memory,
        _memory_options,
        "`BoundedMemoryCheckpointer`: memory, bounded in bytes",
        "memory: {max_bytes: 256MiB}",
        foreign=False,
    ),
    "directory": TierType(
        "directory",
        _directory,
        _directory_options,
        "`DirectoryCheckpointer`: one readable file per checkpoint",
        "directory: {path: ./checkpoints}",
        foreign=False,
    ),
}


def built_in() -> dict[str, TierType]:
    """The types that come with the package, by name."""
    return {**_OURS, **{name: _sdk_type(name) for name in _SDK}}
