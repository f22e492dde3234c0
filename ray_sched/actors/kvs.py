"""The Kvs actor: the embedded store, served in Anna's protocol."""

from __future__ import annotations

import os
from typing import Any

from ray_sched.actors.names import KVS
from ray_sched.config import Config
from ray_sched.kvs.server import KvsServer
from ray_sched.kvs.store import Store
from ray_sched.logs import configure
from ray_sched.wire.curve import Keys


class KvsActor:
    """Serves a store on the group's address; durable when `kvs.path` names a file.

    Made anew by Ray after a crash, it has what the file has. Raises PortTakenError, ConfigError or
    KvsError where it cannot start.
    """

    def __init__(self, config: Config) -> None:
        configure(config, KVS)
        self._store = Store(config.kvs.path)
        self._server = KvsServer(config.host, self._store, keys=Keys.of_group(config.security.curve))
        try:
            self._server.start()
        except BaseException:
            self._store.close()
            raise

    def ready(self) -> dict[str, Any]:
        """Role, address, number of keys, and the file's path, empty where there is none."""
        return {
            "role": "kvs",
            "address": self._server.ip,
            "keys": len(self._store),
            "path": self._store.path,
        }

    def status(self) -> dict[str, Any]:
        """As `ready`, with what the server has counted since its start."""
        return {"pid": os.getpid(), **self.ready(), **self._server.stats()}

    def stop(self) -> None:
        """Free the ports and let go of the file. Again is harmless."""
        self._server.stop()
        self._store.close()
