"""``show``: one state, as a person reads it."""

from __future__ import annotations

import json as json_module
import time
from typing import Annotated

import typer
from locus.core.messages import Message, Role
from locus.core.state import AgentState
from rich.console import Console
from rich.text import Text

from locus_tiered.cli.answers import ShowAnswer
from locus_tiered.cli.exits import Exit, Failure
from locus_tiered.cli.options import AllowImport, Debug, Json, Stack, Thread, Timeout
from locus_tiered.cli.session import Done, Session, run
from locus_tiered.cli.states import saved_at, size_of, state_of, waits_for
from locus_tiered.cli.text import clean, clean_id, one_line, show_age, show_size, show_time
from locus_tiered.cli.working import show_unreachable, with_unreachable
from locus_tiered.core.errors import shorten

__all__ = ["message_lines", "show"]

_STYLES = {Role.USER: "bold cyan", Role.ASSISTANT: "bold green", Role.TOOL: "magenta", Role.SYSTEM: "dim"}
_LINES = 12


def show(
    stack: Stack,
    thread: Thread,
    checkpoint: Annotated[
        str | None,
        typer.Argument(
            metavar="[ID]", show_default=False, help="A checkpoint: its id or how it starts, or newest~1. [newest]"
        ),
    ] = None,
    full: Annotated[bool, typer.Option("--full", "-f", help="Every message in full length.")] = False,
    last: Annotated[int, typer.Option("--last", min=0, metavar="N", help="Only the last N messages. [0: all]")] = 0,
    timeout: Timeout = 30.0,
    allow_import: AllowImport = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Show a state: its conversation, its metadata, and what it waits for.

    Control characters in what users and tools have said are shown, not sent to the terminal.
    """

    async def work(session: Session) -> Done:
        reader = session.reader(stack, allow_import=allow_import)
        entry = await reader.find(thread, checkpoint)
        head = (await reader.entries(thread))[0]
        found = await reader.load(thread, entry)
        if found is None:
            raise Failure(
                f"checkpoint {shorten(entry.id)} of thread {shorten(thread)} is listed but cannot be loaded", Exit.FOUND
            )
        size, state = await size_of(found), await state_of(found)
        answer = ShowAnswer(
            stack=reader.name,
            thread=thread,
            checkpoint=entry.id,
            stamp=found.stamp,
            saved_at=saved_at(found, state),
            newest=entry.id == head.id,
            size=size,
            waits_for=waits_for(state),
            metadata=dict(found.metadata),
            state=state.to_checkpoint(),
            unreachable=reader.unreachable,
        )
        code = with_unreachable(Exit.FINE, reader.unreachable)
        return Done(answer, code, lambda console: _show(console, answer, state, full, last))

    run(Session("show", json=json, timeout=timeout), work, debug=debug)


def message_lines(message: Message, *, full: bool) -> Text:
    """One message: who, then what was said, called or answered."""
    who = message.role.value if message.name is None else f"{message.role.value} {message.name}"
    text = Text(f"{clean(who)}\n", _STYLES.get(message.role, ""))
    body: list[str] = []
    if message.content:
        body += clean(message.content).split("\n")
    for call in message.tool_calls:
        arguments = json_module.dumps(call.arguments, ensure_ascii=False)
        body.append(f"calls {clean(call.name)}({clean(arguments) if full else one_line(arguments, 200)})")
    cut = 0
    if not full:
        cut = max(0, len(body) - _LINES)
        body = [line if len(line) <= 1000 else f"{line[:1000]}… ({len(line):,} characters)" for line in body[:_LINES]]
    text.append("\n".join(f"  {line}" for line in body), "")
    if cut:
        text.append(f"\n  … {cut} more lines (--full)", "dim")
    return text


def _facts(state: AgentState) -> str:
    parts = [f"agent {state.agent_id}" if state.agent_id else "", f"iteration {state.iteration}"]
    parts += [f"{len(state.messages)} messages", f"{len(state.tool_executions)} tool calls"]
    parts += [f"{state.total_tokens_used:,} tokens"] if state.total_tokens_used else []
    parts += [f"{len(state.errors)} errors"] if state.errors else []
    return clean(", ".join(part for part in parts if part))


def _show(console: Console, answer: ShowAnswer, state: AgentState, full: bool, last: int) -> None:
    age = "" if answer.saved_at is None else f" ({show_age(time.time() - answer.saved_at)} ago)"
    console.print(Text(f"thread      {clean_id(answer.thread)}"), soft_wrap=True)
    newest = "  (the newest)" if answer.newest else ""
    console.print(Text(f"checkpoint  {clean_id(answer.checkpoint)}{newest}"), soft_wrap=True)
    console.print(f"saved at    {show_time(answer.saved_at)}{age}, {show_size(answer.size)}")
    console.print(Text(f"state       {_facts(state)}"))
    if answer.waits_for is not None:
        console.print(Text(f"waits for   {clean(answer.waits_for)}", "bold red"))
    for name, values in (("metadata", answer.metadata), ("in state", state.metadata)):
        if values:
            text = json_module.dumps(values, ensure_ascii=False, default=str)
            console.print(Text(f"{name:<12}{clean(text) if full else one_line(text, 400)}"))
    for error in state.errors:
        console.print(Text(f"error       {one_line(error, 400)}", "red"))
    messages = state.messages[-last:] if last else state.messages
    if len(messages) < len(state.messages):
        console.print(Text(f"\n… {len(state.messages) - len(messages)} earlier messages", "dim"))
    for message in messages:
        console.print()
        console.print(message_lines(message, full=full))
    show_unreachable(console, answer.unreachable)
