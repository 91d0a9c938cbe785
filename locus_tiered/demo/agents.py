"""The agent of the demo: a scripted model, one tool, turns of as many calls as wanted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from locus import tool
from locus.agent import Agent
from locus.memory.checkpointer import BaseCheckpointer
from locus.models.base import ModelResponse
from locus.testing import ScriptedModel, text, tool_call

__all__ = ["agent_on", "answer", "calls", "look_up", "order", "prompt", "turn"]

_ROUTE = "left the depot in Lisbon, crossed the border at Vilar Formoso, reached the hub in Salamanca; "


def order(number: int) -> str:
    """The order that the tool is asked for in a turn's call of this number."""
    return f"ord-{number:02d}"


def prompt(number: int, calls: int) -> str:
    """What the user asks in a turn."""
    return f"Question {number}: where are my {calls} orders?"


def answer(number: int) -> str:
    """What the agent answers at the end of a turn."""
    return f"Answer {number}: all of them arrive on Thursday."


def calls(turn_number: int, numbers: Sequence[int]) -> list[ModelResponse]:
    """The model's wish to call the tool once for each number."""
    return [tool_call("look_up", call_id=f"turn{turn_number}_call{number}", order=order(number)) for number in numbers]


def turn(number: int, tool_calls: int) -> list[ModelResponse]:
    """All that the model says in a turn: so many calls, then the answer."""
    return [*calls(number, range(1, tool_calls + 1)), text(answer(number))]


@tool
async def look_up(order: str) -> str:
    """Look up where an order is."""
    return f"{order}: {_ROUTE * 5}expected on Thursday."


def agent_on(checkpointer: BaseCheckpointer, script: Sequence[ModelResponse], look: Any = look_up) -> Agent:
    """An agent that follows the script and keeps its conversations in ``checkpointer``."""
    return Agent(
        model=ScriptedModel(script), tools=[look], checkpointer=checkpointer, max_iterations=50, context_window=100_000
    )
