"""What the state machine's rules stand on: event loops, handles on the checkpointer, and the comparison.

:class:`Driver` owns one example: it asks the factory for a checkpointer, runs coroutines in a loop that it
can close and open again, keeps the model, and compares the two. It knows no rule; those are in
``machine_rules`` and ``machine_optional``.
"""

from __future__ import annotations

import asyncio
import inspect
import sys
from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeVar

from hypothesis.stateful import RuleBasedStateMachine
from hypothesis.strategies import SearchStrategy
from locus.core.state import AgentState
from locus.memory.checkpointer import BaseCheckpointer

from locus_tiered.testing.model import DictionaryModel, brief, difference

__all__ = ["Driver", "Forgivable", "Loops", "Pair", "Plan"]

T = TypeVar("T")

Loops = Literal["kept", "closed", "abandoned"]
Forgivable = Literal[
    "blind saves",
    "delete answers",
    "emptied threads",
    "ids elsewhere",
    "patterns",
    "row order",
    "undeclared operations",
]

_GONE = 4
"""How many of a thread's last deleted ids are looked for after every step."""


@dataclass(frozen=True, slots=True)
class Pair:
    """Two handles on one store, as two processes would have, and what to do when the example is over.

    ``second=None``: one handle, with a ``cleanup``.
    """

    first: BaseCheckpointer
    second: BaseCheckpointer | None = None
    cleanup: Callable[[], object] | None = None
    """Called (and awaited, if it answers an awaitable) after both were closed."""


