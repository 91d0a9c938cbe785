"""The rows of the listing operations, in one shape whatever the backend answers.

``thread_id``, ``checkpoint_id`` and ``metadata`` (the caller's own), beside whatever else the backend knows.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from locus_tiered.core.envelope import KEY, Envelope, user_metadata
from locus_tiered.core.ids import RESERVED, IdRule, marked_name
from locus_tiered.core.operations import Row
from locus_tiered.core.traits import Traits

__all__ = ["metadata_row", "newest_first", "uniform_rows"]

_INTERNAL = ("latest", "_checkpoints")  # what the SDK's key-value adapter keeps beside the checkpoints


def uniform_rows(rows: Iterable[Any], traits: Traits) -> list[Row]:
    """Rows with the ids of the stack's users; what is no checkpoint is left out."""
    return [row for row in (_uniform(row, traits) for row in rows if isinstance(row, dict)) if row is not None]


def _uniform(found: dict[str, Any], traits: Traits) -> Row | None:
    row = dict(found)
    thread, checkpoint = row.get("thread_id"), row.get("checkpoint_id")
    if traits.row_ids == "joined" and isinstance(thread, str):
        thread, _, checkpoint = thread.rpartition(":")
        if checkpoint in _INTERNAL:
            return None
    if not isinstance(thread, str):
        return row
    data = row.get("data")
    metadata = row.get("metadata")
    if metadata is None and isinstance(data, dict):
        metadata = data.get("_metadata")
    envelope = Envelope.read(metadata)
    if isinstance(data, dict) and isinstance(data.get("metadata"), dict) and KEY in data["metadata"]:
        row["data"] = {**data, "metadata": user_metadata(data["metadata"])}
    if isinstance(checkpoint, str):
        if marked_name(checkpoint) is not None:
            return None
        checkpoint = envelope.id if envelope else (IdRule.decode(checkpoint) or checkpoint)
        row["checkpoint_id"] = checkpoint
    row["thread_id"] = envelope.thread if envelope else (IdRule.decode(thread) or thread)
    if row["thread_id"].startswith(RESERVED):
        return None
    if isinstance(metadata, dict):
        row["metadata"] = user_metadata(metadata)
    if envelope:
        row["stamp"] = envelope.stamp
    return row


def metadata_row(found: Any, thread_id: str, checkpoint_id: str | None, traits: Traits) -> Row | None:
    """What ``get_metadata`` answered, as a row."""
    if not isinstance(found, dict):
        return None
    bare = traits.bare_metadata or not isinstance(found.get("metadata"), dict)
    metadata = found if bare else found["metadata"]
    envelope = Envelope.read(metadata)
    known = checkpoint_id if checkpoint_id is not None else (envelope.id if envelope else None)
    if known is None and not bare and isinstance(found.get("checkpoint_id"), str):
        known = IdRule.decode(found["checkpoint_id"])
    row = {} if bare else {key: value for key, value in found.items() if key not in ("metadata", "thread_id")}
    row |= {"thread_id": thread_id, "checkpoint_id": known, "metadata": user_metadata(metadata)}
    if envelope:
        row["stamp"] = envelope.stamp
    return row


def newest_first(rows: list[Row], traits: Traits) -> list[Row]:
    """Stamped rows by their stamps, then the others as the backend has them, or by its times."""
    stamped = sorted((row for row in rows if "stamp" in row), key=lambda row: str(row["stamp"]), reverse=True)
    others = [row for row in rows if "stamp" not in row]
    if not traits.rows_in_order:
        others.sort(key=lambda row: str(row.get("created_at") or row.get("updated_at") or ""), reverse=True)
    return stamped + others
