"""Threads of our own, for disks and for large states.

The event loop's default executor is small (a few threads per processor) and belongs to everybody: boto3's calls run
there, and those that hang in a black hole fill it for as long as their client waits. What a near tier does must
not stand in that queue.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from functools import partial
from threading import Lock
from typing import ParamSpec, TypeVar

__all__ = ["in_thread", "threads"]

P = ParamSpec("P")
T = TypeVar("T")

_THREADS = 8
_lock = Lock()
_pools: dict[int, ThreadPoolExecutor] = {}  # by process: threads do not survive a fork


def threads() -> ThreadPoolExecutor:
    """The executor of this process; its threads start when they are needed."""
    process = os.getpid()
    pool = _pools.get(process)
    if pool is None:
        with _lock:
            pool = _pools.setdefault(process, ThreadPoolExecutor(_THREADS, thread_name_prefix="locus-tiered"))
    return pool


async def in_thread(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """``asyncio.to_thread`` on threads of our own."""
    call = partial(copy_context().run, work, *args, **kwargs)
    return await asyncio.get_running_loop().run_in_executor(threads(), call)
