"""The life of one server process: start, answer, pause, die, come back, leave nothing behind.

:class:`Service` knows processes, ports and directories; its subclasses know how one server is started and how
it is asked whether it is there.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Self

from ._tools import ServiceError, alive, free_ports, wait_until

# Waits for the end of its standard input, which comes when this Python process dies however it dies.
_GUARD = 'read -r _; kill -9 "$1" 2>/dev/null; sleep 0.2; rm -rf "$2"'


class Service(ABC):
    """One server, running between ``__enter__`` and ``__exit__``.

    Nothing is started, chosen or created before ``__enter__``. A handle is for one thread at a time, and for
    one ``with``. All times are in seconds.
    """

    name: ClassVar[str]
    _port_count: ClassVar[int] = 1
    _companion: ClassVar[int] = 0  # each port needs the one this far above it as well
    _farewell: ClassVar[signal.Signals] = signal.SIGTERM
    _grace: ClassVar[float] = 5.0  # between the farewell and SIGKILL

    def __init__(self, *, timeout: float = 60.0) -> None:
        self._timeout = timeout
        self._directory: Path | None = None
        self._ports: list[int] = []
        self._process: subprocess.Popen[bytes] | None = None
        self._guard: subprocess.Popen[bytes] | None = None

    # What a server of its own kind says about itself

    @abstractmethod
    def _prepare(self) -> None:
        """Find the binaries, or raise :class:`ServiceMissing`; fill the fresh directory. Once."""

    @abstractmethod
    def _command(self) -> list[str]:
        """The command line, once the ports are known."""

    @abstractmethod
    def _why_not_ready(self) -> str | None:
        """Make one round trip; ``None`` when this very server answered, otherwise what happened instead."""

    def _complete(self) -> None:  # noqa: B027 - not every server needs it
        """What is done once, after the first start."""

    def _parent_directory(self) -> Path | None:
        """Where the directory is to be made; ``None`` for the usual place."""
        return None

    def _process_options(self) -> dict[str, Any]:
        """Further arguments for ``subprocess``."""
        return {}

    def _environment(self) -> dict[str, str]:
        """All that the server sees of the environment: nothing of ours configures it by accident."""
        own = str(self.directory)
        return {"PATH": os.environ.get("PATH", os.defpath), "HOME": own, "TMPDIR": own, "LC_ALL": "C"}

    def _helpers(self) -> list[int]:
        """The processes that the server started itself."""
        return []

    def _sweep(self) -> None:  # noqa: B027 - not every server needs it
        """Remove what a dead server left outside of its directory."""

    # What everybody sees

    @property
    def directory(self) -> Path:
        """The server's own directory: data and log. Removed by :meth:`stop`."""
        if self._directory is None:
            raise ServiceError(f"{self.name} was not started: use it in a with statement")
        return self._directory

    @property
    def port(self) -> int:
        """The port for clients, on 127.0.0.1. Unchanged by :meth:`restart`."""
        if not self._ports:
            raise ServiceError(f"{self.name} was not started: use it in a with statement")
        return self._ports[0]

    @property
    def pid(self) -> int:
        """The id of the server's process, or of the last one it had."""
        return self._started.pid

    @property
    def running(self) -> bool:
        """Whether the process lives. True while it is paused."""
        return self._process is not None and self._process.poll() is None

    def log_tail(self, lines: int = 20) -> str:
        """The last lines that the server wrote to its log; empty when there is none."""
        try:
            text = (self.directory / "server.log").read_text(errors="replace")
        except FileNotFoundError:
            return ""
        return "\n".join(text.splitlines()[-lines:])

    def pause(self) -> None:
        """Stop the clock of the server (SIGSTOP): connections stay open, nobody is answered.

        Returns when the process stands still. Pausing twice is pausing once.
        """
        self._must_run("pause")
        self._freeze()

    def resume(self) -> None:
        """Let a paused server go on (SIGCONT), also with what it was asked meanwhile."""
        self._must_run("resume")
        self._thaw()

    def kill(self) -> None:
        """End the server in the middle of whatever it does (SIGKILL). Its data stay: :meth:`restart` goes on.

        Returns when all of its processes are gone. No-op when it is dead already.
        """
        if self.running:
            helpers = self._freeze()
            for pid in helpers:
                _send(pid, signal.SIGKILL)
            self._started.kill()
            self._started.wait()
            wait_until(lambda: not any(alive(pid) for pid in helpers), what=f"end of the helpers of {self.name}")
        self._disarm()
        self._sweep()

    def restart(self) -> None:
        """End the server, politely if it still runs, and start it again with the same port and data.

        Returns when it answers. :class:`ServiceError` if it does not within the ``timeout`` it was made with.
        """
        if not self.directory.exists():
            raise ServiceError(f"{self.name} was stopped for good and cannot be restarted")
        self._end()
        self._launch()
        self._await_answer()

    def stop(self) -> None:
        """End the server, politely for some seconds, and remove its directory. Idempotent."""
        try:
            self._end()
        finally:
            if self._directory is not None:
                shutil.rmtree(self._directory, ignore_errors=True)

    def __enter__(self) -> Self:
        if self._directory is not None:
            raise ServiceError(f"this handle of {self.name} was used before: make a new one")
        self._directory = Path(tempfile.mkdtemp(prefix=f"locus-{self.name.lower()}-", dir=self._parent_directory()))
        try:
            self._prepare()
            self._start_on_free_ports()
            self._complete()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def __repr__(self) -> str:
        if self._process is None:
            return f"<{self.name}, not started>"
        return f"<{self.name} on port {self.port}, {'running' if self.running else 'not running'}>"

    # How

    @property
    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise ServiceError(f"{self.name} was not started: use it in a with statement")
        return self._process

    def _must_run(self, verb: str) -> None:
        if not self.running:
            raise ServiceError(self._with_log(f"cannot {verb} {self.name}: it does not run"))

    def _with_log(self, message: str) -> str:
        return f"{message}\n--- the end of its log ---\n{self.log_tail() or '(empty)'}"

    def _start_on_free_ports(self, attempts: int = 5) -> None:
        """Somebody may take a port between our choice and the server's start: then choose again."""
        for left in reversed(range(attempts)):
            self._ports = free_ports(self._port_count, companion=self._companion)
            self._launch()
            try:
                self._await_answer()
                return
            except ServiceError:
                if not left or self.running or "address already in use" not in self.log_tail().lower():
                    raise
                self._end()

    def _launch(self) -> None:
        with (self.directory / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                self._command(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.directory,
                env=self._environment(),
                start_new_session=True,  # an interrupt at the terminal is for us: we end the server
                **self._process_options(),
            )
        self._guard = subprocess.Popen(
            ["/bin/sh", "-c", _GUARD, "guard", str(self.pid), str(self.directory)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def _await_answer(self) -> None:
        deadline = time.monotonic() + self._timeout
        while True:
            reason = self._why_not_ready()
            if not self.running:
                code = self._started.returncode
                raise ServiceError(self._with_log(f"{self.name} ended by itself, exit code {code}"))
            if reason is None:
                return
            if time.monotonic() > deadline:
                raise ServiceError(self._with_log(f"{self.name} did not answer within {self._timeout:g} s: {reason}"))
            time.sleep(0.01)

    def _freeze(self) -> list[int]:
        """Stop the server, then its helpers: it can start no further one. Returns these."""
        _send(self.pid, signal.SIGSTOP)
        if sys.platform != "darwin":
            os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
        helpers = self._helpers()
        for pid in helpers:
            _send(pid, signal.SIGSTOP)
        return helpers

    def _thaw(self) -> None:
        for pid in [*self._helpers(), self.pid]:
            _send(pid, signal.SIGCONT)

    def _end(self) -> None:
        if self.running and self._farewell is not signal.SIGKILL:
            self._thaw()  # one that is paused would not hear the farewell
            self._started.send_signal(self._farewell)
            try:
                self._started.wait(self._grace)
            except subprocess.TimeoutExpired:
                pass
        self.kill()

    def _disarm(self) -> None:
        if self._guard is not None and self._guard.stdin is not None:
            self._guard.kill()
            self._guard.wait()
            self._guard.stdin.close()
        self._guard = None


def _send(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:  # it ended by itself just now
        pass
