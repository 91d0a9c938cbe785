"""What it takes to start a server: free ports, files of wheels, waiting, saying what is missing."""

from __future__ import annotations

import importlib
import os
import random
import socket
import time
from collections.abc import Callable
from contextlib import ExitStack
from importlib import metadata
from pathlib import Path
from types import ModuleType

from locus_tiered.core.errors import LocusTieredError

HOST = "127.0.0.1"

# Below the range that Linux gives to outgoing connections, so that no client of ours takes a port between
# choice and start; and with room for a companion 10 000 above.
_PORTS = range(10_000, 22_000)


class ServiceError(LocusTieredError):
    """A server did not start, ended by itself, or was used when it was not there. Ends with its log."""


class ServiceMissing(ServiceError, ImportError):
    """A server or its client is not installed; the message says what to install."""


def wait_until(condition: Callable[[], bool], *, timeout: float = 10.0, what: str = "condition") -> None:
    """Ask every 10 ms until ``condition()`` holds. ``TimeoutError`` naming ``what`` after ``timeout`` s."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {timeout:g} s")
        time.sleep(0.01)


def alive(pid: int) -> bool:
    """Whether a process runs, or is paused. One that has died and was not yet buried does not count."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:  # no /proc on this system, or gone just now
        return not Path("/proc/self/stat").exists()
    return state != "Z"


def require(module: str, extras: str) -> ModuleType:
    """Import ``module``, or say which extras bring it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ServiceMissing(f"{module} is not installed; run: pip install 'locus-tiered[{extras}]'") from error


def wheel_file(distribution: str, name: str) -> Path:
    """The executable ``name`` that an installed distribution brought, asked of its own record of files.

    The last one in alphabetical order where it brought several.
    """
    hint = "run: pip install 'locus-tiered[services]'"
    try:
        files = metadata.distribution(distribution).files or []
    except metadata.PackageNotFoundError:
        raise ServiceMissing(f"{distribution} is not installed; {hint}") from None
    found = [Path(str(file.locate())).resolve() for file in files if file.name == name]
    found = [path for path in found if os.access(path, os.X_OK)]
    if not found:
        raise ServiceMissing(f"{distribution} is installed, but brought no {name!r} for this machine; {hint}")
    return max(found)


def free_ports(count: int, *, companion: int = 0) -> list[int]:
    """``count`` ports of 127.0.0.1 that are free now, and for each the port ``companion`` above it."""
    with ExitStack() as held:
        chosen: list[int] = []
        for port in random.SystemRandom().sample(_PORTS, len(_PORTS)):
            if len(chosen) == count:
                break
            if all(_bind(held, number) for number in {port, port + companion}):
                chosen.append(port)
        else:
            raise ServiceError(f"no {count} free ports between {_PORTS.start} and {_PORTS.stop}")
    return chosen


def _bind(held: ExitStack, port: int) -> bool:
    taken = held.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM))
    try:
        taken.bind((HOST, port))
    except OSError:
        return False
    return True
