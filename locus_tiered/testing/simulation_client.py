"""A client of a simulated process: it saves, reads and deletes, and has every answer judged."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable
from random import Random

from locus_tiered.core.operations import Save
from locus_tiered.testing.simulation_history import state_of
from locus_tiered.testing.simulation_process import MOST, NAMED, TURNS, Process, World

__all__ = ["Client", "read_everything"]


class Client:
    """Somebody in a process who works with it, one call after the other, and judges every answer."""

    def __init__(self, world: World, process: Process, number: int, *, hasty: bool = True) -> None:
        self._world, self._process, self._hasty = world, process, hasty
        self._random = Random(f"client/{process.name}/{number}/{world.setup.seed}")
        self._name = f"{process.name}#{number}"
        self._looked: dict[tuple[str, str | None], int] = {}

    async def run(self) -> None:
        for _ in range(self._world.setup.steps):
            await self._process.alive.wait()
            if self._world.is_broken:
                return
            await asyncio.sleep(self._random.choice((0, 0.01, 0.2, 1.0, 3.0)))
            await self._process.alive.wait()
            await self._step()

    async def _step(self) -> None:
        random = self._random
        thread = random.choice(TURNS)
        named, name = random.choice(NAMED), self._some_name()
        what = random.choices(
            ("turn", "save", "load", "name", "load name", "list", "exists", "unname", "delete", "threads", "by id"),
            (3, 3, 5, 4, 4, 3, 2, 2, 0.7, 0.7, 4),
        )[0]
        if what == "turn":
            await self._turn(thread)
        elif what == "save":
            await self.load(thread)
            await self.save(thread)
        elif what == "load":
            await self.load(random.choice((thread, named)))
        elif what == "name":
            if self._world.setup.jumps:
                await self.load(named, name)
            await self.save(named, name)
        elif what == "load name":
            await self.load(named, name)
        elif what == "list":
            await self.list(random.choice((thread, named)))
        elif what == "exists":
            await self.exists(named, name)
        elif what == "unname":
            await self.delete(named, name)
        elif what == "delete":
            await self.delete(random.choice((thread, named)))
        elif what == "threads":
            await self.threads()
        else:
            known = [version.id for version in self._world.history.of(thread)]
            if known:
                await self.load(thread, random.choice(known[-8:]))

    def _some_name(self) -> str:
        """Mostly one of this process's own names; sometimes one that both use."""
        own = self._random.random() < 0.85
        return f"{self._process.name if own else 'both'}-{self._random.choice(('draft', 'plan'))}"

    async def _turn(self, thread: str) -> None:
        """As an agent does: load, save after every step, save the end, delete the steps."""
        life = self._process.life
        if not await self.load(thread):
            return
        turn: list[str] = []
        for _ in range(self._random.randint(1, 3)):
            seed = f"{self._world.setup.seed} {self._world.marks} {self._name}"
            turn.append(hashlib.blake2b(seed.encode(), digest_size=16).hexdigest())
            if not await self.save(thread, turn[-1], turn) or self._process.life != life:
                return
        if not await self.save(thread):
            return
        for name in turn:
            if self._process.life != life:
                return
            await self.delete(thread, name)

    # -- single calls --------------------------------------------------------------------------------

    async def _do(self, what: str, work: Callable[[], Awaitable[list[str]]]) -> bool:
        hasty = self._hasty and self._random.random() < 0.03
        patience = self._random.uniform(0.0, 0.2) if hasty else 60.0
        problems = await self._process.call(work, patience)
        self._world.seen[what.split()[0]] += 1
        if problems is None:
            self._world.note(f"{self._name} {what}: not answered")
            return False
        self._world.seen["answered"] += 1
        lost = [name for site in self._world.sites for names in site.lost.values() for name in names]
        for problem in problems:
            # Only who has the id finds what an index has lost, and no comparison can delete it.
            if not (problem.startswith("RESURRECTED") and any(name in problem for name in lost)):
                self._world.problem(f"{self._name} {what}: {problem}")
        return True

    async def save(self, thread: str, name: str | None = None, turn: list[str] | None = None) -> bool:
        world, process, stack = self._world, self._process, self._process.stack
        reader, listed = process.reader, list(turn or ())
        mark = world.next_mark()

        async def save() -> list[str]:
            operation = Save(thread, state_of(mark, listed), name, {"mark": mark}, None, name in listed)
            frozen = await stack.freeze(operation)
            checkpoint = frozen.checkpoint
            assert checkpoint is not None and checkpoint.stamp is not None
            stamp, looked = checkpoint.stamp, None
            if world.setup.jumps:
                looked = self._looked.get((thread, None), 0), self._looked.get((thread, name), 0)
            version = world.history.begin_save(thread, checkpoint.id, stamp, reader, mark, listed, looked)
            world.note(f"{self._name} save {thread}/{checkpoint.id} mark {mark} begins, stamp {checkpoint.stamp}")
            await stack.handle(frozen)
            world.history.done(version)
            world.note(f"{self._name} save mark {mark} done")
            return []

        return await self._do(f"save {thread} mark {mark}", save)

    async def delete(self, thread: str, name: str | None = None) -> bool:
        world, process, stack = self._world, self._process, self._process.stack
        reader = process.reader

        async def delete() -> list[str]:
            removal = world.history.begin_delete(thread, name, reader)
            world.note(f"{self._name} delete {thread}/{name} begins")
            await stack.delete(thread, name)
            world.history.done(removal)
            world.note(f"{self._name} delete {thread}/{name} done")
            return []

        return await self._do(f"delete {thread}/{name}", delete)

    async def load(self, thread: str, name: str | None = None) -> bool:
        world, stack, reader = self._world, self._process.stack, self._process.reader
        began, weak = world.history.now(), world.weak(thread)

        async def load() -> list[str]:
            found = await stack.load(thread, name)
            self._looked[thread, None] = self._looked[thread, name] = began
            world.note(f"{self._name} load {thread}/{name}: {found and found.total_tokens_used}")
            return world.history.loaded(reader, thread, name, began, found, weak)

        return await self._do(f"load {thread}/{name}", load)

    async def list(self, thread: str) -> bool:
        world, stack, reader = self._world, self._process.stack, self._process.reader
        began, weak = world.history.now(), world.weak(thread)
        if world.setup.evil == "careless" and not reader.strict:
            weak = {version.mark for version in world.history.of(thread)}  # its list lacks what its index lost

        async def listed() -> list[str]:
            names = await stack.list_checkpoints(thread, MOST)
            world.note(f"{self._name} list {thread}: {names}")
            return world.history.listed(reader, thread, began, names, weak)

        return await self._do(f"list {thread}", listed)

    async def exists(self, thread: str, name: str) -> bool:
        world, stack, reader = self._world, self._process.stack, self._process.reader
        began, weak = world.history.now(), world.weak(thread)

        async def exists() -> list[str]:
            answer = await stack.exists(thread, name)
            world.note(f"{self._name} exists {thread}/{name}: {answer}")
            return world.history.exists(reader, thread, name, began, answer, weak)

        return await self._do(f"exists {thread}/{name}", exists)

    async def threads(self) -> bool:
        world, stack, reader = self._world, self._process.stack, self._process.reader
        began = world.history.now()
        weak = {mark for thread in world.history.names() for mark in world.weak(thread)}

        async def threads() -> list[str]:
            return world.history.threads(reader, began, await stack.list_threads(MOST), weak)

        return await self._do("threads", threads)


async def read_everything(process: Process) -> None:
    """Read every thread in every way; nothing may fail now."""
    client = Client(process.world, process, 9, hasty=False)
    for thread in process.world.history.names():
        before = process.world.seen["answered"]
        await client.load(thread)
        await client.list(thread)
        names = {version.id for version in process.world.history.of(thread)}
        for name in sorted(names):
            await client.load(thread, name)
            await client.exists(thread, name)
        missing = before + 2 + 2 * len(names) - process.world.seen["answered"]
        if missing:
            process.world.problem(f"NO PEACE: {missing} reads of {thread} failed though nothing is wrong any more")
    await client.threads()
