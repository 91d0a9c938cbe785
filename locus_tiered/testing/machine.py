"""A Hypothesis state machine that drives any checkpointer against a plain dictionary.

::

    Machine = checkpointer_machine(lambda: TieredCheckpointer(BoundedMemoryCheckpointer(), backend()))
    TestMyStack = Machine.TestCase          # in a pytest module
    run_machine(Machine, max_examples=50)   # anywhere else, outside of a running event loop

The rules are what agents and people do: turns with iteration saves that crash or end, saves under hostile
ids, saving an id again, deleting, copying, changing what was passed and what was returned, closing, going on
in another event loop, two handles on one store, calls at once. After every step the latest, the list and
every checkpoint are compared with the model (in half of the examples only now and then, so that what was
never read is tested as well).

It promises that a failure comes with the shortest program that Hypothesis found for it, and that a
derandomised run is the same every time. It does not inject faults, kill processes, or measure; a step that
does not answer within ``time_limit`` real seconds is a failure.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import run_state_machine_as_test
from locus.core.state import AgentState

from locus_tiered.testing.machine_driver import Factory, Forgivable, Loops, Pair, Plan
from locus_tiered.testing.machine_optional import OptionalRules
from locus_tiered.testing.model import DictionaryModel
from locus_tiered.testing.strategies import HOSTILE_IDS, PLAIN_IDS, few_ids, quick_metadata, quick_states

__all__ = [
    "HOSTILE_IDS",
    "PLAIN_IDS",
    "CheckpointerMachine",
    "DictionaryModel",
    "Pair",
    "checkpointer_machine",
    "run_machine",
]


class CheckpointerMachine(OptionalRules):
    """All rules together. Made concrete by :func:`checkpointer_machine`."""


def checkpointer_machine(
    factory: Factory,
    *,
    name: str = "CheckpointerMachine",
    thread_ids: Sequence[str] = HOSTILE_IDS,
    checkpoint_ids: Sequence[str] = HOSTILE_IDS,
    states: st.SearchStrategy[AgentState] | None = None,
    metadata: st.SearchStrategy[dict[str, Any]] | None = None,
    loops: Loops = "closed",
    bounded: bool = False,
    refusals: Sequence[type[Exception]] = (),
    forgives: Collection[Forgivable] = (),
    time_limit: float = 30.0,
) -> type[CheckpointerMachine]:
    """A state machine for the checkpointers that ``factory`` makes.

    Args:
        factory: Called once per example, inside a running loop, sync or async. Answers a checkpointer over an
            **empty** store of its own, or a :class:`Pair` of two handles on one.
        name: What Hypothesis calls the machine.
        thread_ids, checkpoint_ids: The pools to draw from; give a smaller one for a backend that refuses or
            mixes up some ids. Ids that are easily confused are drawn together more often.
        states, metadata: What is saved, every state marked by its own ``total_tokens_used``;
            ``quick_states()`` and ``quick_metadata()`` by default.
        loops: ``"kept"``: one loop for the whole example; ``"closed"``: ``close()``, then another loop, as
            ``Agent.run_sync`` does; ``"abandoned"``: also another loop without ``close()``.
        bounded: The store may forget old checkpoints at any time, but must keep what was saved last, keep the
            order, and never answer wrongly.
        refusals: Exceptions by which ``save`` may decline; nothing must have changed then.
        forgives: What not to check, for stores that promise less:

            - ``"blind saves"``: a handle may misorder its save after another handle's unless it looks first (it
              then looks, as every agent's turn does);
            - ``"ids elsewhere"``: a handle may answer by id with what the other handle has since deleted or
              saved again; the latest and the list must be right all the same;
            - ``"delete answers"``: what ``delete`` returns;
            - ``"emptied threads"``: ``list_threads`` may show threads without checkpoints;
            - ``"patterns"``: those of ``list_threads``;
            - ``"row order"``: that of ``list_with_metadata``;
            - ``"undeclared operations"``: they may work although their flag is false.
        time_limit: Real seconds for one step, after which it counts as hanging.
    """
    plan = Plan(
        factory=factory,
        thread_ids=few_ids(thread_ids),
        checkpoint_ids=few_ids(checkpoint_ids),
        states=quick_states() if states is None else states,
        metadata=quick_metadata() if metadata is None else metadata,
        loops=loops,
        bounded=bounded,
        refusals=tuple(refusals),
        forgives=frozenset(forgives),
        time_limit=time_limit,
    )
    return type(name, (CheckpointerMachine,), {"plan": plan, "__doc__": f"Drives {name}."})


def run_machine(
    machine: type[CheckpointerMachine],
    *,
    max_examples: int = 50,
    steps: int = 30,
    derandomize: bool = True,
    shrink: bool = True,
) -> None:
    """Run a machine; raises what its shortest failing program raised, which is printed.

    Args:
        max_examples: How many programs.
        steps: The most steps of one.
        derandomize: The same programs every time (for CI); ``False``: others each time.
        shrink: Look for the shortest failing program. ``False`` is for tests that only ask whether it fails, and
            for failures that depend on time, which Hypothesis else calls flaky instead of showing them.
    """
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=max_examples,
            stateful_step_count=steps,
            derandomize=derandomize,
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            report_multiple_bugs=False,
            phases=(Phase.generate, Phase.shrink) if shrink else (Phase.generate,),
        ),
    )
