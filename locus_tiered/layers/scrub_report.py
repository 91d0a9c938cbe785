"""What a scrub has done, and how far it has come."""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["Progress", "ScrubReport"]


@dataclass(slots=True)
class ScrubReport:
    """What a scrub has done."""

    threads: int = 0
    """Threads that were compared."""
    differed: int = 0
    """Threads that were not the same everywhere."""
    copied: int = 0
    """Checkpoints copied to a replica that lacked them."""
    deleted: int = 0
    """Checkpoints deleted where they were left behind."""
    mended: int = 0
    """Damaged copies replaced, and replicas whose own newest was wrong."""
    damaged: int = 0
    """Copies that were not what was saved."""
    quarantined: int = 0
    """Checkpoints that only a fenced replica had, put aside there."""
    unreachable: set[str] = field(default_factory=set)
    """Replicas that could not be compared."""
    unmended: int = 0
    """Checkpoints of which no intact copy was found."""

    @property
    def in_step(self) -> bool:
        """Whether every replica was reached and nothing is left to do."""
        return not self.unreachable and not self.unmended


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a scrub has come."""

    done: int
    total: int
    thread_id: str
    report: ScrubReport
