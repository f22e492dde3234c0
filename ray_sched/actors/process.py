"""What each actor's process needs: its log, its ports, and a way out when it cannot go on."""

from __future__ import annotations

import errno
import logging
import os
import sys
from typing import Final

import zmq

from ray_sched.config import Config
from ray_sched.errors import ConfigError, PortTakenError

SWITCH_INTERVAL_S: Final = 0.0005
"""How long another thread may keep the interpreter from a loop that has something to do."""


def prepare_process(config: Config, role: str) -> None:
    """Called once, at the start of an actor's constructor."""
    logging.basicConfig(
        level=config.log_level,
        format=f"%(asctime)s level=%(levelname)s group={config.group_name} actor={role} %(message)s",
        force=True,
    )
    sys.setswitchinterval(SWITCH_INTERVAL_S)


def bind(context: zmq.Context[zmq.Socket[bytes]], kind: int, ip: str, port: int) -> zmq.Socket[bytes]:
    """A socket of that kind on that port of that address alone.

    Raises PortTakenError, or ConfigError when the machine has no such address.
    """
    socket: zmq.Socket[bytes] = context.socket(kind)
    socket.linger = 0
    try:
        socket.bind(f"tcp://{ip}:{port}")
    except zmq.ZMQError as error:
        socket.close(0)
        if error.errno == errno.EADDRINUSE:
            raise PortTakenError(
                f"port {port} of {ip} is taken; another scheduler, ours or a legacy one, on this "
                "address could hold it: stop that one, or choose another --host"
            ) from error
        raise ConfigError(
            f"cannot listen on port {port} of {ip!r}: {error}; is it an address of this machine?"
        ) from error
    return socket


def leave_for_restart() -> None:
    """End this process, so that Ray starts the actor anew: better than one that does nothing."""
    logging.shutdown()
    os._exit(1)
