"""A save that a crash tore in two in the far store: S3Backend writes a state, then its metadata, then its pointer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from locus.memory.backends.s3 import S3Backend

from locus_tiered import WriteBehindCheckpointer
from locus_tiered.testing.services import SeaweedFS
from tests.crash.ledger import state_of


class Cut(BaseException):
    """The process ended."""


@pytest.mark.parametrize("ack", ["turn", "journal", "far"])
async def test_a_name_whose_second_save_was_torn_can_be_read_and_saved_again(
    ack: Any, s3_server: SeaweedFS, s3_backend: S3Backend, tmp_path: Path
):
    first = WriteBehindCheckpointer(s3_backend, journal=tmp_path / "first", ack=ack)
    await first.save(state_of(1), "t", "draft")
    await first.close()

    # The second save of the name, as a process leaves it that is killed after the first of the three writes.
    torn = s3_server.backend(bucket=s3_backend.bucket)
    real = torn._put_json

    async def put(key: str, payload: dict[str, Any]) -> None:
        if key.endswith(".meta.json"):
            raise Cut
        await real(key, payload)

    torn._put_json = put  # type: ignore[method-assign]
    second = WriteBehindCheckpointer(torn, journal=tmp_path / "second", ack="far")
    with pytest.raises(Cut):
        await second.save(state_of(2), "t", "draft")

    third = WriteBehindCheckpointer(s3_server.backend(bucket=s3_backend.bucket), journal=tmp_path / "third", ack=ack)
    assert await third.list_checkpoints("t") == ["draft"]
    assert await third.load("t", "draft") == state_of(2)
    assert await third.load("t") == state_of(2), "the newest can be read, whichever of the two saves it is"
    await third.save(state_of(3), "t")
    assert await third.load("t") == state_of(3)
    await third.save(state_of(4), "t", "draft")
    assert await third.load("t") == state_of(4)
    await third.close()