Factory = Callable[[], "BaseCheckpointer | Pair | Awaitable[BaseCheckpointer] | Awaitable[Pair]"]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The arguments of ``checkpointer_machine``, which documents them."""

    factory: Factory
    thread_ids: SearchStrategy[list[str]]
    checkpoint_ids: SearchStrategy[list[str]]
    states: SearchStrategy[AgentState]
    metadata: SearchStrategy[dict[str, Any]]
    loops: Loops
    bounded: bool
    refusals: tuple[type[Exception], ...]
    forgives: Collection[Forgivable]
    time_limit: float


class Driver(RuleBasedStateMachine):
    """One example: a checkpointer, its model, and a loop to run in."""

    plan: ClassVar[Plan]

    def __init__(self) -> None:
        super().__init__()
        self.model = DictionaryModel()
        self.known: set[str] = set()
        """Every thread of this example, whether or not it was saved."""
        self.watchful = True
        """Whether everything is compared after every step; if not, only when a rule looks, and at the end."""
        self._complaints: list[str] = []
        self._unsure: set[tuple[int, str, str]] = set()
        self._runner = asyncio.Runner()
        try:
            self._pair = self.run(self._build())
        except BaseException:
            # Hypothesis tears down only what was made.
            self._runner.close()
            raise
        self.handles = [handle for handle in (self._pair.first, self._pair.second) if handle is not None]

    async def _build(self) -> Pair:
        built = self.plan.factory()
        made = await built if inspect.isawaitable(built) else built
        pair = made if isinstance(made, Pair) else Pair(made)
        if self.plan.bounded and pair.second is not None:
            raise ValueError("bounded=True takes single checkpointers: two handles would each forget on their own")
        return pair

    # -- loops -------------------------------------------------------------------------------------

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run ``work`` in the current loop. More than the plan's ``time_limit`` is a failure, not a wait."""
        self._runner.get_loop().set_exception_handler(self._complain)

        async def limited() -> T:
            try:
                async with asyncio.timeout(self.plan.time_limit) as limit:
                    return await work
            except TimeoutError:
                if not limit.expired():
                    raise
                raise AssertionError(f"no answer within {self.plan.time_limit} s") from None

        return self._runner.run(limited())

    def _complain(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        self._complaints.append(f"{context.get('message')}: {context.get('exception')!r}")

    async def close_all(self) -> None:
        """``close()`` on every handle, twice: it is idempotent."""
        for handle in self.handles:
            await handle.close()
            await handle.close()

    def change_loop(self) -> None:
        """Leave the loop for good and go on in another."""
        self._runner.close()
        self._runner = asyncio.Runner()

    def teardown(self) -> None:
        """Compare once more unless the example failed already; close everything."""
        try:
            if sys.exc_info()[0] is None:
                self.run(self.compare())
        finally:
            try:
                self.run(self._leave())
            finally:
                self._runner.close()

    async def _leave(self) -> None:
        try:
            await self.close_all()
        finally:
            if self._pair.cleanup is not None:
                left = self._pair.cleanup()
                if inspect.isawaitable(left):
                    await left

    # -- two handles -------------------------------------------------------------------------------

    def forgives(self, what: Forgivable) -> bool:
        """Whether the plan says not to check this."""
        return what in self.plan.forgives

    async def look_first(self, handle: BaseCheckpointer, thread: str) -> None:
        """Let a handle see a thread before it changes it, where blind changes are forgiven."""
        if len(self.handles) > 1 and self.forgives("blind saves"):
            await handle.load(thread)

    def touched(self, by: BaseCheckpointer, thread: str, names: Iterable[str]) -> None:
        """Note that one handle changed these checkpoints, which the other may not have learned."""
        for name in names:
            for number, handle in enumerate(self.handles):
                (self._unsure.discard if handle is by else self._unsure.add)((number, thread, name))

    def sure(self, handle: BaseCheckpointer, thread: str, name: str) -> bool:
        """Whether this handle must answer rightly about this id."""
        number = next(number for number, each in enumerate(self.handles) if each is handle)
        return not self.forgives("ids elsewhere") or (number, thread, name) not in self._unsure

    # -- comparison --------------------------------------------------------------------------------

    def same(self, what: str, got: object, want: object) -> None:
        """Fail unless both are equal, saying how they differ."""
        if got != want:
            raise AssertionError(f"{what}:\n{difference(got, want)}")

    async def settle(self, handle: BaseCheckpointer, *threads: str) -> None:
        """Bounded stores only: let the model forget what was evicted, which must leave the order intact."""
        if not self.plan.bounded:
            return
        for thread in threads or sorted(self.known):
            listed, saved = await handle.list_checkpoints(thread, 1_000), self.model.ids(thread)
            present = set(listed)
            self.same(f"the ids left in {brief(thread)}", listed, [name for name in saved if name in present])
            self.model.retain(thread, listed)

    async def compare(self) -> None:
        """Every thread by every handle: list, latest, every checkpoint, and that what was deleted is gone."""
        for number, handle in enumerate(self.handles):
            await self.settle(handle)
            for thread in sorted(self.known):
                await self._compare_thread(handle, thread, f"handle {number}, thread {brief(thread)}")
        self.same("what the event loop had to complain of", self._complaints, [])

    async def _compare_thread(self, handle: BaseCheckpointer, thread: str, where: str) -> None:
        ids = self.model.ids(thread)
        self.same(f"{where}: the latest", await handle.load(thread), self.model.state(thread))
        self.same(f"{where}: the list", await handle.list_checkpoints(thread, len(ids) + 5), ids)
        self.same(f"{where}: the list of one", await handle.list_checkpoints(thread, 1), ids[:1])
        self.same(f"{where}: exists", await handle.exists(thread), bool(ids))
        for name in ids:
            if not self.sure(handle, thread, name):
                continue
            there = f"{where}, checkpoint {brief(name)}"
            self.same(there, await handle.load(thread, name), self.model.state(thread, name))
            self.same(f"{there}: exists", await handle.exists(thread, name), True)
        for name in list(self.model.deleted.get(thread, {}))[-_GONE:]:
            if not self.sure(handle, thread, name):
                continue
            there = f"{where}, deleted checkpoint {brief(name)}"
            self.same(there, await handle.load(thread, name), None)
            self.same(f"{there}: exists", await handle.exists(thread, name), False)
        self.same(
            f"{where}: the latest, after loading older ones",
            await handle.load(thread),
            self.model.state(thread),
        )
