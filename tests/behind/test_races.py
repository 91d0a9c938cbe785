"""What another process deletes in the very moment in which this one sends it, or sends it again, stays deleted."""

from __future__ import annotations

from pathlib import Path

from locus_tiered.core.operations import Save
from locus_tiered.testing.reference import ReferenceCheckpointer
from tests.behind.kit import behind, far_words, nothing_pending, said
from tests.behind.test_found_by_review import Between


async def test_a_name_deleted_elsewhere_between_our_question_and_our_sending_stays_deleted(
    tmp_path: Path,
) -> None:
    far = ReferenceCheckpointer()
    async with behind(far, tmp_path / "b", ack="turn") as other:

        async def delete() -> None:
            assert await other.delete("t", "draft")
            await other.flush()

        racing = Between(far, lambda op: isinstance(op, Save) and op.thread_id == "t", delete)
        async with behind(racing, tmp_path / "a", ack="journal") as stack:
            await other.save(said("first"), "t", "draft")
            await stack.save(said("second"), "t", "draft")
            await stack.flush()
            assert await stack.load("t", "draft") is None
            assert nothing_pending(stack)
    assert await far_words(far, "t") == []


async def test_the_newest_deleted_elsewhere_while_it_is_saved_again_for_bare_readers_stays_deleted(
    tmp_path: Path,
) -> None:
    far = ReferenceCheckpointer()
    async with behind(far, tmp_path / "b", ack="turn") as other, behind(far, tmp_path / "c", ack="turn") as third:
        newest = ""

        async def delete() -> None:
            assert await third.delete("t", newest)

        racing = Between(
            far, lambda op: isinstance(op, Save) and op.checkpoint is not None and op.checkpoint.id == newest, delete
        )
        async with behind(racing, tmp_path / "a", ack="journal") as stack:
            await stack.load("t")
            await stack.save(said("older"), "t")
            newest = await other.save(said("newest"), "t")
            await stack.load("t")
            await stack.flush()
            assert await stack.load("t", newest) is None
    assert await far_words(far, "t") == ["older"]
