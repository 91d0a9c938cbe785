"""What was measured, as a table and two stories, for 80 columns."""

from __future__ import annotations

import signal
from collections.abc import Iterable, Sequence

from rich import box
from rich.table import Table
from rich.text import Text

from locus_tiered.demo.crash import CrashStory
from locus_tiered.demo.outage import OutageStory
from locus_tiered.demo.sides import Side, TurnCost

__all__ = ["comparison", "crash_story", "outage_story", "verdict"]

_KINDS = ("PUT", "GET", "LIST", "DELETE")
_PART = 0.2  # ratios below it are shown as 1/n
_LABEL = 24
_WHERE = (
    "With ack=turn a finished turn is in S3 when the agent answers. With ack=journal it is on this "
    "machine's disk, and in S3 about a second later."
)


def _kilobytes(size: int) -> str:
    return f"{size / 1000:,.0f} kB"


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1000:,.0f} ms"


def _total(cost: TurnCost) -> str:
    return f"{cost.traffic.total}"


def comparison(sides: Sequence[Side], tool_calls: int) -> Table:
    """All sides, turn by turn."""
    turns = len(sides[0].turns)
    table = Table(
        title=f"{turns} turns of {tool_calls} tool calls, one thread, a local S3 server",
        title_justify="left",
        caption=f"{_kinds(sides[0])}\nbytes are those of bodies; traffic counts until S3 has the turn",
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
        table.add_row("S3 requests", *map(_total, costs))
        table.add_row("sent to S3", *(_kilobytes(cost.traffic.sent) for cost in costs))
        table.add_row("received from S3", *(_kilobytes(cost.traffic.received) for cost in costs))
        table.add_row("the agent waited", *(_milliseconds(cost.waited) for cost in costs))
    table.add_section()
    table.add_row(Text("two quick turns", "bold"))
    table.add_row("the second was lost", *(_lost(side) for side in sides))
    return table


def _kinds(side: Side) -> str:
    """What kinds of requests a side's last turn consisted of."""
    requests = side.turns[-1].traffic.requests
    kinds = [*_KINDS, *sorted(requests.keys() - set(_KINDS))]
    counted = ", ".join(f"{requests[kind]} {kind}" for kind in kinds if requests[kind])
    return f"{side.name}, turn {len(side.turns)}: {counted}"


def _lost(side: Side) -> Text:
    lost = sum(side.lost)
    return Text(f"{lost} of {len(side.lost)} times", "bold red" if lost else "bold green")


def verdict(sides: Sequence[Side]) -> str:
    """What each stack improves on the first side, and what it does not; a line each."""
    alone, *stacks = sides
    lines = []
    for stack in stacks:
        measures = {
            "requests": (sum(c.traffic.total for c in alone.turns), sum(c.traffic.total for c in stack.turns)),
            "bytes sent": (sum(c.traffic.sent for c in alone.turns), sum(c.traffic.sent for c in stack.turns)),
            "waiting": (sum(c.waited for c in alone.turns), sum(c.waited for c in stack.turns)),
        }
        told = [f"{name} {_ratio(before, after)}" for name, (before, after) in measures.items()]
        lines.append(f"{stack.name}: {', '.join(told)}; lost turns {sum(stack.lost)}, not {sum(alone.lost)}.")
    return "\n".join((*lines, _WHERE))


def _ratio(before: float, after: float) -> str:
    if not before:
        return "from nothing"
    ratio = after / before
    return f"{ratio:.2f} x" if ratio >= _PART else f"1/{1 / ratio:.0f}" if ratio else "none"


def outage_story(outage: OutageStory) -> Table:
    """What became of the turns that were taken while S3 was down."""
    table = _story("The S3 server is killed, the agents take their next turns")
    for side, error in outage.failed.items():
        table.add_row(side, Text(f"the turn failed: {error}", "red"))
    table.add_section()
    table.add_row(
        "ack=journal", f"{len(outage.waited)} turns; waited {' and '.join(map(_milliseconds, outage.waited))}"
    )
    table.add_row("pending then", f"{outage.rows} operation{'s' * (outage.rows != 1)}, {_kilobytes(outage.bytes)}")
    table.add_section()
    table.add_row("S3 is back", f"and has all of it {outage.sent_in:.1f} s later")
    found = Text("found", "bold green") if outage.complete else Text("lost", "bold red")
    table.add_row("the last answer there", found)
    return table


def _story(title: str) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, show_header=False)
    table.add_column("", no_wrap=True, width=_LABEL)
    table.add_column("", ratio=1)
    return table


def _numbers(numbers: Iterable[int]) -> str:
    """``1 to 6`` for a run of numbers; all of them otherwise."""
    listed = list(numbers)
    if not listed:
        return "none"
    if len(listed) > 2 and listed == list(range(listed[0], listed[-1] + 1)):
        return f"{listed[0]} to {listed[-1]}"
    return ", ".join(map(str, listed))


def crash_story(crash: CrashStory) -> Table:
    """The crash and what came after."""
    name = signal.Signals(crash.ended_by).name if crash.ended_by > 0 else f"exit code {-crash.ended_by}"
    table = _story("A process dies in the middle of a turn, another goes on (ack=turn)")
    table.add_row("ended by", f"{name}, while call {crash.killed_at} of {crash.tool_calls} was running")
    table.add_row(
        "S3 had of the thread", f"{crash.in_s3} checkpoint{'s' * (crash.in_s3 != 1)}; the journal has the rest"
    )
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
