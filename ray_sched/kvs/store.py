"""The embedded store: lattices by key, in memory, and durable in one SQLite file where wanted.

Memory is what is read; the file is only written, and read once at the start. Writes are committed
in batches, so that a server pays for one commit however many requests came in at once.
"""

from __future__ import annotations

import logging
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Final

from ray_sched.errors import BadMessageError, KvsError, LatticeMismatchError
from ray_sched.kvs.lattices import Lattice, parse, type_name

logger = logging.getLogger(__name__)

APPLICATION_ID: Final = 0x52534B56
"""What marks a SQLite file as ours ("RSKV")."""
SCHEMA_VERSION: Final = 1
SCHEMA: Final = """
CREATE TABLE parts (
    key TEXT NOT NULL,
    part INTEGER NOT NULL,     -- a lattice with concurrent versions has one row for each
    type INTEGER NOT NULL,
    payload BLOB NOT NULL,
    PRIMARY KEY (key, part)
)
"""


class Store:
    """Lattices by key. For one thread at a time; `len` may be asked from any.

    With a `path`, a write that `put` or the end of `batch` acknowledged survives the death of the
    process, SIGKILL included: the file is in WAL mode with `synchronous=NORMAL`, and what the
    operating system has taken over it keeps. A power cut or a crash of the system can cost the
    commits of the last moments (those since the last checkpoint that the disk has not written
    yet), never the file's integrity. One process at a time holds the file. A `scratch` file need
    not outlive the system, and so is never waited for.

    Raises KvsError when the file cannot be used; the message says what to do.
    """

    def __init__(self, path: str = "", *, scratch: bool = False, lock_timeout_s: float = 5.0) -> None:
        self.path = os.path.abspath(os.path.expanduser(path)) if path else ""
        self._lattices: dict[str, Lattice] = {}
        self._before: dict[str, Lattice | None] | None = None
        self._file = _open(self.path, lock_timeout_s) if self.path else None
        if self._file is not None:
            try:
                if scratch:
                    self._file.execute("PRAGMA synchronous=OFF")
                self._lattices = _load(self._file, self.path)
            except BaseException:
                self._file.close()
                raise

    def __len__(self) -> int:
        return len(self._lattices)

    def keys(self) -> list[str]:
        """All keys, in no particular order."""
        return list(self._lattices)

    def get(self, key: str) -> Lattice | None:
        """The key's lattice; None where there is none. Within a batch, what it has written so far."""
        return self._lattices.get(key)

    def put(self, key: str, lattice: Lattice) -> None:
        """Merge a lattice into the key's. Committed on return, or with the batch around it.

        Raises LatticeMismatchError when the key holds another type, KvsError when the file cannot
        be written; nothing has changed then.
        """
        if self._before is None:
            with self.batch():
                self.put(key, lattice)
            return
        held = self._lattices.get(key)
        if held is None:
            merged = lattice
        elif held.type != lattice.type:
            raise LatticeMismatchError(
                f"the key {key!r} holds a {type_name(held.type)} lattice, not {type_name(lattice.type)}"
            )
        else:
            merged = held.merge(lattice)
        if merged != held:
            self._before.setdefault(key, held)
            self._lattices[key] = merged

    @contextmanager
    def batch(self) -> Iterator[None]:
        """Writes inside are committed together at the end: all of them, or none when it raises.

        Raises KvsError when the file cannot be written.
        """
        if self._before is not None:
            raise KvsError("a batch of writes is open already")
        self._before = {}
        try:
            yield
            self._commit(list(self._before))
        except BaseException:
            for key, lattice in self._before.items():
                if lattice is None:
                    del self._lattices[key]
                else:
                    self._lattices[key] = lattice
            raise
        finally:
            self._before = None

    def close(self) -> None:
        """Let go of the file. The store must not be used any more."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _commit(self, keys: list[str]) -> None:
        if not self.path or not keys:
            return
        if self._file is None:
            raise KvsError(f"the store in {self.path} is closed")
        try:
            self._file.execute("BEGIN")
            for key in keys:
                parts = self._lattices[key].parts()
                self._file.executemany(
                    "INSERT OR REPLACE INTO parts (key, part, type, payload) VALUES (?, ?, ?, ?)",
                    [(key, number, part.type, part.serialize()) for number, part in enumerate(parts)],
                )
                self._file.execute("DELETE FROM parts WHERE key = ? AND part >= ?", (key, len(parts)))
            self._file.execute("COMMIT")
        except (sqlite3.Error, OverflowError, ValueError) as error:
            if self._file.in_transaction:
                self._file.execute("ROLLBACK")
            raise KvsError(f"the store could not write {self.path}: {error}") from error


def _open(path: str, lock_timeout_s: float) -> sqlite3.Connection:
    folder = os.path.dirname(path)
    if not os.path.isdir(folder):
        raise KvsError(f"the store cannot use {path}: there is no folder {folder}; create it first")
    if os.path.isdir(path):
        raise KvsError(f"the store cannot use {path}: it is a folder; name a file")
    try:
        # Its owner's alone, as are the files that SQLite puts beside it: values and functions are in them.
        # An existing one is not opened here: to close it would end the locks that this process has on it.
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600))
    except FileExistsError:
        pass
    except OSError as error:
        raise KvsError(f"the store cannot open {path}: {error}; check the file's permissions") from error
    try:
        connection = sqlite3.connect(
            path, timeout=lock_timeout_s, isolation_level=None, check_same_thread=False
        )
    except sqlite3.Error as error:
        raise KvsError(f"the store cannot open {path}: {error}; check the file's permissions") from error
    try:
        _prepare(connection, path)
    except sqlite3.OperationalError as error:
        connection.close()
        if "locked" in str(error):
            raise KvsError(
                f"the store cannot use {path}: another process holds it; stop that one or name another file"
            ) from error
        raise KvsError(f"the store cannot use {path}: {error}; check permissions and space") from error
    except sqlite3.DatabaseError as error:
        connection.close()
        raise KvsError(_foreign(path, str(error))) from error
    except BaseException:
        connection.close()
        raise
    return connection


def _prepare(connection: sqlite3.Connection, path: str) -> None:
    """Take the lock, make sure that the file is ours or empty, and bring it into WAL mode."""
    # Held for as long as the connection lives: each process has a copy of the contents in memory,
    # and two that wrote the same file would not see each other's writes.
    connection.execute("PRAGMA locking_mode=EXCLUSIVE")
    (application_id,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if application_id != APPLICATION_ID and (application_id or tables):
        raise KvsError(_foreign(path, "it is another program's SQLite database"))
    if version > SCHEMA_VERSION:
        raise KvsError(f"{path} was written by a newer version of ray-sched (format {version}); use that one")
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=NORMAL")
    connection.execute("BEGIN IMMEDIATE")
    if not tables:
        connection.execute(SCHEMA)
        connection.execute(f"PRAGMA application_id={APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version={SCHEMA_VERSION}")
    connection.execute("COMMIT")
    (verdict,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    if verdict != "ok":
        raise sqlite3.DatabaseError(" ".join(verdict.split()))


def _load(connection: sqlite3.Connection, path: str) -> dict[str, Lattice]:
    lattices: dict[str, Lattice] = {}
    try:
        with closing(connection.execute("SELECT key, type, payload FROM parts")) as rows:
            for key, lattice_type, payload in rows:
                part = parse(lattice_type, payload)
                lattices[key] = lattices[key].merge(part) if key in lattices else part
    except (sqlite3.Error, BadMessageError, LatticeMismatchError, TypeError) as error:
        raise KvsError(_foreign(path, str(error))) from error
    logger.info("The store in %s holds %d keys.", path, len(lattices))
    return lattices


def _foreign(path: str, why: str) -> str:
    return (
        f"{path} is not a store of ray-sched, or is broken ({why}); "
        "move it away to start empty, bring back a copy of it, or name another file (kvs.path)"
    )
