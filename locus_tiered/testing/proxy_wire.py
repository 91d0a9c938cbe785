"""What :class:`~locus_tiered.testing.proxy.FaultProxy` knows of sockets and protocols, and how it counts.

Of protocols: enough of HTTP/1.1 and Valkey's to tell one request from the next, however they are cut into
packets. Nothing is checked: what makes no sense is taken for another protocol.
"""

from __future__ import annotations

import re
import socket
import struct
import threading
from collections.abc import Generator, Iterable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from locus_tiered.testing.services._tools import HOST

__all__ = ["HOST", "Counts", "RequestParser", "Tally", "bind", "close", "is_interim"]

_HTTP = re.compile(rb"[A-Z]{3,7} [/*h]")
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # SO_LINGER on, for no time
_INTERIM = re.compile(rb"HTTP/1\.[01] 1\d\d ")


@dataclass(frozen=True, slots=True)
class Counts:
    """What came by since the proxy was started, or since its counters were reset."""

    connections: int = 0
    """Accepted ones, also those that were reset at once. A refused one is nobody's."""
    requests: int = 0
    """Requests sent on to the server: HTTP request lines, commands of Valkey (those that set up a connection
    included), and for any other protocol each time that the client speaks after the server did."""
    bytes_up: int = 0
    """Sent on to the server."""
    bytes_down: int = 0
    """Sent on to clients; what was swallowed or cut off is not in it."""
    verbs: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))
    """The requests by HTTP method or command in capitals; empty for other protocols."""


class Tally:
    """Counts that one thread adds to while others read or reset them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.counts = Counts()

    def reset(self) -> None:
        """Count from zero again."""
        with self._lock:
            self.counts = Counts()

    def add(self, *, connections: int = 0, up: int = 0, down: int = 0, verbs: Iterable[str] = ()) -> None:
        """Add to the counts; each of ``verbs`` is a request, an empty one of a protocol without verbs."""
        with self._lock:
            now = self.counts
            by_verb, requests = dict(now.verbs), now.requests
            for verb in verbs:
                requests += 1
                if verb:
                    by_verb[verb] = by_verb.get(verb, 0) + 1
            self.counts = replace(
                now,
                connections=now.connections + connections,
                requests=requests,
                bytes_up=now.bytes_up + up,
                bytes_down=now.bytes_down + down,
                verbs=MappingProxyType(by_verb),
            )


def bind(port: int) -> socket.socket:
    """A socket that has ``port`` to itself. As long as it does not listen, connections to it are refused."""
    bound = socket.socket()
    try:
        bound.setblocking(False)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((HOST, port))
    except OSError:
        bound.close()
        raise
    return bound


def close(one: socket.socket, *, abort: bool) -> None:
    """Close, with a reset if asked for. No-op for one that is closed."""
    if abort and one.fileno() >= 0:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
    one.close()


def is_interim(answer: bytes) -> bool:
    """Whether these bytes are nothing but an HTTP answer that announces another one: ``100 Continue``."""
    rest = answer
    while _INTERIM.match(rest):
        rest = rest.partition(b"\r\n\r\n")[2]
    return rest != answer and not rest


class RequestParser:
    """Finds the requests in what one client says. The first bytes decide which protocol it is."""

    def __init__(self) -> None:
        self._unread = bytearray()
        self._text = bytearray()  # of the request that is not complete yet
        self._begun: list[str] = []
        self._complete: list[tuple[str, bytes]] = []
        self._walk: Generator[None] | None = None
        self._known = True

    def feed(self, data: bytes, *, speaks_anew: bool) -> tuple[list[str], list[tuple[str, bytes]]]:
        """Take what the client said next; ``speaks_anew``: the server has spoken since.

        Answers the verbs of the requests that begin in ``data``, and verb and text of those that are complete
        with it. A request of an unknown protocol is complete, as far as it goes, with every bit of it.
        """
        self._begun, self._complete = [], []
        if self._walk is None:
            self._known = data.startswith(b"*") or _HTTP.match(data) is not None
            self._walk = self._commands() if data.startswith(b"*") else self._http()
        if self._known:
            self._unread += data
            try:
                next(self._walk)
            except ValueError:  # it was neither, after all
                self._known = False
        if not self._known:
            if speaks_anew:
                self._text.clear()
                self._begun.append("")
            self._text += data
            self._complete.append(("", bytes(self._text)))
        return self._begun, self._complete

    def _commands(self) -> Generator[None]:
        while True:
            verb = ""
            for number in range(int((yield from self._line())[1:])):
                size = int((yield from self._line())[1:])
                word = yield from self._take(size + 2)
                if number == 0:
                    verb = word.strip().upper().decode("ascii", "replace")
                    self._begun.append(verb)
            self._end(verb)

    def _http(self) -> Generator[None]:
        while True:
            line = yield from self._line()
            verb = line.partition(b" ")[0].decode("ascii", "replace")
            self._begun.append(verb)
            size, chunked = 0, False
            while line:
                line = yield from self._line()
                name, _, value = line.lower().partition(b":")
                if name == b"content-length":
                    size = int(value)
                elif name == b"transfer-encoding":
                    chunked = b"chunked" in value
            if chunked:
                yield from self._chunks()
            else:
                yield from self._take(size)
            self._end(verb)

    def _chunks(self) -> Generator[None]:
        while size := int((yield from self._line()).partition(b";")[0], 16):
            yield from self._take(size + 2)
        while (yield from self._line()):  # trailers
            pass

    def _line(self) -> Generator[None, None, bytes]:
        while (end := self._unread.find(b"\r\n")) < 0:
            yield
        return (yield from self._take(end + 2))[:-2]

    def _take(self, size: int) -> Generator[None, None, bytes]:
        while len(self._unread) < size:
            yield
        taken = bytes(self._unread[:size])
        del self._unread[:size]
        self._text += taken
        return taken

    def _end(self, verb: str) -> None:
        self._complete.append((verb, bytes(self._text)))
        self._text.clear()
