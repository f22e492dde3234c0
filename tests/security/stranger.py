"""Who sends anything to any port, and an example of each message with something in every field."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import zmq
from google.protobuf.message import Message

from ray_sched.wire import anna_pb2 as anna
from ray_sched.wire import cloudburst_pb2 as cb
from ray_sched.wire import internal_pb2, ports

NOWHERE: Final = "127.0.18.1"
"""Where nobody listens on the ports that the examples name."""
PATIENCE_S: Final = 30.0


def arguments() -> cb.Arguments:
    return cb.Arguments(values=[cb.Value(body=b"x")])


def continuation(name: str, *, deeper: bool = True) -> cb.Continuation:
    return cb.Continuation(
        name=name, id="hostile-continuation", result=cb.Value(body=b"x").SerializeToString(),
        call=dag_call(name, deeper=deeper),
    )  # fmt: skip


def dag_call(name: str, *, deeper: bool = True) -> cb.DagCall:
    call = cb.DagCall(
        name=name,
        response_address=f"tcp://{NOWHERE}:45678",
        output_key="hostile-output",
        client_id="hostile-client",
        function_args={"hostile_f": arguments()},
    )
    if deeper:
        call.continuation.CopyFrom(continuation(name, deeper=False))
    return call


def function_call() -> cb.FunctionCall:
    return cb.FunctionCall(
        name="hostile_f",
        arguments=arguments(),
        response_key="hostile-response",
        locations=[NOWHERE],
        source_hint=cb.STORAGE,
    )


def requests() -> dict[int, Message]:
    dag = cb.Dag(
        name="hostile_new",
        functions=[cb.Dag.FunctionReference(name="hostile_f", invalid_results=[b"x"], type=cb.MULTIEXEC)],
        connections=[cb.Dag.Link(source="hostile_f", sink="hostile_f")],
        colocated=["hostile_f"],
    )
    return {
        ports.CONNECT: cb.Value(body=b"x"),
        ports.FUNCTION_CREATE: cb.Function(name="hostile_g", body=b"x"),
        ports.FUNCTION_CALL: function_call(),
        ports.LIST: cb.Value(body=b"x"),
        ports.DAG_CREATE: dag,
        ports.DAG_CALL: dag_call("hostile_dag"),
        ports.DAG_DELETE: cb.Value(body=b"x"),
    }


def pushes() -> dict[int, Message]:
    location = internal_pb2.SchedulerStatus.FunctionLocation(name="hostile_f", ip="127.0.18.44", tid=1)
    return {
        ports.CALL_QUEUE: function_call(),
        ports.STATUS: internal_pb2.ThreadStatus(ip="127.0.18.44", tid=1, functions=["other"], running=True),
        ports.SCHEDULER_UPDATE: internal_pb2.SchedulerStatus(
            dags=["hostile_key"], function_locations=[location]
        ),
        ports.PIN_ACCEPT: cb.GenericResponse(success=True, response_id="127.0.18.44:1/other"),
        ports.CONTINUATION: continuation("hostile_dag"),
        ports.KVS_ROUTING: anna.KeyAddressRequest(
            response_address=f"tcp://{NOWHERE}:45679", keys=["k"], request_id="1"
        ),
        ports.KVS_STORAGE: key_request(),
    }


def key_request() -> anna.KeyRequest:
    pair = anna.KeyTuple(key="hostile_key", lattice_type=anna.LWW, payload=b"x")
    return anna.KeyRequest(
        type=anna.PUT, tuples=[pair], response_address=f"tcp://{NOWHERE}:45679", request_id="1"
    )


class Stranger:
    """Sends raw bytes to any port of a group."""

    def __init__(self, host: str) -> None:
        self._host = host
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()

    def ask(self, port: int, bodies: Iterable[bytes]) -> int:
        """Sends requests one after the other; each has to be answered."""
        socket = self.context.socket(zmq.REQ)
        socket.connect(ports.tcp(self._host, port))
        socket.rcvtimeo = int(PATIENCE_S * 1000)
        answered = 0
        for body in bodies:
            socket.send(body)
            socket.recv()
            answered += 1
        socket.close(0)
        return answered

    def push(self, port: int, bodies: Iterable[bytes]) -> None:
        socket = self.context.socket(zmq.PUSH)
        socket.connect(ports.tcp(self._host, port))
        for body in bodies:
            socket.send(body)
        socket.close(5000)

    def close(self) -> None:
        self.context.term()
