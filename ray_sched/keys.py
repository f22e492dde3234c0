"""Making the keys of a group and of its clients: certificates of ZeroMQ's, in files of mode 0600."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import zmq.auth

from ray_sched.errors import ConfigError
from ray_sched.wire.curve import CLIENTS, EXECUTOR, GROUP


def new(name: str, folder: Path) -> Path:
    """Make a client's key, and the group's and the executors' where the folder has none yet.

    Returns the folder to be handed to the client: with its secret key and the two public ones that it
    needs. In the group's folder only its public key matters: without that it is refused.

    Raises:
        ConfigError: the name is not allowed or taken, or the folder cannot be written to.
    """
    if not name or not all(c.isalnum() or c in "._-" for c in name) or name.startswith("."):
        raise ConfigError(f"{name!r} is not allowed as a name: use letters, digits, dots and dashes")
    before = os.umask(0o077)
    try:
        clients = folder / CLIENTS
        clients.mkdir(parents=True, exist_ok=True)
        if (clients / f"{name}.key").exists():
            raise ConfigError(f"{clients}/{name}.key exists: choose another name, or remove it first")
        for pair in (GROUP, EXECUTOR):
            if not (folder / f"{pair}.key").exists():
                zmq.auth.create_certificates(folder, pair)
        handed = clients / name
        handed.mkdir(exist_ok=True)
        _, secret = zmq.auth.create_certificates(clients, name)
        shutil.move(secret, handed / f"{name}.key_secret")
        for pair in (GROUP, EXECUTOR):
            shutil.copy(folder / f"{pair}.key", handed)
    except OSError as error:
        raise ConfigError(f"{folder}: keys cannot be made there: {error.strerror or error}") from None
    finally:
        os.umask(before)
    return handed
