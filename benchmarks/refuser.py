"""Who refuses every request, for as little as pyzmq takes: what refusing costs a machine, not a scheduler.

    python -m benchmarks.refuser IP

binds the port of DAG calls there.
"""

from __future__ import annotations

import sys

import zmq

from benchmarks.helper import end_with_parent, say_ready
from ray_sched.errors import NoResourcesError
from ray_sched.wire.codec import refusal
from ray_sched.wire.ports import DAG_CALL, tcp


def main() -> None:
    end_with_parent()
    context: zmq.Context[zmq.SyncSocket] = zmq.Context()
    socket = context.socket(zmq.ROUTER)
    socket.bind(tcp(sys.argv[1], DAG_CALL))
    body = refusal(NoResourcesError("refused")).body
    say_ready()
    while True:
        *way, _ = socket.recv_multipart()
        socket.send_multipart((*way, body))


if __name__ == "__main__":
    main()
