"""The testing kit: prove a checkpointer, break one on purpose, and drive one against a dictionary.

* :class:`CheckpointerContract`, a pytest class for backend authors, and :func:`check_checkpointer_conformance`,
  the same checks without pytest;
* :class:`FaultyCheckpointer`, a checkpointer that goes wrong when told to, with :func:`on` to say when;
* ``locus_tiered.testing.machine``, a Hypothesis state machine (needs hypothesis);
* ``locus_tiered.testing.services`` and ``.proxy``, real servers and a proxy that breaks connections;
* ``locus_tiered.testing.virtual_time``, an event loop whose hours pass at once.
"""

from typing import TYPE_CHECKING, Any

from locus_tiered.testing.conformance import ConformanceReport, check_checkpointer_conformance
from locus_tiered.testing.faults import Fault, FaultKind, FaultyCheckpointer, InjectedFault, ReferenceCheckpointer, on

if TYPE_CHECKING:
    from locus_tiered.testing.contract import CheckpointerContract

__all__ = [
    "CheckpointerContract",
    "ConformanceReport",
    "Fault",
    "FaultKind",
    "FaultyCheckpointer",
    "InjectedFault",
    "ReferenceCheckpointer",
    "check_checkpointer_conformance",
    "on",
]


def __getattr__(name: str) -> Any:
    # The contract is a pytest class: only who uses it needs pytest.
    if name == "CheckpointerContract":
        from locus_tiered.testing.contract import CheckpointerContract

        return CheckpointerContract
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
