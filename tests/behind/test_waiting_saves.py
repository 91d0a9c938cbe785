"""A save that waits behind a delete whose caller has left is above that delete, also for who replays the journal."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from locus_tiered.core.errors import BackendError
from locus_tiered.core.operations import Exists, Head, ListCheckpoints
from locus_tiered.testing import FaultyCheckpointer
from locus_tiered.testing.fault_script import on
from locus_tiered.testing.reference import ReferenceCheckpointer
from tests.behind.kit import behind, crashed, far_words, said, stack_words
from tests.behind.test_found_by_review import Between


@pytest.mark.parametrize("name", [None, "draft"])
@pytest.mark.parametrize("crashes", [False, True])
async def test_what_is_saved_after_a_delete_that_its_caller_has_left_stays(
    tmp_path: Path, name: str | None, crashes: bool
) -> None:
    store, answers = ReferenceCheckpointer(), asyncio.Event()
    far = FaultyCheckpointer(store)
    asked = asyncio.Event()

    async def hold() -> None:
        asked.set()
        await answers.wait()

    slow = Between(far, lambda _: False, hold)
    async with behind(slow, tmp_path / "a", ack="journal") as stack:
        await stack.save(said("first"), "t", "draft")
        await stack.flush()
        slow.when = lambda op: isinstance(op, Head | ListCheckpoints | Exists) and op.thread_id == "t"
        left = asyncio.create_task(stack.delete("t", name))
        await asked.wait()
        left.cancel()
        saving = asyncio.create_task(stack.save(said("second"), "t", name))
        await asyncio.sleep(0.01)  # it waits for its turn by then
        answers.set()
        await saving
        far.inject(on("save", thread_id="t").fail_before())  # the delete of a thread has gone by then
        with pytest.raises(BackendError):
            await stack.flush()
        # Of a name only the last word counts: its delete is not sent.
        assert await far_words(store, "t") == ([] if name is None else ["first"])
        if crashes:
            async with behind(store, crashed(tmp_path / "a"), ack="journal") as other:
                await other.flush()
                assert await stack_words(other, "t") == ["second"]
        await stack.flush()
        assert await stack_words(stack, "t") == ["second"]
    assert await far_words(store, "t") == ["second"]
