"""The Kvs actor: the embedded store, served in Anna's protocol."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ray_sched.config import Config
from ray_sched.kvs.server import KvsServer
from ray_sched.kvs.store import Store
from ray_sched.runtime_folder import runtime_file
from ray_sched.wire.curve import Keys


class KvsActor:
    """Serves a store on the group's address; durable when `kvs.path` names a file.

    Made anew by Ray after a crash, it has what it had: without that file it keeps one of its own,
    which goes with the group. Raises PortTakenError, ConfigError or KvsError where it cannot start.
    """

    def __init__(self, config: Config) -> None:
        from ray_sched.actors import process  # not at the top: a store needs no Ray

        process.prepare_log(config, "kvs")
        self._config = config
        self._was_restarted = process.was_restarted()
        self._scratch = None if config.kvs.path else runtime_file(config, "kvs.scratch")
        self._server = KvsServer(config.host, self._open, keys=Keys.of_group(config.security.curve))
        self._server.start()

    def _open(self) -> Store:
        if self._scratch is None:
            self._store = Store(self._config.kvs.path)
        else:
            if not self._was_restarted:
                _remove(self._scratch)
            self._store = Store(str(self._scratch), scratch=True)
        return self._store

    def ready(self) -> dict[str, Any]:
        """Role, address, number of keys, and the path of the durable file, empty where there is none."""
        return {
            "role": "kvs",
            "address": self._server.ip,
            "keys": len(self._store),
            "path": "" if self._scratch else self._store.path,
        }

    def status(self) -> dict[str, Any]:
        """As `ready`, with what the server has counted since its start."""
        return {"pid": os.getpid(), **self.ready(), **self._server.stats()}

    def stop(self) -> None:
        """Free the ports and let go of the file. Again is harmless."""
        self._server.stop()
        self._store.close()
        if self._scratch is not None:
            _remove(self._scratch)


def _remove(path: Path) -> None:
    for suffix in ("", "-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
