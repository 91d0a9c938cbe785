"""``diff``: what differs between two checkpoints, two tiers, or two stacks."""

from __future__ import annotations

import json as json_module
from collections import Counter
from typing import Annotated, Any

import typer
from locus.core.messages import Message
from locus.core.state import AgentState
from rich.console import Console
from rich.text import Text

from locus_tiered.cli.answers import Change, DiffAnswer
from locus_tiered.cli.exits import Exit, Failure
from locus_tiered.cli.opening import Opened, Place
from locus_tiered.cli.options import AllowImport, Debug, Json, Stack, Thread, Timeout
from locus_tiered.cli.reading import Reader
from locus_tiered.cli.session import Done, Session, run
from locus_tiered.cli.show import message_lines
from locus_tiered.cli.states import changes_between, same_message, state_of
from locus_tiered.cli.text import clean, clean_id, one_line
from locus_tiered.cli.working import show_unreachable, with_unreachable
from locus_tiered.core.checkpoint import Entry
from locus_tiered.core.errors import shorten

__all__ = ["diff"]


def diff(
    stack: Stack,
    thread: Thread,
    before: Annotated[
        str | None, typer.Argument(metavar="[A]", show_default=False, help="A checkpoint (or newest~1).")
    ] = None,
    after: Annotated[
        str | None, typer.Argument(metavar="[B]", show_default=False, help="Another one. [newest]")
    ] = None,
    tiers: Annotated[
        tuple[str, str] | None,
        typer.Option("--tiers", metavar="TIER TIER", help="Compare the thread in two tiers instead."),
    ] = None,
    other: Annotated[
        str | None, typer.Option("--other", metavar="STACK", help="Compare the thread with that of another stack.")
    ] = None,
    full: Annotated[bool, typer.Option("--full", "-f", help="Every value in full length.")] = False,
    timeout: Timeout = 30.0,
    allow_import: AllowImport = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Show what differs between two checkpoints of a thread, two tiers, or two stacks.

    With --tiers or --other, the newest states are compared (or those of id A, in both), and which ids each side
    has. Exit code 1 when something differs.
    """

    async def work(session: Session) -> Done:
        if (tiers is not None and other is not None) or (before is None and tiers is None and other is None):
            raise Failure("say what to compare", Exit.USAGE, hint="two ids, or --tiers T1 T2, or --other STACK")
        if after is not None and (tiers is not None or other is not None):
            raise Failure("two ids cannot be compared in two places at once", Exit.USAGE, hint="give one id")
        reader = session.reader(stack, allow_import=allow_import)
        sides: list[tuple[Reader, Entry | None]]
        if tiers is None and other is None:
            entries = [await reader.find(thread, before), await reader.find(thread, after)]
            sides = [(reader, entry) for entry in entries]
            names = [entry.id for entry in entries]
            sets: tuple[list[str], list[str], list[str]] = ([], [], [])
        else:
            readers = _two(session, reader, tiers, other, allow_import)
            sides = [(each, await _found(each, thread, before)) for each in readers]
            names = [each.name for each in readers]
            sets = await _sets(readers, thread)
        states = [await _state(each, thread, entry) for each, entry in sides]
        changes = [Change(path=path, before=one, after=two) for path, one, two in changes_between(*states)]
        same = not changes and not any(sets)
        unreachable = {**sides[0][0].unreachable, **sides[1][0].unreachable}
        answer = DiffAnswer(
            stack=reader.name,
            thread=thread,
            before=names[0],
            after=names[1],
            same=same,
            changes=changes,
            only_before=sets[0],
            only_after=sets[1],
            other_content=sets[2],
            unreachable=unreachable,
        )
        code = with_unreachable(Exit.FINE if same else Exit.FOUND, unreachable)
        return Done(answer, code, lambda console: _show(console, answer, states, full))

    run(Session("diff", json=json, timeout=timeout), work, debug=debug)


def _two(
    session: Session, reader: Reader, tiers: tuple[str, str] | None, other: str | None, allow_import: bool
) -> list[Reader]:
    if other is not None:
        return [reader, session.reader(other, allow_import=allow_import)]
    assert tiers is not None
    return [_only(reader, _place(reader, name), session.timeout) for name in tiers]


def _place(reader: Reader, name: str) -> Place:
    for place in reader.places:
        if place.name == name:
            if place.private and place.role == "near":
                raise Failure(
                    f"tier {name!r} is the memory of one process: it cannot be seen from here", Exit.INCAPABLE
                )
            return place
    names = ", ".join(place.name for place in reader.places)
    raise Failure(f"there is no tier {name!r}", Exit.USAGE, hint=f"there are {names}")


def _only(reader: Reader, place: Place, timeout: float) -> Reader:
    one = Reader(Opened(place.name, place.layer), timeout=timeout)
    one.places = one.truth = [Place(place.name, place.layer, "home", place.private)]
    return one


async def _found(reader: Reader, thread: str, wanted: str | None) -> Entry | None:
    if not await reader.entries(thread):
        return None
    return await reader.find(thread, wanted)


async def _state(reader: Reader, thread: str, entry: Entry | None) -> AgentState:
    """The state; an empty one where the thread is not there at all."""
    if entry is None:
        return AgentState.model_construct()
    found = await reader.load(thread, entry)
    if found is None:
        raise Failure(f"checkpoint {shorten(entry.id)} is listed but cannot be loaded", Exit.FOUND)
    return await state_of(found)


async def _sets(readers: list[Reader], thread: str) -> tuple[list[str], list[str], list[str]]:
    one, two = [{entry.id: entry.stamp for entry in await reader.entries(thread)} for reader in readers]
    both = [name for name in one if name in two]
    return (
        [name for name in one if name not in two],
        [name for name in two if name not in one],
        [name for name in both if one[name] != two[name] and None not in (one[name], two[name])],
    )


def _value(value: Any, full: bool) -> str:
    if value is None:
        return "nothing"
    text = value if isinstance(value, str) else json_module.dumps(value, ensure_ascii=False)
    return clean(text) if full else one_line(text, 200)


def _show(console: Console, answer: DiffAnswer, states: list[AgentState], full: bool) -> None:
    console.print(Text(f"--- {clean_id(answer.before)}", "red"), soft_wrap=True)
    console.print(Text(f"+++ {clean_id(answer.after)}", "green"), soft_wrap=True)
    for title, ids in (
        ("only in the first", answer.only_before),
        ("only in the second", answer.only_after),
        ("saved again since", answer.other_content),
    ):
        if ids:
            shown = ids if full else ids[:10]
            more = f"\n  … {len(ids) - len(shown)} more (--full)" if len(ids) > len(shown) else ""
            console.print(Text(f"{title}:\n  " + "\n  ".join(map(clean_id, shown)) + more))
    same = _common(states)
    old, new = (state.messages[same:] if isinstance(state.messages, tuple) else () for state in states)
    if old or new:
        console.print(Text(f"{same} messages are the same; then", "dim"))
    for mark, messages in (("-", old), ("+", new)):
        for message in messages:
            lines = message_lines(message, full=full).plain.split("\n")
            style = "red" if mark == "-" else "green"
            console.print(Text("\n".join(f"{mark} {line}" for line in lines), style))
    within: Counter[str] = Counter()
    for change in answer.changes:
        field = change.path.partition("[")[0]
        if field == "messages" and "[" in change.path:
            continue
        if not full and "[" in change.path:
            within[field] += 1
            continue
        console.print(Text(f"{clean(change.path)}: {_value(change.before, full)} -> {_value(change.after, full)}"))
    for field, count in within.items():
        console.print(Text(f"{clean(field)}: {count} values within (--full)", "dim"))
    if answer.same:
        console.print("No difference.")
    show_unreachable(console, answer.unreachable)


def _common(states: list[AgentState]) -> int:
    pairs: list[tuple[Message, Message]] = list(zip(*(state.messages for state in states), strict=False))
    return next((place for place, pair in enumerate(pairs) if not same_message(*pair)), len(pairs))
