"""Which layer belongs outside which, and what goes wrong otherwise (section 8 of the design)."""

from __future__ import annotations

import warnings

from locus_tiered.core.layer import Layer

__all__ = ["StackOrderWarning", "warn_about_order"]


_WRONG = {
    ("RetryingCheckpointer", "CachedCheckpointer"): "a retried save repeats its near tiers, and reads that a near "
    "tier could answer wait for retries; put the retry around the backend, inside the tiers",
    ("RetryingCheckpointer", "TieredCheckpointer"): "a retried save repeats all tiers for the failure of one; put a "
    "RetryingCheckpointer around each backend, inside the tiers",
    ("RetryingCheckpointer", "RetryingCheckpointer"): "attempts multiply: what the inner one gave up is not tried "
    "again, but its waits add up; keep one",
    ("GuardedCheckpointer", "RetryingCheckpointer"): "one timeout then covers all attempts and their pauses, and the "
    "breaker never hears of what the retry gave up; put GuardedCheckpointer inside RetryingCheckpointer",
    ("GuardedCheckpointer", "CachedCheckpointer"): "a slow backend then makes the breaker refuse reads that a near "
    "tier could answer; guard each backend, inside the tiers",
    ("GuardedCheckpointer", "TieredCheckpointer"): "one slow tier then makes the breaker refuse all tiers; guard each "
    "backend, inside the tiers",
    ("RetryingCheckpointer", "WriteBehindCheckpointer"): "a retry around the journal repeats what the journal has kept "
    "already, and what is sent in the background is not retried; put the retry inside WriteBehindCheckpointer",
    (
        "GuardedCheckpointer",
        "WriteBehindCheckpointer",
    ): "its breaker would hear of the journal instead of the far store, "
    "and cut off saves that wait for room; put the guard inside WriteBehindCheckpointer",
    ("WriteBehindCheckpointer", "CachedCheckpointer"): "what is pending would answer before the near tier, from the "
    "disk; put the cache around WriteBehindCheckpointer",
    ("WriteBehindCheckpointer", "TieredCheckpointer"): "what is pending would answer before the near tiers, from the "
    'disk; give the home tier write="behind" instead',
    ("WriteBehindCheckpointer", "WriteBehindCheckpointer"): "every save would be journaled twice; keep one",
    (
        "GuardedCheckpointer",
        "GuardedCheckpointer",
    ): "the inner one's timeouts count as the outer one's failures too, and calls wait in two queues; keep one",
}


class StackOrderWarning(UserWarning):
    """Layers are nested in an order that defeats one of them."""


def warn_about_order(layer: Layer) -> None:
    """Warn when a layer that belongs outside is inside ``layer``; called at the end of a layer's constructor."""
    outer = type(layer).__name__
    for below in list(layer.walk())[1:]:
        why = _WRONG.get((outer, type(below).__name__))
        if why is not None:
            warnings.warn(f"{outer} around {type(below).__name__}: {why}", StackOrderWarning, stacklevel=3)
            return
