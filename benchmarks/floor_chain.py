"""The floor of a whole call, end to end: pyzmq loops in the places of the ingress and three executors.

    python -m benchmarks.floor_chain IP

Each does what its place cannot do without: parses what it gets, unpickles the argument, calls the function,
pickles the result, and sends one message on. The client is the same as for the real thing.
"""

from __future__ import annotations

import pickle
import sys
from contextlib import ExitStack
from typing import Final

import zmq

from benchmarks import payloads
from benchmarks.executors import LAYOUT
from benchmarks.helper import Helper, end_with_parent, say_ready
from benchmarks.stamps import stamp
from ray_sched.wire import cloudburst_pb2 as cb
from ray_sched.wire.ports import DAG_CALL, tcp

LENGTH: Final = 3


def ingress(ip: str) -> None:
    context: zmq.Context[zmq.SyncSocket] = zmq.Context()
    requests = context.socket(zmq.ROUTER)
    requests.bind(tcp(ip, DAG_CALL))
    schedules, trigger = [], context.socket(zmq.PUSH)
    for tid in range(LENGTH):
        schedules.append(context.socket(zmq.PUSH))
        schedules[tid].connect(tcp(ip, LAYOUT.schedule + tid))
    trigger.connect(tcp(ip, LAYOUT.trigger))
    ready_made = [cb.DagSchedule.FromString(raw) for raw in payloads.schedules(LENGTH, ip)]
    reply = payloads.response()
    say_ready()
    calls = 0
    while True:
        client, empty, body = requests.recv_multipart()
        call = cb.DagCall.FromString(body)
        calls += 1
        call_id = f"call {calls}"
        for socket, schedule in zip(schedules, ready_made, strict=True):
            schedule.id = call_id
            schedule.response_address = call.response_address
            socket.send(schedule.SerializeToString())
        (arguments,) = call.function_args.values()
        start = cb.DagTrigger(id=call_id, target_function=payloads.function_name(0), arguments=arguments)
        trigger.send(start.SerializeToString())
        requests.send_multipart((client, empty, reply))


def executor(ip: str, tid: int) -> None:
    context: zmq.Context[zmq.SyncSocket] = zmq.Context()
    poller = zmq.Poller()
    sockets = [context.socket(zmq.PULL) for _ in range(2)]
    for socket, base in zip(sockets, (LAYOUT.schedule, LAYOUT.trigger), strict=True):
        socket.bind(tcp(ip, base + tid))
        poller.register(socket, zmq.POLLIN)
    out: dict[str, zmq.SyncSocket] = {}
    schedules: dict[str, cb.DagSchedule] = {}
    early: dict[str, cb.DagTrigger] = {}
    say_ready()

    def run(schedule: cb.DagSchedule, trigger: cb.DagTrigger) -> None:
        result = stamp(None, pickle.loads(trigger.arguments.values[0].body))
        value = cb.Value(body=pickle.dumps(result, protocol=4))
        if tid + 1 < LENGTH:
            address = tcp(ip, LAYOUT.trigger + tid + 1)
            raw = cb.DagTrigger(
                id=trigger.id,
                target_function=payloads.function_name(tid + 1),
                source=payloads.function_name(tid),
                arguments=cb.Arguments(values=[value]),
            ).SerializeToString()
        else:
            address, raw = schedule.response_address, value.SerializeToString()
        if address not in out:
            out[address] = context.socket(zmq.PUSH)
            out[address].connect(address)
        out[address].send(raw)

    while True:
        for socket, _ in poller.poll():
            raw = socket.recv()
            if socket is sockets[0]:
                schedule = cb.DagSchedule.FromString(raw)
                if schedule.id in early:
                    run(schedule, early.pop(schedule.id))
                else:
                    schedules[schedule.id] = schedule
            else:
                trigger = cb.DagTrigger.FromString(raw)
                if trigger.id in schedules:
                    run(schedules.pop(trigger.id), trigger)
                else:
                    early[trigger.id] = trigger


def main() -> None:
    end_with_parent()
    ip = sys.argv[1]
    if len(sys.argv) == 2:
        with ExitStack() as running:
            for place in map(str, range(LENGTH)):
                running.enter_context(Helper("floor_chain", ip, place))
            ingress(ip)
    else:
        executor(ip, int(sys.argv[2]))


if __name__ == "__main__":
    main()
