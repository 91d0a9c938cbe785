"""``check``: is the stack written right, and with ``--live``: does every member answer?"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable
from dataclasses import fields
from typing import Annotated

import typer
from locus.core.messages import Message
from locus.core.state import AgentState
from rich.console import Console
from rich.text import Text

from locus_tiered.cli.answers import CheckAnswer, Member, Probe
from locus_tiered.cli.exits import Exit
from locus_tiered.cli.opening import Place, store_of
from locus_tiered.cli.options import AllowImport, Debug, Json, Stack, Timeout
from locus_tiered.cli.reading import hung
from locus_tiered.cli.session import Done, Session, run
from locus_tiered.cli.text import clean, one_line
from locus_tiered.cli.working import plain_table
from locus_tiered.core.checkpoint import Body, Checkpoint
from locus_tiered.core.errors import told_cause
from locus_tiered.core.ids import RESERVED
from locus_tiered.core.leaf import Leaf
from locus_tiered.core.operations import Delete, ListCheckpoints, Load, Save
from locus_tiered.core.stamp import StampClock
from locus_tiered.core.traits import ORDINARY, Traits

__all__ = ["check", "kind_of", "traits_told"]

_TOLD = {
    "prunes": "deletes older checkpoints by itself",
    "lists_at_most": "lists only so many ids of a thread",
    "loses_index_rows": "two processes may drop ids from each other's list",
    "none_is_unknown": "may say 'nothing there' in an outage (asked twice)",
    "shares_values": "hands out values that it keeps (copied)",
    "normalise": "changes states before it stores them",
    "digest_leaves_out": "may rewrite messages later",
    "partition": "keeps tenants apart",
    "one_at_a_time": "takes one call at a time",
    "one_loop_at_a_time": "serves one event loop at a time",
    "keeps_empty_threads": "keeps threads that are empty",
    "deletes_at_most": "deletes only so many checkpoints at once",
    "own_latest": "its own order of saves is coarse (stamps decide)",
}


def check(
    stack: Stack,
    live: Annotated[
        bool,
        typer.Option(
            "--live", help="Also try every member: save, load, list and delete in a thread reserved for that."
        ),
    ] = False,
    timeout: Timeout = 10.0,
    allow_import: AllowImport = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Validate a stack; with --live, try every member of it.

    Without --live no server is touched. With it, each member is asked to save, load, list and delete one small
    checkpoint in a reserved thread, which is gone afterwards. Exit code 3 when a member does not answer.
    """

    async def work(session: Session) -> Done:
        opened = session.open(stack, allow_import=allow_import)
        members = [_member(place) for place in opened.places]
        if live:
            with session.progress("trying members", len(members)) as bar:
                probes = await asyncio.gather(*(_probe(place, timeout, bar.step) for place in opened.places))
            members = [
                member.model_copy(
                    update={"probes": tried, "reachable": not any(probe.error is not None for probe in tried)}
                )
                for member, tried in zip(members, probes, strict=True)
            ]
        down = [member for member in members if member.reachable is False]
        answer = CheckAnswer(stack=opened.name, ok=not down, warnings=list(opened.warnings), members=members)
        code = Exit.UNREACHABLE if down else Exit.FOUND if opened.warnings else Exit.FINE
        return Done(answer, code, lambda console: _show(console, answer, live))

    run(Session("check", json=json, timeout=timeout), work, debug=debug)


def kind_of(place: Place) -> str:
    """The class of the backend or store at the bottom of a place."""
    bottom = store_of(place.layer)
    return type(bottom.backend).__name__ if isinstance(bottom, Leaf) else type(bottom).__name__


def traits_told(traits: Traits) -> list[str]:
    """What is peculiar, in words."""
    return [
        _TOLD[field.name]
        for field in fields(Traits)
        if field.name in _TOLD and getattr(traits, field.name) != getattr(ORDINARY, field.name)
    ]


