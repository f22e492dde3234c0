"""Executor servers with everything around them: a real store, and a scheduler and clients that are played."""

from __future__ import annotations

import itertools
import select
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import cloudpickle

from ray_sched.config import Config
from ray_sched.executor.server import ExecutorServer
from ray_sched.kvs.client import KvsClient
from ray_sched.kvs.lattices import Lattice
from ray_sched.kvs.server import KvsServer
from ray_sched.kvs.store import Store
from ray_sched.values import dumps, loads, to_value
from ray_sched.wire import cloudburst_pb2 as cb
from ray_sched.wire import internal_pb2 as internal
from ray_sched.wire import ports
from tests.wire.players import Mailbox, Pusher

WAIT_S = 10.0
_ids = itertools.count(1)


def is_readable(descriptor: int) -> bool:
    """Wait until a descriptor is readable; it may be beyond what `select.select` takes."""
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(WAIT_S * 1e3))


class Bench:
    def __init__(self, ip: str, folder: Path) -> None:
        self.ip = ip
        self.config = Config(host=ip).replace(
            **{"executor.runtime_dir": str(folder), "executor.reload_period_s": 0.1, "kvs.timeout_s": 1.0}
        )
        self.store = Store()
        self.kvs_server = KvsServer(ip, self.store)
        self.kvs_server.start()
        self.kvs = KvsClient(ip, ip, timeout_s=1.0)
        self.pusher = Pusher()
        self.scheduler = Mailbox(
            {
                "status": ports.tcp(ip, ports.STATUS),
                "pin_accept": ports.tcp(ip, ports.PIN_ACCEPT),
                "continuation": ports.tcp(ip, ports.CONTINUATION),
                "mgmt_status": ports.tcp(ip, ports.MGMT_STATUS),
                "mgmt_depart": ports.tcp(ip, ports.MGMT_DEPART),
                "mgmt_statistics": ports.tcp(ip, ports.MGMT_STATISTICS),
                "answer": f"tcp://{ip}:9000",
            }
        )
        self.answer_address = f"tcp://{ip}:9000"
        self.executors: list[ExecutorServer] = []

    def __enter__(self) -> Bench:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for executor in self.executors:
            executor.stop()
        self.scheduler.close()
        self.pusher.close()
        self.kvs.close()
        self.kvs_server.stop()
        self.store.close()

    def start(self, tid: int = 0, *, config: Config | None = None, **options: Any) -> ExecutorServer:
        """An executor that has told its first status."""
        executor = ExecutorServer(config or self.config, tid, **options)
        executor.start()
        self.executors.append(executor)
        self.statuses(lambda status: status.tid == tid)
        return executor

    # What clients and the scheduler do.

    def register(self, name: str, function: Any) -> None:
        """Store a function as a client's `Function.body`: a serialized Value."""
        self.kvs.put_bytes(f"funcs/{name}", dumps(function))

    def register_bare(self, name: str, function: Any) -> None:
        """Store a function as its bare cloudpickle."""
        self.kvs.put_bytes(f"funcs/{name}", cloudpickle.dumps(function))

    def pin(self, name: str, tid: int = 0, *, batching: bool = False) -> cb.GenericResponse:
        """Ask for a pin; the answer, once it has come."""
        before = len(self.scheduler.all("pin_accept"))
        message = internal.PinFunction(name=name, response_address=self.ip, batching=batching)
        self.push(ports.CLASSIC.pin + tid, message.SerializeToString())
        answers = self.scheduler.wait_for("pin_accept", before + 1, timeout_s=WAIT_S)
        return cb.GenericResponse.FromString(answers[-1])

    def call(self, name: str, *arguments: Any, tid: int = 0, consistency: int = cb.NORMAL) -> str:
        """Make a one-shot call; the key of its result."""
        key = f"result-{next(_ids)}"
        call = cb.FunctionCall(name=name, response_key=key, consistency=consistency)
        call.arguments.values.extend(map(to_value, arguments))
        self.push(ports.CLASSIC.call + tid, call.SerializeToString())
        return key

    def schedule(self, schedule: cb.DagSchedule, tid: int) -> None:
        self.push(ports.CLASSIC.schedule + tid, schedule.SerializeToString())

    def trigger(self, trigger: cb.DagTrigger, tid: int) -> None:
        self.push(ports.CLASSIC.trigger + tid, trigger.SerializeToString())

    def call_dag(self, dag: cb.Dag, places: dict[str, int], *arguments: Any, **fields: Any) -> str:
        """Send what a scheduler sends for a call of a DAG; `arguments` go to its first function."""
        call_id = f"call-{next(_ids)}"
        for name, tid in places.items():
            self.schedule(schedule_of(dag, name, call_id, self.ip, places, arguments, **fields), tid)
        for name, tid in places.items():
            if not any(link.sink == name for link in dag.connections):
                self.trigger(cb.DagTrigger(id=call_id, target_function=name, source="BEGIN"), tid)
        return call_id

    def push(self, port: int, message: bytes) -> None:
        self.pusher.push(ports.tcp(self.ip, port), message)

    # What comes of it.

    def result(self, key: str) -> Any:
        return loads(self.lattice(key).value)  # type: ignore[attr-defined]

    def lattice(self, key: str) -> Lattice:
        deadline = time.monotonic() + WAIT_S
        while time.monotonic() < deadline:
            found = self.kvs.get(key)
            if found is not None:
                return found
        raise AssertionError(f"nothing was stored at {key!r} within {WAIT_S} s")

    def answers(self, count: int = 1) -> list[Any]:
        """Direct responses."""
        return [loads(raw) for raw in self.scheduler.wait_for("answer", count, timeout_s=WAIT_S)]

    def statuses(
        self, where: Callable[[internal.ThreadStatus], bool] = lambda status: True, count: int = 1
    ) -> list[internal.ThreadStatus]:
        raw = self.scheduler.wait_for(
            "status", count, where=lambda raw: where(internal.ThreadStatus.FromString(raw)), timeout_s=WAIT_S
        )
        return [internal.ThreadStatus.FromString(each) for each in raw]


def chain(*names: str, name: str = "pipeline") -> cb.Dag:
    """A DAG in which each function feeds the next."""
    dag = cb.Dag(name=name)
    for function in names:
        dag.functions.add(name=function)
    for source, sink in itertools.pairwise(names):
        dag.connections.add(source=source, sink=sink)
    return dag


def schedule_of(
    dag: cb.Dag,
    name: str,
    call_id: str,
    ip: str,
    places: dict[str, int],
    arguments: tuple[Any, ...] = (),
    **fields: Any,
) -> cb.DagSchedule:
    upstream = [link.source for link in dag.connections if link.sink == name]
    schedule = cb.DagSchedule(
        id=call_id,
        dag=dag,
        target_function=name,
        triggers=upstream or ["BEGIN"],
        locations={function: f"{ip}:{tid}" for function, tid in places.items()},
        start_time=time.time(),
        **fields,
    )
    schedule.arguments[dag.functions[0].name].values.extend(map(to_value, arguments))
    return schedule


def failure(result: Any) -> tuple[str, cb.CloudburstError]:
    """The text and the code of a legacy error value."""
    text, raw = result
    response = cb.GenericResponse.FromString(raw)
    assert not response.success
    return text, response.error
