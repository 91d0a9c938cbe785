"""What it costs to find and read the newest checkpoint of a long thread on disk."""

from __future__ import annotations

from typing import TYPE_CHECKING

from locus.memory.backends.file import FileCheckpointer

from locus_tiered.bench.figures import Budget, Figure
from locus_tiered.bench.states import conversation, encoded_size
from locus_tiered.bench.timing import interleave
from locus_tiered.stores.directory import DirectoryCheckpointer

if TYPE_CHECKING:
    from locus_tiered.bench.suite import Settings

__all__ = ["measure"]


async def measure(settings: Settings) -> list[Figure]:
    """``DirectoryCheckpointer`` against ``FileCheckpointer``, on equal threads."""
    length = settings.pick(1000, 100)
    state = conversation(12)
    # How safely the files were written makes no difference to reading them.
    ours = DirectoryCheckpointer(settings.directory / "ours", durability="process")
    alone = FileCheckpointer(settings.directory / "alone")
    for checkpointer in (ours, alone):
        for _ in range(length):
            await checkpointer.save(state, "thread")
        assert len(await checkpointer.list_checkpoints("thread", limit=2 * length)) == length
    rounds = await interleave(
        {"alone": lambda: alone.load("thread"), "ours": lambda: ours.load("thread")},
        rounds=settings.pick(15, 3),
        calls=settings.pick(3, 2),
    )
    await ours.close()
    return [
        Figure(
            what=f"{length} on disk, Directory : File",
            unit="ms",
            against="FileCheckpointer",
            sdk=rounds.median("alone") * 1e3,
            stack=rounds.median("ours") * 1e3,
            ratio=rounds.ratio("ours", "alone"),
            difference=rounds.difference("ours", "alone") * 1e3,
            budget=Budget("value", 3),
            details={"checkpoints": length, "bytes": encoded_size(state)},
        )
    ]
