"""The checks of the contract, a module per subject. Importing this package registers all of them.

``contract`` runs them under pytest, ``conformance`` without it. :func:`all_checks` lists them with their facts.
"""

from locus_tiered.testing.checks import (
    basics,
    cancellation,
    capabilities,
    concurrency,
    ids,
    isolation,
    lifecycle,
    optional,
    order,
)
from locus_tiered.testing.checks.base import (
    Check,
    CheckSkipped,
    CheckTimeout,
    Factory,
    Law,
    Normalise,
    Reopen,
    Subject,
    all_checks,
    check,
    run_check,
)
from locus_tiered.testing.checks.states import without_message_times

__all__ = [
    "Check",
    "CheckSkipped",
    "CheckTimeout",
    "Factory",
    "Law",
    "Normalise",
    "Reopen",
    "Subject",
    "all_checks",
    "basics",
    "cancellation",
    "capabilities",
    "check",
    "concurrency",
    "ids",
    "isolation",
    "lifecycle",
    "optional",
    "order",
    "run_check",
    "without_message_times",
]
