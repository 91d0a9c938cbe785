"""The rules of the state machine that every checkpointer must bear: saving, loading, deleting, agents, loops.

:class:`CoreRules` holds them; those of the optional operations are in ``machine_optional``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable, Iterator
from hashlib import blake2b
from typing import Any
from uuid import UUID

from hypothesis import strategies as st
from hypothesis.stateful import Bundle, initialize, invariant, multiple, precondition, rule
from locus.core.messages import Message
from locus.core.state import AgentState
from locus.memory.checkpointer import BaseCheckpointer

from locus_tiered.testing.machine_driver import Driver
from locus_tiered.testing.model import brief, scribble

__all__ = ["CoreRules", "handles", "ids", "places", "something_saved", "threads"]

ITERATIONS = "_locus_iteration_checkpoints"
"""Where the SDK's agents keep the ids of a turn's iteration saves."""

threads: Bundle[str] = Bundle("threads")
ids: Bundle[str] = Bundle("ids")
handles = st.integers(0, 1)
places = st.integers(0, 11)
something_saved = precondition(lambda machine: bool(machine.model.threads))
deletes_single = precondition(lambda machine: machine.handles[0].deletes_single_checkpoints)


def _planned(field: str) -> Any:
    """The strategy that the machine's plan has under this name."""
    return st.runner().flatmap(lambda machine: getattr(machine.plan, field))


def _made_up_ids() -> Iterator[str]:
    """Ids in the shape of ``uuid4().hex``, the same in every run."""
    number = 0
    while True:
        number += 1
        yield UUID(bytes=blake2b(b"%d" % number, digest_size=16).digest(), version=4).hex


