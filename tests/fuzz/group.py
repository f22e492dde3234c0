"""A whole group in this process is fuzzed: what comes through its Ingress reaches all of its actors."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Future
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Any, Final

import pytest
import zmq
from google.protobuf.message import DecodeError, Message
from ray.exceptions import ActorDiedError

from ray_sched.actors import forwarding, link, local_mode, names
from ray_sched.config import Config
from ray_sched.errors import RaySchedError
from ray_sched.kvs.client import KvsClient
from ray_sched.kvs.lattices import LWW
from ray_sched.kvs.timestamps import HIGHEST
from ray_sched.wire import anna_pb2 as anna
from ray_sched.wire import cloudburst_pb2 as cb
from ray_sched.wire import internal_pb2, ports, shared_pb2
from ray_sched.wire.codec import WANTS_REASON
from tests.actors.in_process import group
from tests.fuzz import inputs
from tests.fuzz.targets import LIMITS, WAIT_MS, Ingress, SchedulerPorts, wait_for
from tests.wire.players import PlayedExecutor, PlayedManagement, PlayedPeer, Pusher

PEER: Final = "127.0.17.251"
MANAGEMENT: Final = "127.0.17.252"
AGAIN_S: Final = 0.01
"""After which executors say again how they are."""
KVS_PORTS: Final = (ports.KVS_ROUTING, ports.KVS_STORAGE)


class Group(SchedulerPorts):
    """The actors of a group with their store, a played executor, a peer, one function and one DAG."""

    name = "group"
    ports = (*SchedulerPorts.ports, *KVS_PORTS)
    examples = 5
    share = 0.75  # there are two of these
    executors = 1
    settings: Mapping[str, Any] = {}

    @property
    def kept_for(self) -> Collection[str]:
        return {Ingress.name, Group.name, self.name}

    def __init__(self, ip: str, folder: Path) -> None:
        super().__init__(ip)
        self._config = Config(host=ip, group=inputs.GROUP).replace(
            **LIMITS,
            **self.settings,
            **{
                "scheduler.heartbeat_s": 0.05,
                "scheduler.pin_timeout_s": 0.1,
                "scheduler.pin_grace_s": 0.05,
                "scheduler.request_timeout_s": 2.0,
                # The played executor does not go on to say that it is there.
                "scheduler.executor_timeout_s": 600.0,
                "policy.window_s": 0.1,
                "kvs.timeout_s": 0.5,
                "kvs.retries": 1,
                "gossip.period_s": 0.05,
                "gossip.peers": (PEER,),
                "stats.period_s": 0.1,
                "stats.flush_s": 0.05,
                "stats.policy_period_s": 0.1,
                "executor.runtime_dir": str(folder),
            },
        )
        self._numbers = itertools.count(1)
        self._answers = self._context.socket(zmq.PULL)
        self._answers.rcvtimeo = WAIT_MS
        self._answers_at = f"tcp://{ip}:{self._answers.bind_to_random_port(f'tcp://{ip}')}"
        self._open = self._start()

    def _start(self) -> ExitStack:
        self.disconnect()
        with ExitStack() as opened:
            pusher = opened.enter_context(closing(Pusher()))
            self._peer = opened.enter_context(closing(PlayedPeer(PEER, pusher)))
            self._played = [
                opened.enter_context(_Executor(inputs.NOWHERE, tid, self.ip, pusher))
                for tid in range(self.executors)
            ]
            self._calls = opened.enter_context(_Calls(self._faults.seen))
            # Each story waits for events to reach the Policy, several times.
            opened.enter_context(pytest.MonkeyPatch.context()).setattr(forwarding, "FLUSH_S", 0.001)
            self._actors = opened.enter_context(group(self._config))
            self._loop = self._actors[names.INGRESS]._loop
            self._kvs = opened.enter_context(KvsClient(self.ip, self.ip, timeout_s=10.0))
            self._kvs.put_bytes("learned", inputs.dag(["f"], name="learned"))
            self._function_calls = 0
            self._make_anew()
            return opened.pop_all()
        raise AssertionError("an exit stack swallows nothing")

    def begin_anew(self) -> None:
        with suppress(DecodeError, UnicodeDecodeError):  # what an executor could not read was said already
            self._open.close()
        self._open = self._start()
        self._faults.seen.clear()

    # --- what is sent to it ---

    def send(self, port: int, frames: list[bytes]) -> None:
        if port in KVS_PORTS:  # what the store takes is more than inputs have
            self.push(ports.tcp(self.ip, port), frames)
            self._await_store(port)
        else:
            super().send(port, frames)

    def _await_store(self, port: int) -> None:
        """What was sent before this was taken in before this is answered."""
        number = str(next(self._numbers))
        asked = (
            anna.KeyAddressRequest(request_id=number, response_address=self._answers_at)
            if port == ports.KVS_ROUTING
            else anna.KeyRequest(type=anna.GET, request_id=number, response_address=self._answers_at)
        )
        self.push(ports.tcp(self.ip, port), [asked.SerializeToString()])
        answer = anna.KeyAddressResponse if port == ports.KVS_ROUTING else anna.KeyResponse
        assert answer.FromString(self._answers.recv()).response_id == number

    # --- whether it serves ---

    def serves(self) -> None:
        self._calls.wait()
        if self._is_spoilt():
            self._open.close()
            self._open = self._start()
        else:
            self._make_anew()
        self._peer.tell(self.ip, ["learned"])
        self._takes_functions_and_dags()
        self._has_heard()
        self._reports()
        self._is_sound()
        for executor in self._played:
            executor.mailbox.clear()
        self._peer.mailbox.clear()
        self._calls.wait()

    def _is_spoilt(self) -> bool:
        """Whether somebody wrote keys of the store so that they take nothing from us any more."""
        stored = self._kvs.get_many(["funcs/f", "d"])
        return any(not isinstance(known, LWW) or known.timestamp == HIGHEST for known in stored.values())

    def _make_anew(self) -> None:
        """The executors, the one function and the one DAG, whatever became of them."""
        # What the Ingress heard in the story reaches the Policy before this does.
        told = f"told {next(self._numbers)}"
        first = self._played[0]
        first.report(functions=[*_pinned(first), told])
        wait_for(lambda: told in self._executors().get((first.ip, first.tid), ()), "no status is taken in")
        scheduler = self._actors[names.SCHEDULER]
        played = {(executor.ip, executor.tid) for executor in self._played}

        def are_alone() -> bool:
            for executor in self._executors():
                if executor not in played:
                    self._tell_that_left(*executor)
            self._report()
            return set(self._executors()) == played

        wait_for(are_alone, "executors that left are still known", pause_s=AGAIN_S)
        dags = scheduler.status()["dags"]
        if dags != {"d": {"functions": ["f"], "connections": []}} or self._call_dag("d").error:
            for name in dags:
                assert self.told(ports.DAG_DELETE, name.encode()).success
            assert self._creates("f")
            self._create_dag("d")

        def are_known() -> bool:
            # As executors do all the time: what a peer said of one is made good by that.
            self._report()
            return self._are_known()

        wait_for(are_known, "the executors are not known as they are", pause_s=AGAIN_S)

    def _report(self) -> None:
        for executor in self._played:
            executor.report(functions=_pinned(executor))

    def _are_known(self) -> bool:
        known = self._actors[names.POLICY].status()["executors"]
        return not any(executor["overloaded"] for executor in known) and all(
            set(executor["functions"]) == set(played.functions)
            for executor, played in zip(known, self._played, strict=True)
        )

    def _executors(self) -> dict[tuple[str, int], list[str]]:
        told = self._actors[names.POLICY].status()["executors"]
        return {(executor["ip"], executor["tid"]): executor["functions"] for executor in told}

    def _creates(self, function: str) -> bool:
        body = cb.Function(name=function, body=b"never run").SerializeToString()
        return self.told(ports.FUNCTION_CREATE, body).success

    def _create_dag(self, name: str) -> None:
        self._get_done(ports.DAG_CREATE, inputs.dag(["f"], name=name))

    def _get_done(self, port: int, request: bytes) -> None:
        """A pin may be answered too late on a busy machine, and in cluster mode a call takes an executor
        until it reports: to be told so is honest, and does not hold for long."""

        def is_done() -> bool:
            raw, reason = self.ask(port, request, WANTS_REASON)
            reply = cb.GenericResponse.FromString(raw)
            assert reply.success or reply.error == cb.NO_RESOURCES, reason
            reasons.append(reason)
            return reply.success

        reasons: list[bytes] = []
        wait_for(is_done, f"port {port} refuses", reasons)

    def _takes_functions_and_dags(self) -> None:
        key = f"served {next(self._numbers)}"
        assert self._creates("served") and self._creates("f")
        listed = shared_pb2.StringSet.FromString(self.ask(ports.LIST, b"serve")[0]).keys
        assert "served" in listed
        self._get_done(ports.FUNCTION_CALL, cb.FunctionCall(name="f", response_key=key).SerializeToString())
        self._create_dag("served")
        for name in ("d", "served"):
            assert self._call_dag(name, key).success
        assert self.told(ports.DAG_DELETE, b"served").success
        assert self._call_dag("served").error == cb.NO_SUCH_DAG
        wait_for(lambda: any(c.response_key == key for c in self._received("call")), "no call came")

        def are_scheduled() -> bool:
            found = {s.dag.name for s in self._received("schedule") if s.output_key == key}
            return found == {"d", "served"}

        wait_for(are_scheduled, "the DAGs' schedules did not come")

    def _received(self, kind: str) -> list[Any]:
        return [message for executor in self._played for message in executor.received(kind)]

    def _call_dag(self, name: str, key: str = "") -> cb.GenericResponse:
        return self.told(ports.DAG_CALL, cb.DagCall(name=name, output_key=key).SerializeToString())

    def _has_heard(self) -> None:
        """Of a peer's DAG; and the peer of ours."""

        def is_learned() -> bool:
            self._peer.tell(self.ip, ["learned"])
            return self._call_dag("learned").error != cb.NO_SUCH_DAG

        wait_for(is_learned, "no DAG is learned from a peer")
        assert self.told(ports.DAG_DELETE, b"learned").success
        self._peer.wait_for(where=lambda update: "d" in update.dags)

    def _tell_that_left(self, ip: str, tid: int) -> None:
        status = internal_pb2.ThreadStatus(ip=ip, tid=tid).SerializeToString()
        self.push(ports.tcp(self.ip, ports.STATUS), [status])

    def _reports(self) -> None:
        stats = self._actors[names.STATS]
        wait_for(lambda: stats.counts["function_calls"] > self._function_calls, "no call is counted")
        self._function_calls = stats.counts["function_calls"]

    def _is_sound(self) -> None:
        """Each actor can tell how it is and what it did, and what it knows fits together."""
        self.check_loop()
        for role, actor in self._actors.items():
            actor.status()
            for name in ("f", "d", "k", "", f"{inputs.NOWHERE}:0") if hasattr(actor, "why") else ():
                actor.why(name)
            samples = getattr(actor, "_samples", self._loop.samples if role == names.INGRESS else tuple)
            list(samples())
        assert self._actors[names.KVS].status()["failed_batches"] == 0
        scheduler, policy = self._actors[names.SCHEDULER], self._actors[names.POLICY]
        with policy._lock:
            policy._table.validate()
            policy._pinning.validate()
        with scheduler._lock:
            scheduler._leasing.table.validate()
        self._in_loop(self._loop._table.validate)

    def _in_loop(self, act: Callable[[], None]) -> None:
        done: Future[None] = Future()

        def run(now: float) -> None:
            try:
                act()
                done.set_result(None)
            except AssertionError as error:
                done.set_exception(error)

        self._loop.mailbox.put(run)
        done.result(WAIT_MS / 1000)

    def close(self) -> None:
        self._open.close()
        super().close()


