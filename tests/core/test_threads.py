"""Threads of our own: a backend that fills the default executor does not stop a near tier."""

from __future__ import annotations

import asyncio
import os
import threading
from contextvars import ContextVar

from locus.core.messages import Message
from locus.core.state import AgentState

from locus_tiered import DirectoryCheckpointer
from locus_tiered.core.threads import in_thread, threads
from tests.laws.parts import latest, state


async def test_a_full_default_executor_stops_neither_disks_nor_large_states(tmp_path):
    release = threading.Event()
    stuck = [asyncio.create_task(asyncio.to_thread(release.wait)) for _ in range(64)]
    try:
        await asyncio.sleep(0)
        store = DirectoryCheckpointer(tmp_path)
        async with asyncio.timeout(30):
            await store.save(state(1), "t")
            assert await latest(store) == 1
            large = AgentState(messages=tuple(Message.user("x" * 1000) for _ in range(500)))
            await store.save(large, "t")
            assert await store.load("t") == large
    finally:
        release.set()
        await asyncio.gather(*stuck)


async def test_context_variables_reach_the_thread():
    who: ContextVar[str] = ContextVar("who")
    who.set("me")
    assert await in_thread(who.get) == "me"
    assert await in_thread(lambda a, b=0: a + b, 1, b=2) == 3


def test_a_forked_process_gets_threads_of_its_own(monkeypatch):
    mine = threads()
    assert threads() is mine
    monkeypatch.setattr(os, "getpid", lambda: -1)
    assert threads() is not mine