def _member(place: Place) -> Member:
    lacks = [flag for flag, verdict in place.layer.explain().items() if not verdict]
    return Member(
        name=place.name,
        role=place.role,
        kind=kind_of(place),
        private=place.private,
        traits=traits_told(place.layer.traits),
        lacks=lacks,
    )


async def _probe(place: Place, timeout: float, step: Callable[[], None]) -> list[Probe]:
    thread = f"{RESERVED}check-{secrets.token_hex(8)}"
    state = AgentState(agent_id="locus-tiered-check", messages=(Message.user("Is anybody there?"),))
    layer, probes = place.layer, []
    stamp = StampClock().issue(thread)
    body = await Body.of(state)

    async def save() -> None:
        await layer.handle(Save(thread, None, stamp, None, Checkpoint(thread, stamp, stamp, {}, body)))

    async def load() -> None:
        found = await layer.handle(Load(thread, stamp))
        told = [] if found is None else [message.content for message in (await found.body.take()).messages]
        if told != [message.content for message in state.messages]:
            raise ValueError("what was loaded is not what was saved")

    async def listed() -> None:
        if stamp not in [entry.id for entry in await layer.handle(ListCheckpoints(thread, 10))]:
            raise ValueError("what was saved is not listed")

    async def delete() -> None:
        await layer.handle(Delete(thread))
        if await layer.handle(Load(thread, stamp)) is not None:
            raise ValueError("what was deleted is still there")

    steps: dict[str, Callable[[], Awaitable[None]]] = {"save": save, "load": load, "list": listed, "delete": delete}
    for name, operation in steps.items():
        began, error = time.perf_counter(), None
        try:
            async with asyncio.timeout(timeout):
                await operation()
        except TimeoutError:
            hung.add(place.name)
            error = f"no answer within {timeout:g} s"
        except Exception as failure:  # noqa: BLE001 - whatever it is, the member did not do it
            cause = failure.__cause__
            error = one_line(str(failure), 300) if cause is None else told_cause(cause)
        probes.append(Probe(operation=name, milliseconds=round((time.perf_counter() - began) * 1000, 3), error=error))
        if error is not None and name == "save":
            break
    step()
    return probes


def _show(console: Console, answer: CheckAnswer, live: bool) -> None:
    for warning in answer.warnings:
        console.print(Text(f"Warning: {clean(warning)}", "yellow"))
    columns: list[str | tuple[str, str]] = ["member", "role", "is"]
    columns += [(name, "right") for name in ("save", "load", "list", "delete")] if live else []
    table = plain_table(*columns)
    for member in answer.members:
        cells = [Text(clean(member.name)), Text(member.role), Text(member.kind)]
        if live:
            tried = {probe.operation: probe for probe in member.probes}
            for name in ("save", "load", "list", "delete"):
                probe = tried.get(name)
                cells.append(
                    Text("-")
                    if probe is None
                    else Text("FAILED", "bold red")
                    if probe.error is not None
                    else Text(f"{probe.milliseconds:.1f} ms")
                )
        table.add_row(*cells)
    console.print(table)
    for member in answer.members:
        for probe in member.probes:
            if probe.error is not None:
                console.print(Text(f"{clean(member.name)}, {probe.operation}: {clean(probe.error)}", "red"))
    for member in answer.members:
        lines = [*member.traits, *([f"lacks {', '.join(member.lacks)}"] if member.lacks else [])]
        if member.private:
            lines.insert(0, "the memory of one process: nothing to see from outside")
        if lines:
            console.print(Text(clean(member.name), "bold"))
            for line in lines:
                console.print(Text(f"  {clean(line)}"))
    if answer.ok:
        told = "and every member answers" if live else "; --live tries its members as well"
        console.print(Text(f"\nThe stack is well formed{' ' if live else ''}{told}.", "green"))
    else:
        down = [member.name for member in answer.members if member.reachable is False]
        console.print(Text(f"\nNot in order: {clean(', '.join(down))}.", "bold red"))
