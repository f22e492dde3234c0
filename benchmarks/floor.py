"""The floor, and the echo below it: pyzmq loops that do as little as a scheduler could.

    python -m benchmarks.floor IP EXECUTORS_IP

binds on IP the ports of a DAG call and of a one-shot call, one that answers what it was asked, and one for
executors' statuses, which are parsed and forgotten. Each loop is alone in its process while it is
measured: the others wait in `poll`.
"""

from __future__ import annotations

import sys

import zmq

from benchmarks import payloads
from benchmarks.executors import LAYOUT
from benchmarks.helper import end_with_parent, say_ready
from ray_sched.wire import cloudburst_pb2 as cb
from ray_sched.wire import internal_pb2
from ray_sched.wire.ports import CONNECT, DAG_CALL, FUNCTION_CALL, STATUS, tcp


class Floor:
    """A ROUTER loop: parses the request, sends ready-made bytes of the true sizes, and does nothing else."""

    def __init__(self, ip: str, executors_ip: str) -> None:
        self._context: zmq.Context[zmq.SyncSocket] = zmq.Context()
        self._dag_calls = self._bind(ip, DAG_CALL)
        self._calls = self._bind(ip, FUNCTION_CALL)
        self._echo = self._bind(ip, CONNECT)
        self._statuses = self._bind(ip, STATUS, zmq.PULL)
        pushes = {
            (base, tid): self._connect(tcp(executors_ip, base + tid))
            for base in (LAYOUT.schedule, LAYOUT.trigger, LAYOUT.call)
            for tid in range(payloads.EXECUTORS)
        }
        self._dag_sends = {
            payloads.dag_name(length): [
                *(
                    (pushes[LAYOUT.schedule, number % payloads.EXECUTORS], raw)
                    for number, raw in enumerate(payloads.schedules(length, executors_ip))
                ),
                (pushes[LAYOUT.trigger, 0], payloads.trigger()),
            ]
            for length in payloads.CHAINS
        }
        self._call_push = pushes[LAYOUT.call, 0]
        self._forwarded = payloads.forwarded_call()
        self._reply = payloads.response()

    def run(self) -> None:
        plays = {self._dag_calls: self.dag_call, self._calls: self.call, self._echo: self.echo}
        plays[self._statuses] = self.status
        poller = zmq.Poller()
        for socket in plays:
            poller.register(socket, zmq.POLLIN)
        while True:
            for socket, _ in poller.poll():
                play = plays[socket]
                # As long as this one has requests no other is looked at, and none is polled for.
                try:
                    while True:
                        play()
                except zmq.Again:
                    pass

    def dag_call(self) -> None:
        client, empty, body = self._dag_calls.recv_multipart(zmq.NOBLOCK)
        call = cb.DagCall.FromString(body)
        for push, raw in self._dag_sends[call.name]:
            push.send(raw)
        self._dag_calls.send_multipart((client, empty, self._reply))

    def call(self) -> None:
        client, empty, body = self._calls.recv_multipart(zmq.NOBLOCK)
        cb.FunctionCall.FromString(body)
        self._call_push.send(self._forwarded)
        self._calls.send_multipart((client, empty, self._reply))

    def echo(self) -> None:
        self._echo.send_multipart(self._echo.recv_multipart(zmq.NOBLOCK))

    def status(self) -> None:
        internal_pb2.ThreadStatus.FromString(self._statuses.recv(zmq.NOBLOCK))

    def _bind(self, ip: str, port: int, kind: int = zmq.ROUTER) -> zmq.SyncSocket:
        socket = self._context.socket(kind)
        socket.bind(tcp(ip, port))
        return socket

    def _connect(self, address: str) -> zmq.SyncSocket:
        socket = self._context.socket(zmq.PUSH)
        socket.connect(address)
        return socket


def main() -> None:
    end_with_parent()
    floor = Floor(sys.argv[1], sys.argv[2])
    say_ready()
    floor.run()


if __name__ == "__main__":
    main()
