"""A TCP proxy that fails on command, in front of a real server: :class:`FaultProxy`.

::

    with valkey() as server, FaultProxy(server.port) as proxy:
        checkpointer = server.checkpointer(url=f"redis://127.0.0.1:{proxy.port}/0")
        proxy.cut_after_request(containing=b"thread-7")   # written, and the caller sees an error
        ...
        assert proxy.counts().verbs["SET"] == 1

What it promises:

- It lives on a thread and in an event loop of its own: no stall of the test's loop delays it, and every
  method may be called from any thread, with or without a loop. A method that switches has taken effect when
  it returns, within milliseconds.
- What it lets through arrives byte for byte, in order, with ends of streams and resets as the peers made them.
- After the ``with`` no thread and no socket is left. Everything is on 127.0.0.1, on one port throughout.

What it does not: it neither delays nor damages what the client sends, knows nothing of TLS, and cannot refuse
a connection because the server does: a server that is down is a reset connection behind a proxy. A connection
exists for the client, and is counted, as soon as the kernel and then the proxy took it.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Literal, Self

from locus_tiered.testing.proxy_wire import HOST, Counts, RequestParser, Tally, bind, close, is_interim
from locus_tiered.testing.services import ServiceError
from locus_tiered.testing.services._tools import free_ports

__all__ = ["Counts", "FaultProxy", "Mode"]

Mode = Literal["pass_through", "refuse", "reset", "black_hole", "half_open", "slow", "cut_after_request"]
"""What a proxy does at present, named like the method that made it so."""

_SILENT: tuple[Mode, ...] = ("black_hole", "half_open")
_CHUNK = 65_536
_SET_UP = frozenset({"AUTH", "CLIENT", "HELLO", "SELECT"})  # said by Redis clients before what they are asked to say


class FaultProxy:
    """A proxy for ``target_port`` of 127.0.0.1, working between ``__enter__`` and ``__exit__``. Times in seconds.

    It begins in :meth:`pass_through`. The methods that switch say what becomes of connections that are open.
    """

    def __init__(self, target_port: int) -> None:
        self._target = target_port
        self._port = 0
        self._thread: threading.Thread | None = None
        self._tally = Tally()
        # All of the following belongs to the proxy's own thread.
        self._loop: asyncio.AbstractEventLoop
        self._socket: socket.socket
        self._stopping: asyncio.Event
        self._switched: asyncio.Event
        self._switching: asyncio.Lock
        self._mode: Mode = "pass_through"
        self._delay = 0.0
        self._cut: _Cut | None = None
        self._connections: set[_Connection] = set()

    # What everybody sees

    @property
    def port(self) -> int:
        """The port for clients, on 127.0.0.1. The same through all modes."""
        if not self._port:
            raise ServiceError("the proxy was not started: use it in a with statement")
        return self._port

    @property
    def mode(self) -> Mode:
        """What it does at present. :meth:`cut_after_request` ends by itself, in :meth:`pass_through`."""
        return self._mode

    def pass_through(self) -> None:
        """Do what a wire does. What :meth:`black_hole` and :meth:`slow` held back goes on its way."""
        self._order("pass_through")

    def refuse(self) -> None:
        """As if the server's process were gone: open connections are reset, new ones refused."""
        self._order("refuse")

    def reset(self) -> None:
        """Reset (RST) every open connection now, and every new one when it says its first word, or after 0.1 s."""
        self._order("reset")

    def black_hole(self) -> None:
        """Accept connections, read nothing, send nothing, hide that anybody hung up.

        As when packets are dropped and will be sent again: nothing is lost, the next mode goes on with it.
        """
        self._order("black_hole")

    def half_open(self) -> None:
        """Send on what clients say, and swallow every answer, the end of the stream included.

        A connection that missed an answer is useless: it is reset when a mode follows that speaks.
        """
        self._order("half_open")

    def slow(self, seconds: float) -> None:
        """Let every answer begin ``seconds`` late. Once begun, the rest of it follows at full speed."""
        if seconds < 0:
            raise ValueError(f"cannot answer {-seconds:g} s early")
        self._order("slow", delay=seconds)

    def cut_after_request(self, n: int = 1, *, containing: bytes = b"", skip: int = 0) -> None:
        """Cut off the next ``n`` requests: the server gets all of each and does it, the client gets a reset.

        The reset comes when the server begins to answer. Before, ``skip`` requests pass, and afterwards all:
        one save is often several requests, and a failure after each of them is another failure.
        Only requests are meant that have ``containing`` anywhere, head or body: of PostgreSQL look for the
        bytes of a parameter, because statements are often prepared by a request of their own. Commands that
        merely set up a connection to Valkey (``HELLO``, ``AUTH``, ``CLIENT``, ``SELECT``) are never meant.
        """
        if n < 1:
            raise ValueError(f"cannot cut off {n} requests")
        self._order("cut_after_request", cut=_Cut(n, containing, skip))

    def counts(self) -> Counts:
        """What came by so far. Whatever a client got an answer to is in it."""
        return self._tally.counts

    @property
    def connections(self) -> int:
        """As :attr:`Counts.connections`."""
        return self._tally.counts.connections

    @property
    def requests(self) -> int:
        """As :attr:`Counts.requests`."""
        return self._tally.counts.requests

    @property
    def bytes_up(self) -> int:
        """As :attr:`Counts.bytes_up`."""
        return self._tally.counts.bytes_up

    @property
    def bytes_down(self) -> int:
        """As :attr:`Counts.bytes_down`."""
        return self._tally.counts.bytes_down

    def reset_counters(self) -> None:
        """Count from zero again."""
        self._tally.reset()

    def stop(self) -> None:
        """Close every connection and end the thread. Idempotent."""
        if self._thread is not None and self._thread.is_alive():
            with suppress(RuntimeError):  # it ended by itself just now
                self._loop.call_soon_threadsafe(self._stopping.set)
            self._thread.join()

    def __enter__(self) -> Self:
        if self._thread is not None:
            raise ServiceError("this proxy was used before: make a new one")
        ready = Future[None]()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._main(ready)), name=repr(self), daemon=True)
        self._thread.start()
        try:
            ready.result()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def __repr__(self) -> str:
        return f"FaultProxy({self._target})"

    # How it is ruled

    def _order(self, mode: Mode, *, delay: float = 0.0, cut: _Cut | None = None) -> None:
        if self._thread is None or not self._thread.is_alive():
            raise ServiceError("the proxy does not run: use it in a with statement")
        asyncio.run_coroutine_threadsafe(self._switch(mode, delay, cut), self._loop).result()

    async def _main(self, ready: Future[None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._stopping, self._switched, self._switching = asyncio.Event(), asyncio.Event(), asyncio.Lock()
        try:
            self._socket = bind(*free_ports(1))
        except BaseException as error:  # noqa: BLE001 - it is raised where the proxy was entered
            ready.set_exception(error)
            return
        self._port = self._socket.getsockname()[1]
        self._listen()
        ready.set_result(None)
        await self._stopping.wait()
        async with self._switching:
            self._deafen()
            await _end(self._connections)

    async def _switch(self, mode: Mode, delay: float, cut: _Cut | None) -> None:
        async with self._switching:  # from here to the last line nothing else of the proxy runs
            before, self._mode = self._mode, mode
            self._delay, self._cut = delay, cut
            if mode == "refuse" != before:
                # A port that is bound, while nobody listens, refuses connections and is nobody else's.
                self._deafen()
                self._socket = bind(self._port)
            elif before == "refuse" != mode:
                self._listen()
            lost = {one for one in self._connections if one.missed_an_answer and mode not in _SILENT}
            doomed = self._connections.copy() if mode in ("refuse", "reset") else lost
            for connection in doomed:
                connection.abort = True
            over, self._switched = self._switched, asyncio.Event()
            over.set()
            await _end(doomed)

    async def _until_switched(self, timeout: float | None = None) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await self._switched.wait()

    async def _while_in(self, *modes: Mode) -> None:
        while self._mode in modes:
            await self._until_switched()

    # How connections live

    def _listen(self) -> None:
        self._socket.listen(1024)
        self._loop.add_reader(self._socket, self._accept)

    def _deafen(self) -> None:
        self._loop.remove_reader(self._socket)
        self._socket.close()

    def _accept(self) -> None:
        try:
            client, _ = self._socket.accept()
        except OSError:  # it has gone again
            return
        self._tally.add(connections=1)
        connection = _Connection(client)
        for one in (client, connection.server):
            one.setblocking(False)
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._connections.add(connection)
        connection.task = self._loop.create_task(self._serve(connection))
        connection.task.add_done_callback(lambda _: self._forget(connection))

    def _forget(self, connection: _Connection) -> None:
        """Not at the end of the task itself: one that is cancelled at once never begins."""
        self._connections.discard(connection)
        for one in (connection.client, connection.server):
            close(one, abort=connection.abort)

    async def _serve(self, connection: _Connection) -> None:
        try:
            await self._reach_server(connection)
            async with asyncio.TaskGroup() as pumps:
                pumps.create_task(self._requests(connection))
                pumps.create_task(self._answers(connection))
        except* _ClientLeft:
            connection.abort = True
        except* _CutOff:
            close(connection.client, abort=True)
            await self._let_finish(connection.server)
        except* OSError:  # the server's side: nobody hears of it in the silent modes
            await self._while_in(*_SILENT)
            connection.abort = True

    async def _reach_server(self, connection: _Connection) -> None:
        await self._while_in("black_hole")
        try:
            if self._mode == "reset":
                raise ConnectionResetError
            await self._loop.sock_connect(connection.server, (HOST, self._target))
        except OSError:
            # Let the client find itself connected: of a reset at once, some say that they could not connect.
            with suppress(TimeoutError):
                async with asyncio.timeout(0.1):
                    await self._loop.sock_recv(connection.client, 1)
            raise

    async def _requests(self, connection: _Connection) -> None:
        while True:
            try:
                data = await self._loop.sock_recv(connection.client, _CHUNK)
            except OSError:
                raise _ClientLeft from None
            await self._while_in("black_hole")
            if not data:
                connection.server.shutdown(socket.SHUT_WR)
                return
            begun, complete = connection.parser.feed(data, speaks_anew=not connection.asked)
            connection.asked = True
            connection.spared = connection.spared and not begun
            self._tally.add(up=len(data), verbs=begun)
            for verb, text in complete:
                if self._cut is not None and self._cut.falls_on(connection, verb, text):
                    self._mode, self._cut = "pass_through", None
            await self._loop.sock_sendall(connection.server, data)

    async def _answers(self, connection: _Connection) -> None:
        while True:
            data = await self._loop.sock_recv(connection.server, _CHUNK)
            begins, connection.asked = connection.asked, False
            if not await self._may_answer(begins):
                connection.missed_an_answer = True
                if not data:
                    return
                continue
            if connection.cut and not is_interim(data):
                raise _CutOff
            if not data:
                connection.client.shutdown(socket.SHUT_WR)
                return
            self._tally.add(down=len(data))
            try:
                await self._loop.sock_sendall(connection.client, data)
            except OSError:
                raise _ClientLeft from None

    async def _may_answer(self, begins: bool) -> bool:
        """Wait as the mode demands; false when the answer is to be swallowed."""
        arrived = self._loop.time()
        while True:
            wait = arrived + self._delay - self._loop.time() if begins else 0.0
            if self._mode == "black_hole" or wait > 0:
                await self._until_switched(None if wait <= 0 else wait)
            else:
                return self._mode != "half_open"

    async def _let_finish(self, server: socket.socket) -> None:
        """Hang up as somebody does who has heard all: what the server has not yet read, it still reads."""
        with suppress(OSError, TimeoutError):
            server.shutdown(socket.SHUT_WR)
            async with asyncio.timeout(1):
                while await self._loop.sock_recv(server, _CHUNK):
                    pass


@dataclass(slots=True, eq=False)
class _Connection:
    client: socket.socket
    server: socket.socket = field(default_factory=socket.socket)
    parser: RequestParser = field(default_factory=RequestParser)
    task: asyncio.Task[None] | None = None
    asked: bool = False
    """The client said something since the server spoke last."""
    cut: bool = False
    """What it asked last is to be cut off."""
    spared: bool = False
    """A request of an unknown protocol, which may go on, was skipped already."""
    missed_an_answer: bool = False
    abort: bool = False
    """It ends with a reset."""


@dataclass(slots=True)
class _Cut:
    left: int
    what: bytes
    skip: int

    def falls_on(self, connection: _Connection, verb: str, text: bytes) -> bool:
        """Mark the connection if this request is meant; answers whether it was the last one to be cut off."""
        if self.what in text and verb not in _SET_UP and not connection.cut and not connection.spared:
            connection.cut = not self.skip
            connection.spared = bool(self.skip) and not verb
            self.skip, self.left = max(0, self.skip - 1), self.left - connection.cut
        return not self.left


class _ClientLeft(Exception):
    """The client reset its connection."""


class _CutOff(Exception):
    """The server answers what is to be cut off."""


async def _end(connections: Iterable[_Connection]) -> None:
    tasks = [one.task for one in connections if one.task is not None]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
