"""The traits of the checkpointers that come with the Locus SDK (3.0), by the names of their classes.

By name, so that no driver is imported. Each line is a fact that was observed against the real thing; the
contract kit (``docs/sdk-conformance.md``) finds them again.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

from locus.memory.checkpointer import BaseCheckpointer

from locus_tiered.core.ids import RESERVED, IdRule, has_surrogates, plain_text
from locus_tiered.core.traits import Traits

__all__ = ["traits_of"]

_OBJECT_NAME = re.compile(r"[A-Za-z0-9 !$&'()*+,\-.:;=@_~]+")


def _object_name(text: str) -> bool:
    """A path segment that object stores keep: no slash, nothing that a URL or a file system treats specially."""
    if text in (".", "..") or text != text.strip():
        return False
    return all(character.isascii() is False and character.isalnum() for character in text) or bool(
        _OBJECT_NAME.fullmatch(text)
    )


def _memory(_: Any) -> Traits:
    return Traits(shares_values=True, keeps_empty_threads=True)


def _file(backend: Any) -> Traits:
    def word(text: str) -> bool:
        return not has_surrogates(text) and all(c.isalnum() or c in "-_" for c in text)

    base = Path(backend.base_dir)
    seen: tuple[int, int] | None = None

    async def probe() -> bool:
        # A directory that was there and is gone, or is another one now, is a lost mount, not an empty store.
        nonlocal seen
        try:
            status = base.stat()
        except OSError:
            return seen is None
        here = (status.st_dev, status.st_ino)
        seen = seen or here
        return here == seen

    return Traits(
        thread_ids=IdRule(word, 200),
        checkpoint_ids=IdRule(word, 200),
        prunes=backend.max_checkpoints_per_thread is not None,
        none_is_unknown=True,
        probe=probe,
        one_at_a_time=True,
        one_loop_at_a_time=True,
        keeps_empty_threads=True,
        home=f"directory {base.resolve()}",
        home_is_unique=True,
        shown=("base_dir",),
    )


def _http(backend: Any) -> Traits:
    def segment(text: str) -> bool:
        return plain_text(text) and "/" not in text and "\\" not in text and text not in (".", "..")

    async def probe() -> bool:
        # Any answer below 500 comes from a server that lives, even one without a /health page.
        client = await backend._get_client()
        try:
            response = await client.get("/health")
        except Exception:  # noqa: BLE001 - whatever the transport raises means: not reached
            return False
        return bool(response.status_code < 500)

    return Traits(
        thread_ids=IdRule(segment, 200),
        checkpoint_ids=IdRule(segment, 200),
        none_is_unknown=True,
        probe=probe,
    )


def _s3(backend: Any) -> Traits:
    def absent(error: Exception) -> bool:
        # The first save makes the bucket; one that vanished later is an outage.
        response = getattr(error, "response", None)
        code = response.get("Error", {}).get("Code") if isinstance(response, dict) else None
        return code == "NoSuchBucket" and backend._create_bucket and not backend._initialized

    # The first calls of a process would each make the bucket.
    return replace(_objects(backend), absent=absent, first_call_alone=True)


def _objects(backend: Any) -> Traits:
    def checkpoint(text: str) -> bool:
        return _object_name(text) and not text.endswith(".meta")

    async def pointer(thread: str) -> str | None:
        # LastModified counts whole seconds; the pointer knows the last save.
        found = await backend._get_bytes(backend._latest_key(thread))
        return None if found is None else found.decode().strip()

    return Traits(
        thread_ids=IdRule(_object_name, 200),
        checkpoint_ids=IdRule(checkpoint, 200),
        reads_metadata=True,
        bare_metadata=True,
        rows_in_order=False,
        own_latest=pointer,
        home=_bucket(backend),
        shown=("bucket", "prefix"),
    )


def _bucket(backend: Any) -> str:
    # Two servers may each have such a bucket: this is no unique home.
    options = getattr(backend, "config", backend)  # OCI keeps them apart
    name = getattr(options, "bucket", None) or getattr(options, "bucket_name", None)
    return f"bucket {name}/{getattr(options, 'prefix', '')}"


def _oci(backend: Any) -> Traits:
    # Lists the first 1000 objects of a thread, two per checkpoint, in the order of their names.
    masks = {"list_with_metadata": "it lists one row per thread, not one per checkpoint"}
    return replace(_objects(backend), lists_at_most=490, bare_metadata=False, masks=masks, shown=())


def _pg(backend: Any) -> Traits:
    def tenant_for(thread_id: str) -> str:
        # tenant_of cannot place the stack's own threads: they are the usual tenant's, or that of the scope around.
        found: str = backend.tenant_for(None if thread_id.startswith(RESERVED) else thread_id)
        return found

    def tenant(thread_id: str) -> str | None:
        found = tenant_for(thread_id)
        return None if found == backend._tenant else found

    def scope(thread_id: str) -> AbstractContextManager[object]:
        # tenant_of judges by the id as its users know it, not by the name under which it is kept.
        return backend.tenant_scope(tenant_for(thread_id))  # type: ignore[no-any-return]

    return Traits(
        # A B-tree row of Postgres holds 2704 bytes.
        thread_ids=IdRule(plain_text, 800),
        checkpoint_ids=IdRule(plain_text, 800),
        prunes=backend.keep_checkpoints is not None,
        reads_metadata=True,
        normalise=backend.prepare,
        digest_leaves_out=("messages",),  # retention and purge_messages() rewrite them
        partition=tenant,
        home=f"table {backend._table}, tenant {backend._tenant}",
        scope=None if backend._tenant_of is None else scope,
        first_call_alone=True,
        one_loop_at_a_time=True,
    )


def _adapter(backend: Any) -> Traits:
    storage = backend._backend
    kind = type(storage).__name__
    wildcard = "%" if kind in ("PostgreSQLBackend", "MySQLBackend", "OracleBackend") else "*"

    def checkpoint(text: str) -> bool:
        return plain_text(text) and ":" not in text

    async def thread_names() -> list[str]:
        keys = await backend.list_threads(limit=1_000_000, pattern=f"{wildcard}:_checkpoints")
        suffix = ":_checkpoints"
        return [key[: -len(suffix)] for key in keys if key.endswith(suffix)]

    masks = {}
    config = getattr(storage, "config", None)
    if getattr(config, "ttl_seconds", None) is None:
        masks["ttl"] = "no ttl_seconds is set"
    if kind == "OpenSearchBackend":
        masks["list_with_metadata"] = "its rows are not checkpoints"

    async def ping() -> bool:
        return bool(await (await storage._get_client()).ping())

    swallows = kind == "OpenSearchBackend"
    return Traits(
        thread_ids=IdRule(plain_text, 160),
        checkpoint_ids=IdRule(checkpoint, 90, ("latest", "_checkpoints")),
        expires_after=getattr(config, "ttl_seconds", None) or None,
        loses_index_rows=True,
        reads_metadata=kind == "RedisBackend",
        none_is_unknown=swallows,
        probe=ping if swallows else None,
        first_call_alone=True,
        one_loop_at_a_time=True,
        masks=masks,
        home=_place(kind, config),
        thread_names=thread_names,
        row_ids="joined",
        deletes_at_most=1000,
    )


def _place(kind: str, config: Any) -> str | None:
    """Where a key-value store keeps things, as far as its options say so without telling the address of a server."""
    names = ("prefix", "db", "database", "schema_name", "table_name", "index_name")
    found = [f"{name} {value}" for name in names if (value := getattr(config, name, None)) is not None]
    return f"{kind}: {', '.join(found)}" if found else None


def _retained(backend: Any) -> Traits:
    inner = traits_of(backend.inner)

    def normalise(state: Any) -> Any:
        state = backend.retain(state)
        return state if inner.normalise is None else inner.normalise(state)

    # It does not pass get_metadata on.
    return replace(inner, normalise=normalise, digest_leaves_out=("messages",), reads_metadata=False)


_SDK: dict[str, Callable[[Any], Traits]] = {
    "locus.memory.backends.memory.MemoryCheckpointer": _memory,
    "locus.memory.backends.file.FileCheckpointer": _file,
    "locus.memory.backends.http.HTTPCheckpointer": _http,
    "locus.memory.backends.s3.S3Backend": _s3,
    "locus.memory.backends.oci_bucket.OCIBucketBackend": _oci,
    "locus.memory.backends.pg_checkpointer.PgCheckpointer": _pg,
    "locus.memory.backends.adapters.StorageBackendAdapter": _adapter,
    "locus.memory.retention.RetainedCheckpointer": _retained,
}


def traits_of(backend: BaseCheckpointer) -> Traits:
    """What ``backend`` declares (``locus_tiered_traits``), or what is known of its class or a base of it."""
    declared = getattr(backend, "locus_tiered_traits", None)
    if isinstance(declared, Traits):
        return declared
    for kind in type(backend).__mro__:
        known = _SDK.get(f"{kind.__module__}.{kind.__qualname__}")
        if known is not None:
            return known(backend)
    return Traits()
