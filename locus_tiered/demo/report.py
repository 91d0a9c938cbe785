"""What was measured, as a table and two stories, for 80 columns."""

from __future__ import annotations

import signal
from collections.abc import Iterable, Sequence

from rich import box
from rich.table import Table
from rich.text import Text

from locus_tiered.demo.crash import CrashStory
from locus_tiered.demo.sides import Side, TurnCost

__all__ = ["comparison", "story", "verdict"]

_KINDS = ("PUT", "GET", "LIST", "DELETE")
_SAME = 0.15  # a difference that is none


def _kilobytes(size: int) -> str:
    return f"{size / 1000:,.0f} kB"


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1000:,.0f} ms"


def _requests(cost: TurnCost) -> str:
    others = cost.traffic.total - sum(cost.traffic.requests[kind] for kind in _KINDS)
    kinds = [str(cost.traffic.requests[kind]) for kind in _KINDS] + ([str(others)] if others else [])
    return f"{cost.traffic.total}  ({' + '.join(kinds)})"


def comparison(sides: Sequence[Side], tool_calls: int) -> Table:
    """Both sides, turn by turn."""
    turns = len(sides[0].turns)
    table = Table(
        title=f"{turns} turns of {tool_calls} tool calls, one thread, a local S3 server",
        title_justify="left",
        caption="requests: PUT + GET + LIST + DELETE; bytes are those of the bodies",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    table.add_column("", ratio=1)
    for side in sides:
        table.add_column(side.name, justify="right", no_wrap=True)
    for number in range(turns):
        costs = [side.turns[number] for side in sides]
        table.add_section()
        table.add_row(Text(f"turn {number + 1}", "bold"))
        table.add_row("S3 requests", *map(_requests, costs))
        table.add_row("sent to S3", *(_kilobytes(cost.traffic.sent) for cost in costs))
        table.add_row("received from S3", *(_kilobytes(cost.traffic.received) for cost in costs))
        table.add_row("the agent waited", *(_milliseconds(cost.waited) for cost in costs))
    table.add_section()
    table.add_row(Text("two quick turns", "bold"))
    table.add_row("the second was lost", *(_lost(side) for side in sides))
    return table


def _lost(side: Side) -> Text:
    lost = sum(side.lost)
    return Text(f"{lost} of {len(side.lost)} times", "bold red" if lost else "bold green")


def verdict(sides: Sequence[Side]) -> str:
    """In one line: what the second side improves on the first, and what it does not."""
    alone, stack = ([*side.turns] for side in sides)
    measures = {
        "requests": (sum(c.traffic.total for c in alone), sum(c.traffic.total for c in stack)),
        "bytes sent": (sum(c.traffic.sent for c in alone), sum(c.traffic.sent for c in stack)),
        "bytes received": (sum(c.traffic.received for c in alone), sum(c.traffic.received for c in stack)),
        "time waited": (sum(c.waited for c in alone), sum(c.waited for c in stack)),
        "lost turns": (sum(sides[0].lost), sum(sides[1].lost)),
    }
    better: list[str] = []
    same: list[str] = []
    worse: list[str] = []
    for name, (before, after) in measures.items():
        shown = f"{name} ({after} instead of {before})" if name == "lost turns" else f"{name} ({_ratio(before, after)})"
        place = same if abs(after - before) <= _SAME * before else better if after < before else worse
        place.append(shown)
    parts = [
        f"{kind}: {', '.join(names)}."
        for kind, names in (("Better with the stack", better), ("The same", same), ("Worse", worse))
        if names
    ]
    return " ".join(parts) + " This stack writes through: every save and delete of a turn still goes to S3."


def _ratio(before: float, after: float) -> str:
    return f"{after / before:.2f} x" if before else "from nothing"


def _numbers(numbers: Iterable[int]) -> str:
    """``1 to 6`` for a run of numbers; all of them otherwise."""
    listed = list(numbers)
    if not listed:
        return "none"
    if len(listed) > 2 and listed == list(range(listed[0], listed[-1] + 1)):
        return f"{listed[0]} to {listed[-1]}"
    return ", ".join(map(str, listed))


def story(crash: CrashStory) -> Table:
    """The crash and what came after."""
    name = signal.Signals(crash.ended_by).name if crash.ended_by > 0 else f"exit code {-crash.ended_by}"
    table = Table(
        title="A process dies in the middle of a turn, another goes on",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        show_header=False,
    )
    table.add_column("", no_wrap=True)
    table.add_column("", ratio=1)
    table.add_row("ended by", f"{name}, while call {crash.killed_at} of {crash.tool_calls} was running")
    table.add_section()
    table.add_row("remembered, said", "\n".join(crash.conversation))
    table.add_row("remembered, results", f"calls {_numbers(crash.results)} of {crash.tool_calls}")
    table.add_row("loaded in", _milliseconds(crash.load_seconds))
    table.add_section()
    table.add_row("then called", f"calls {_numbers(crash.made_after)}")
    again = sorted(set(crash.results) & set(crash.made_after))
    table.add_row("called twice though done", _numbers(again))
    table.add_row("then answered", crash.answer)
    return table
