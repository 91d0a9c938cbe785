"""What a journal's file looks like, and how it is opened.

Version 1 of the file (also in ``PRAGMA user_version``)::

    meta(key, value)                                                    version, home, home_check
    rows(seq, attempted, head, head_check, origin, metadata, body, body_check)   what is pending, in order
    dead(like rows, and error, failed_at)                               what can never be applied

``origin`` names the journal and the row that a row was first written to, so that an adoption that was cut short is
taken up again without doubling anything. There are tables only and no index: ``journal_pages.py`` accounts for every
page of the file.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path

from locus_tiered.stores.journal_rows import home_mark

__all__ = [
    "PAGE",
    "SCHEMA",
    "VERSION",
    "Connect",
    "FileDamaged",
    "FileMoved",
    "connect",
    "create_tables",
    "first_page",
    "is_damage",
    "prepared",
    "reading",
]

VERSION = 1
PAGE = 32_768
_LOG_PAGES = 128  # 4 MiB of log, then its pages go back into the file: all of it is read after a crash
_DECLARED = (
    "seq INTEGER PRIMARY KEY, attempted INTEGER NOT NULL, head BLOB NOT NULL, head_check BLOB NOT NULL, origin TEXT, "
    "metadata BLOB, body BLOB, body_check BLOB"
)
SCHEMA = {
    "meta": "CREATE TABLE meta(key TEXT NOT NULL, value TEXT NOT NULL)",
    "rows": f"CREATE TABLE rows({_DECLARED})",
    "dead": f"CREATE TABLE dead({_DECLARED}, error TEXT NOT NULL, failed_at REAL NOT NULL)",
}
_DAMAGE = {
    sqlite3.SQLITE_CORRUPT,
    sqlite3.SQLITE_NOTADB,
    sqlite3.SQLITE_ERROR,
    sqlite3.SQLITE_FORMAT,
    sqlite3.SQLITE_TOOBIG,
}

Connect = Callable[[Path], sqlite3.Connection]


class FileDamaged(Exception):
    """A file is not what was written; the message says in which way."""


class FileMoved(Exception):
    """A file that is open is not in its place any more: what is written to it, nobody will find after a crash."""


def is_damage(error: sqlite3.Error) -> bool:
    """Whether it is the content of a file that is wrong, not the disk, its room, or somebody's rights."""
    return getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF in _DAMAGE


def connect(path: Path) -> sqlite3.Connection:
    """The one connection to a journal's file."""
    return prepared(sqlite3.connect(path, isolation_level=None, timeout=5.0))


def prepared(connection: sqlite3.Connection) -> sqlite3.Connection:
    """A connection with the settings of a journal. One that was opened otherwise (a test's) needs them too."""
    connection.text_factory = _text
    for pragma in (
        f"page_size={PAGE}",
        "auto_vacuum=NONE",
        "journal_mode=WAL",
        "synchronous=FULL",
        f"wal_autocheckpoint={_LOG_PAGES}",
        "secure_delete=FAST",  # of what is dropped, nothing stays where it costs no write; some builds have ON
        "cell_size_check=ON",
    ):
        connection.execute(f"PRAGMA {pragma}")
    return connection


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "replace")  # damage is for the checks to find


def first_page(pages: int) -> bytes:
    """The first page of a journal of so many pages, none of them free, as it was when the file was made."""
    connection = sqlite3.connect(":memory:", isolation_level=None)
    try:
        connection.execute(f"PRAGMA page_size={PAGE}")
        connection.execute("PRAGMA auto_vacuum=NONE")
        create_tables(connection, None)
        page = bytearray(connection.serialize()[:PAGE])
    finally:
        connection.close()
    page[18:20] = b"\x02\x02"  # write-ahead log
    page[28:32] = pages.to_bytes(4, "big")
    page[32:40] = bytes(8)
    page[92:96] = page[24:28]  # the count of pages is believed
    return bytes(page)


def create_tables(connection: sqlite3.Connection, home: str | None) -> None:
    """Make the tables in one transaction: a file has all of them or none."""
    connection.execute("BEGIN IMMEDIATE")
    for statement in SCHEMA.values():
        connection.execute(statement)
    connection.execute(f"PRAGMA user_version={VERSION}")
    notes = {"version": str(VERSION)} | ({} if home is None else {"home": home, "home_check": home_mark(home)})
    connection.executemany("INSERT INTO meta VALUES(?, ?)", notes.items())
    connection.execute("COMMIT")


def reading(path: Path) -> sqlite3.Connection:
    """A connection that only reads; raises :class:`FileDamaged` unless the tables are where every journal has them."""
    connection = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)
    try:
        connection.text_factory = _text
        connection.execute("PRAGMA cell_size_check=ON")
        found = connection.execute("SELECT name, rootpage, sql FROM sqlite_master").fetchall()
        if found != [(name, place, sql) for place, (name, sql) in enumerate(SCHEMA.items(), 2)]:
            raise FileDamaged("its tables are not those of a journal")
    except BaseException:
        connection.close()
        raise
    return connection