class Cluster(Group):
    """The same with a management node: calls take executors, and pins all of one."""

    name = "cluster"
    executors = 2
    settings: Mapping[str, Any] = {"mgmt": MANAGEMENT}

    def _start(self) -> ExitStack:
        with ExitStack() as opened:
            self._management = PlayedManagement(MANAGEMENT, [self.ip, PEER])
            opened.enter_context(closing(self._management))
            opened.push(super()._start())
            return opened.pop_all()
        raise AssertionError("an exit stack swallows nothing")

    def _are_known(self) -> bool:
        known = self._actors[names.POLICY].status()["executors"]
        return super()._are_known() and all(each["free"] == (not each["functions"]) for each in known)

    def _reports(self) -> None:
        super()._reports()
        self._management.wait_for_statistics(where=lambda report: any(dag.name == "d" for dag in report.dags))
        self._management.mailbox.clear()


class _Executor(PlayedExecutor):
    """Reads what it is sent as protobuf does, which passes over fields that it does not know."""

    KINDS: Final[dict[str, type[Message]]] = {
        "pin": internal_pb2.PinFunction,
        "call": cb.FunctionCall,
        "schedule": cb.DagSchedule,
        "trigger": cb.DagTrigger,
    }

    @staticmethod
    def _parse(kind: str, raw: bytes) -> Any:
        known = _Executor.KINDS.get(kind)
        return PlayedExecutor._parse(kind, raw) if known is None else known.FromString(raw)


