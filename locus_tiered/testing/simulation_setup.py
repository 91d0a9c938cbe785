"""What one seed of the simulation is about: the stack's options, and which faults it must bear.

Not every stack can bear everything: with ``write_quorum=1`` the one copy of a save may be lost with its replica, so
nothing is damaged or wiped there. A *careless* replica (one of three) loses index rows and acknowledges what it does
only later; where it is, an answer of "there is none" is held against what the replicas hold at that moment, and others
than who deleted something may be told of it for so long.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from random import Random
from typing import Any, Literal

from locus_tiered.layers.replicated_options import Read, WriteQuorum, votes_needed

__all__ = ["Setup"]

Evil = Literal["none", "damage", "wipe", "careless"]


@dataclass(frozen=True, slots=True)
class Setup:
    """One world. :meth:`of` draws it from a seed."""

    seed: int
    replicas: int = 3
    write_quorum: WriteQuorum = "majority"
    read: Read = "one"
    journal: bool = True
    guarded: bool = True
    retries: bool = False
    window: str = "256MiB"
    evil: Evil = "none"
    """What the last replica does, beside what any replica does."""
    jumps: bool = True
    """Whether clocks jump by an hour, and days pass."""
    crashes: bool = True
    weather: float = 0.1
    """The chance of a fault per call, at most."""
    steps: int = 60
    """Operations of each client."""

    @classmethod
    def of(cls, seed: int, **fixed: Any) -> Setup:
        """The world of a seed."""
        random = Random(f"setup/{seed}")
        replicas = random.choice((3, 3, 3, 2))
        journal = replicas == 2 or random.random() < 0.7
        quorums: tuple[WriteQuorum, ...] = (
            ("majority", "majority", 2, "all", 1) if replicas == 3 else ("majority", "all")
        )
        setup = cls(
            seed,
            replicas=replicas,
            write_quorum=random.choice(quorums),
            read=random.choice(("one", "quorum", "hedged")),
            journal=journal,
            guarded=random.random() < 0.8,
            retries=random.random() < 0.4,
            window=random.choice(("256MiB", "256MiB", "4KiB")),
            evil=random.choice(("none", "none", "damage", "wipe", "careless")),
            jumps=random.random() < 0.6,
            crashes=random.random() < 0.7,
            weather=random.choice((0.0, 0.05, 0.15)),
        )
        setup = replace(setup, **fixed)
        if setup.votes < 2:
            setup = replace(setup, evil="none", jumps=False)
        return setup

    @property
    def votes(self) -> int:
        """How many replicas hold an acknowledged save."""
        return votes_needed(self.write_quorum, self.replicas)
