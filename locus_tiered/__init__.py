"""One checkpointer out of many, for agents of the Locus SDK.

``TieredCheckpointer`` makes ``memory -> directory -> object store`` act as one; ``CachedCheckpointer`` puts a
cache in front of any checkpointer; ``BoundedMemoryCheckpointer`` and ``DirectoryCheckpointer`` are stores of its
own; ``load_stack`` builds a whole stack from a YAML file; ``Layer`` and ``Operation`` are for writing a layer of one's
own. Everything is a ``BaseCheckpointer``, so everything goes into ``Agent(checkpointer=...)`` and everything goes
inside everything else. Inside, ``core`` defines operations, order and the seam; ``stores`` and ``layers`` build on it,
and ``config`` on those; ``testing`` is the kit by which a checkpointer proves that it keeps the contract.
"""

from locus_tiered.config import load_stack, register_tier_type
from locus_tiered.core.layer import Layer
from locus_tiered.core.leaf import Leaf
from locus_tiered.core.operations import Operation
from locus_tiered.core.traits import Traits
from locus_tiered.layers.cached import CachedCheckpointer
from locus_tiered.layers.guarded import GuardedCheckpointer
from locus_tiered.layers.replicated import ReplicatedCheckpointer
from locus_tiered.layers.retrying import RetryingCheckpointer
from locus_tiered.layers.tiered import Tier, TieredCheckpointer
from locus_tiered.layers.traced import TracedCheckpointer
from locus_tiered.layers.turns import turn_span
from locus_tiered.layers.write_behind import WriteBehindCheckpointer
from locus_tiered.stores.directory import DirectoryCheckpointer
from locus_tiered.stores.memory import BoundedMemoryCheckpointer

__all__ = [
    "BoundedMemoryCheckpointer",
    "CachedCheckpointer",
    "DirectoryCheckpointer",
    "GuardedCheckpointer",
    "Layer",
    "Leaf",
    "Operation",
    "ReplicatedCheckpointer",
    "RetryingCheckpointer",
    "Tier",
    "TieredCheckpointer",
    "TracedCheckpointer",
    "Traits",
    "WriteBehindCheckpointer",
    "load_stack",
    "register_tier_type",
    "turn_span",
]

__version__ = "0.1.0"