def _pinned(executor: PlayedExecutor) -> list[str]:
    return [function for function in executor.functions if not function.startswith("told ")]


class _Calls:
    """The calls between actors while this is open: when all have ended, and which of them failed for a
    reason that is none of our errors. Whoever tells something does not look at what comes of it."""

    def __init__(self, faults: list[str]) -> None:
        self._faults = faults
        self._unanswered = 0
        self._answered = threading.Condition()
        self._patch = pytest.MonkeyPatch()

    def __enter__(self) -> _Calls:
        submit, run = local_mode._Actor.submit, link.Lane.run

        def submitted(actor: local_mode._Actor, method: str, args: tuple[Any, ...]) -> Future[Any]:
            with self._answered:
                self._unanswered += 1
            future = submit(actor, method, args)
            future.add_done_callback(self._on_answer)
            return future

        def made(lane: link.Lane, call: Callable[[], Any]) -> bool:
            def watched() -> None:
                try:
                    call()
                except Exception as error:
                    self._faults.append(f"in a lane: {error!r}")
                    raise

            return run(lane, watched)

        self._patch.setattr(local_mode._Actor, "submit", submitted)
        self._patch.setattr(link.Lane, "run", made)
        return self

    def __exit__(self, *raised: object) -> None:
        self._patch.undo()

    def wait(self) -> None:
        """Until there is none."""
        with self._answered:
            assert self._answered.wait_for(lambda: not self._unanswered, WAIT_MS / 1000), "calls hang"

    def _on_answer(self, future: Future[Any]) -> None:
        error = future.exception()
        cause = getattr(error, "cause", error)
        # Whom its group stops while it is called has died, for its caller.
        if cause is not None and not isinstance(cause, RaySchedError | ActorDiedError):
            self._faults.append(str(error)[-3000:])
        with self._answered:
            self._unanswered -= 1
            self._answered.notify_all()