async def _together(work: Iterable[Coroutine[Any, Any, Any]]) -> list[Any]:
    """All at once. Every one has ended before the first failure is raised: none goes on behind our back."""
    results = await asyncio.gather(*work, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results


class CoreRules(Driver):
    """Saving, loading, deleting, turns of agents, calls at once, closing and event loops."""

    def __init__(self) -> None:
        super().__init__()
        self._made_up = _made_up_ids()
        self._saves = 0

    def handle(self, number: int) -> BaseCheckpointer:
        """The first or the second handle; the only one where there is one."""
        return self.handles[number % len(self.handles)]

    def row(self, place: int) -> tuple[str, str]:
        """The thread and id of some existing checkpoint; only where there is one."""
        rows = self.model.rows()
        return rows[place % len(rows)]

    @initialize(target=threads, chosen=_planned("thread_ids"))
    def choose_threads(self, chosen: list[str]) -> Any:
        self.known.update(chosen)
        return multiple(*chosen)

    @initialize(target=ids, chosen=_planned("checkpoint_ids"))
    def choose_ids(self, chosen: list[str]) -> Any:
        return multiple(*chosen)

    @initialize(watchful=st.booleans())
    def choose_when_to_look(self, watchful: bool) -> None:
        self.watchful = watchful

    @invariant()
    def agrees_with_the_model(self) -> None:
        if self.watchful:
            self.run(self.compare())

    # -- saving and loading ------------------------------------------------------------------------

    async def _save(
        self,
        handle: BaseCheckpointer,
        thread: str,
        name: str | None,
        state: AgentState,
        metadata: dict[str, Any] | None = None,
    ) -> str | None:
        """Save and note it in the model; answers the id, or ``None`` where the store refused."""
        await self.look_first(handle, thread)
        before = self.model.ids(thread)
        self._saves += 1
        # No two saves are equal, so that a mix-up always shows. The copy shares what can be scribbled over.
        state = state.model_copy(update={"total_tokens_used": self._saves})
        try:
            if metadata is None:
                # As agents do: positional, and no metadata at all.
                saved = await handle.save(state, thread, name)
            else:
                saved = await handle.save(state=state, thread_id=thread, checkpoint_id=name, metadata=metadata)
        except self.plan.refusals:
            return None
        if name is None:
            assert isinstance(saved, str) and saved, f"save() answered {brief(saved)} for an id"
            assert saved not in before, f"save() made up {brief(saved)}, which thread {brief(thread)} had already"
        else:
            self.same("the id that save() answered", saved, name)
        self.model.save(thread, saved, state, metadata)
        self.touched(handle, thread, [saved])
        if self.plan.bounded:
            self.same(f"the newest of {brief(thread)} after a save", await handle.list_checkpoints(thread, 1), [saved])
        return saved

    @rule(
        handle=handles,
        thread=threads,
        state=_planned("states"),
        metadata=st.none() | _planned("metadata"),
        scribbled=st.booleans(),
    )
    def save(
        self, handle: int, thread: str, state: AgentState, metadata: dict[str, Any] | None, scribbled: bool
    ) -> None:
        self.run(self._save(self.handle(handle), thread, None, state, metadata))
        if scribbled:
            scribble(state)
            scribble(metadata)

    @rule(handle=handles, thread=threads, name=ids, state=_planned("states"), metadata=_planned("metadata"))
    def save_as(self, handle: int, thread: str, name: str, state: AgentState, metadata: dict[str, Any]) -> None:
        self.run(self._save(self.handle(handle), thread, name, state, metadata))

    @something_saved
    @rule(handle=handles, place=places, state=_planned("states"))
    def save_again(self, handle: int, place: int, state: AgentState) -> None:
        self.run(self._save(self.handle(handle), *self.row(place), state))

    @something_saved
    @rule(handle=handles, place=places, latest=st.booleans())
    def load_and_scribble(self, handle: int, place: int, latest: bool) -> None:
        async def step(checkpointer: BaseCheckpointer) -> None:
            thread, chosen = self.row(place)
            await self.settle(checkpointer, thread)
            name = None if latest or not self.sure(checkpointer, thread, chosen) else chosen
            for _ in range(2):
                loaded = await checkpointer.load(thread, name)
                self.same(f"load({brief(thread)}, {brief(name)})", loaded, self.model.state(thread, name))
                scribble(loaded)
            listed = await checkpointer.list_checkpoints(thread)
            self.same(f"the list of {brief(thread)}", listed, self.model.ids(thread)[:10])
            scribble(listed)

        self.run(step(self.handle(handle)))

    @rule(handle=handles, thread=threads, name=ids)
    def load_by_chosen_id(self, handle: int, thread: str, name: str) -> None:
        async def step(checkpointer: BaseCheckpointer) -> None:
            await self.settle(checkpointer, thread)
            if not self.sure(checkpointer, thread, name):
                return
            want = self.model.state(thread, name)
            self.same(f"load({brief(thread)}, {brief(name)})", await checkpointer.load(thread, name), want)
            found = await checkpointer.exists(thread, name)
            self.same(f"exists({brief(thread)}, {brief(name)})", found, want is not None)

        self.run(step(self.handle(handle)))

    # -- deleting ----------------------------------------------------------------------------------

    async def _delete(self, checkpointer: BaseCheckpointer, thread: str, name: str | None) -> None:
        await self.settle(checkpointer, thread)
        try:
            removed = await checkpointer.delete(thread, name)
        except NotImplementedError:
            # A backend may lack ``delete`` altogether, if it says so.
            if checkpointer.deletes_single_checkpoints:
                raise
            return
        self.touched(checkpointer, thread, self.model.ids(thread) if name is None else [name])
        there = self.model.delete(thread, name)
        if not self.forgives("delete answers"):
            self.same(f"delete({brief(thread)}, {brief(name)})", removed, there)

    @something_saved
    @deletes_single
    @rule(handle=handles, place=places)
    def delete_one(self, handle: int, place: int) -> None:
        self.run(self._delete(self.handle(handle), *self.row(place)))

    @deletes_single
    @rule(handle=handles, thread=threads, name=ids)
    def delete_by_chosen_id(self, handle: int, thread: str, name: str) -> None:
        self.run(self._delete(self.handle(handle), thread, name))

    @rule(handle=handles, thread=threads)
    def delete_thread(self, handle: int, thread: str) -> None:
        self.run(self._delete(self.handle(handle), thread, None))

    # -- agents ------------------------------------------------------------------------------------

    @rule(handle=handles, thread=threads, iterations=st.integers(0, 3), crashes=st.booleans())
    def agent_turn(self, handle: int, thread: str, iterations: int, crashes: bool) -> None:
        """One turn as the SDK's runtime makes it; a crash leaves its iteration saves to the next turn."""

        async def step(checkpointer: BaseCheckpointer) -> None:
            await self.settle(checkpointer, thread)
            state = await checkpointer.load(thread)
            self.same(f"the latest of {brief(thread)} as the turn starts", state, self.model.state(thread))
            state = (state or AgentState(run_id="run")).with_message(Message.user("go on"))
            for iteration in range(1, iterations + 1):
                state = state.with_iteration(iteration).with_message(Message.assistant("working"))
                name = None
                if checkpointer.deletes_single_checkpoints is True:
                    name = next(self._made_up)
                    state = state.with_metadata(ITERATIONS, [*(state.metadata.get(ITERATIONS) or []), name])
                await self._save(checkpointer, thread, name, state)
            if crashes:
                return
            metadata = {**state.metadata}
            superseded = metadata.pop(ITERATIONS, None) or []
            if await self._save(checkpointer, thread, None, state.model_copy(update={"metadata": metadata})):
                for name in superseded:
                    await self._delete(checkpointer, thread, name)

        self.run(step(self.handle(handle)))

    # -- calls at once -----------------------------------------------------------------------------

    @rule(chosen=st.lists(threads, min_size=2, max_size=3, unique=True), state=_planned("states"))
    def save_to_several_threads_at_once(self, chosen: list[str], state: AgentState) -> None:
        async def step() -> None:
            await _together(
                self._save(self.handle(number), thread, None, state.with_metadata("number", number))
                for number, thread in enumerate(chosen)
            )

        self.run(step())

    @rule(handle=handles, thread=threads, state=_planned("states"))
    def load_while_saving(self, handle: int, thread: str, state: AgentState) -> None:
        async def step(checkpointer: BaseCheckpointer) -> None:
            await self.settle(checkpointer, thread)
            before = self.model.state(thread)
            early, _, late = await _together(
                (
                    checkpointer.load(thread),
                    self._save(checkpointer, thread, None, state),
                    checkpointer.load(thread),
                )
            )
            allowed = [before, self.model.state(thread)]
            assert early in allowed, f"a load during a save answered neither the old latest nor the new: {brief(early)}"
            assert late in allowed, f"a load during a save answered neither the old latest nor the new: {brief(late)}"

        self.run(step(self.handle(handle)))

    @deletes_single
    @rule(handle=handles, thread=threads, name=ids, state=_planned("states"))
    def load_while_deleting(self, handle: int, thread: str, name: str, state: AgentState) -> None:
        """A read of what nobody has read yet, overtaken by its deletion, must not keep it alive."""

        async def step(checkpointer: BaseCheckpointer) -> None:
            if await self._save(checkpointer, thread, name, state) is None:
                return
            before = self.model.state(thread, name)
            early, _, late = await _together(
                (
                    checkpointer.load(thread, name),
                    self._delete(checkpointer, thread, name),
                    checkpointer.load(thread, name),
                )
            )
            assert early in (before, None), f"a load during a delete answered {brief(early)}"
            assert late in (before, None), f"a load during a delete answered {brief(late)}"
            self.same("a checkpoint read while it was deleted", await checkpointer.load(thread, name), None)

        self.run(step(self.handle(handle)))

    # -- closing and event loops -------------------------------------------------------------------

    @rule(closing=st.booleans(), moving=st.booleans())
    def pause(self, closing: bool, moving: bool) -> None:
        """Look at everything, after a ``close()`` or not, in this event loop or from now on in another."""
        moving = moving and self.plan.loops != "kept"
        if closing or (moving and self.plan.loops == "closed"):
            self.run(self.close_all())
        if moving:
            self.change_loop()
        self.run(self.compare())
