"""The Scheduler: what functions and DAGs exist, and the dispatch table that it leases to ingresses.

Three ways lead here: requests that an Ingress forwards (`request`, `decide`), updates from the
Policy (`on_executors`), and Python programs on the cluster (`register` and those after it). What
has to wait (for the key-value store, for pins) waits in the caller's own thread and holds no lock.
"""

from __future__ import annotations

import logging
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

import ray

from ray_sched import values
from ray_sched.actors import names
from ray_sched.actors.catalog import Catalog
from ray_sched.actors.dags import Dags
from ray_sched.actors.ingresses import Ingresses
from ray_sched.actors.leasing import Leasing
from ray_sched.actors.link import Lane, Link
from ray_sched.actors.lost_calls import settle
from ray_sched.actors.messages import Booked, Decision, Send
from ray_sched.actors.metering import Metering
from ray_sched.actors.process import keep_alive, prepare_process
from ray_sched.actors.python_calls import PythonCalls, RemoteValue
from ray_sched.actors.telling import Account, RequestIds, account
from ray_sched.config import Config
from ray_sched.core.arrivals import Arrivals
from ray_sched.core.dags import Limits
from ray_sched.core.destination import Destination
from ray_sched.core.dispatch import CALL, Dispatched, Dispatcher, seq_at
from ray_sched.core.history import Ring, serving
from ray_sched.core.open_calls import Doubtful
from ray_sched.core.policies import load_policy
from ray_sched.core.registry import Registry
from ray_sched.core.replication import Update
from ray_sched.errors import (
    BadMessageError,
    InvalidDagError,
    NoResourcesError,
    RaySchedError,
)
from ray_sched.kvs.client import KvsClient
from ray_sched.kvs.lattices import MultiCausal
from ray_sched.logs import fields, teller
from ray_sched.messages import DagFunction, build_dag, build_function
from ray_sched.metrics import REFUSED, Sample, refusals
from ray_sched.wire import cloudburst_pb2 as cb
from ray_sched.wire import ports, shared_pb2
from ray_sched.wire.codec import OK, Reply, accepted, check_names, error_name, parse, parse_text, refusal
from ray_sched.wire.curve import Keys

log = logging.getLogger(__name__)

RETRY_S: Final = 1.0
AGAIN_S: Final = 0.5
FRESH_PAUSE_S: Final = 0.05
"""After which a DAG that found no room is tried again, where its creator waits."""
CALL_KINDS: Final = {
    ports.FUNCTION_CALL: "function",
    ports.DAG_CALL: "dag",
    ports.CALL_QUEUE: "queued",
    ports.CONTINUATION: "continuation",
}
"""What metrics call the kinds of call."""


class SchedulerActor:
    CONCURRENCY_GROUPS: Final = {
        "events": 1,
        "calls": 1,
        # Of each kind its own threads: requests that wait (for pins, for the store) hold up their like alone.
        "functions": 8,
        "lists": 8,
        "dags": 32,
        "deletes": 8,
        "peers": 8,
        "api": 64,
    }

    @classmethod
    def concurrency_groups(cls, config: Config) -> dict[str, int]:
        """Instead of `CONCURRENCY_GROUPS`, where the configuration has a word in it."""
        return {**cls.CONCURRENCY_GROUPS, "api": config.scheduler.api_threads}

    def __init__(self, config: Config) -> None:
        prepare_process(config, "scheduler")
        self._config = config
        group = config.group_name
        self._policy = Link(group, names.POLICY)
        self._ingresses = Ingresses(config)
        self._stats = Link(group, names.STATS)
        self._lane = Lane("scheduler")
        self._lock = threading.RLock()
        limits = config.scheduler
        self._registry = Registry(
            Limits(limits.max_dag_functions, limits.max_name_bytes, limits.max_functions, limits.max_dags)
        )
        self._arrivals = Arrivals()
        self._recovered = threading.Event()
        self._leasing = Leasing(
            config, self._lock, self._policy, self._ingresses, self._lane, self._recovered, self._reconcile
        )
        self._booked: list[Booked] = []
        """Executors that calls took here, until the Policy is told."""
        self._dispatcher = Dispatcher(
            self._leasing.table,
            self._registry.plans(),
            load_policy(config.policy),
            random.Random(config.policy.seed or None),
            self._arrivals,
            config.remembered,
        )
        self._ids = RequestIds()
        self._requests = Ring(config.remembered)
        """What became of functions and DAGs here."""
        self._requests.heard = teller(log, logging.INFO)
        self._kvs = KvsClient(
            config.kvs_host,
            config.host,
            timeout_s=config.kvs.timeout_s,
            retries=config.kvs.retries,
            routing_ports=config.kvs.routing_ports,
            keys=Keys.of_group(config.security.curve),
        )
        causal = config.kvs.consistency == "causal"
        self._catalog = Catalog(
            self._kvs,
            group,
            causal=causal,
            max_name_bytes=limits.max_name_bytes,
            max_replicas=limits.max_executors,
        )
        self._dags = Dags(
            config,
            self._lock,
            self._registry,
            self._catalog,
            self._leasing,
            self._policy,
            Link(group, names.GOSSIP, unanswered=64),
            self._recovered,
            self._arrivals.forget_dag,
            self._requests,
        )
        self._python = PythonCalls(config, self._kvs, self._place)
        self._stopping = threading.Event()
        self._counts: Counter[str] = Counter()
        self._heart = threading.Thread(
            target=keep_alive, args=(self._run,), name="scheduler-heart", daemon=True
        )
        self._heart.start()
        self._metering = Metering(config, "scheduler", self._samples)

    # --- what an ingress forwards ---

    @ray.method(concurrency_group="calls")
    def decide(self, port: int, body: bytes, deadline: float, request: str = "") -> Decision:
        """A call that the ingress may not decide: the answer and what to send. Never waits.

        Past `deadline` (of the node's monotonic clock) the call was refused, and must not happen. `request`
        is the id by which the ingress knows it.
        """
        return self._decision(lambda: self._decide(port, body), deadline, request)

    @ray.method(concurrency_group="functions")
    def request_function(self, port: int, body: bytes, deadline: float, request: str = "") -> Decision:
        """A function to be stored; waits for the key-value store, as do the other requests."""
        return self._decision(lambda: Decision(self._request(port, body)), deadline, request)

    @ray.method(concurrency_group="lists")
    def request_list(self, port: int, body: bytes, deadline: float, request: str = "") -> Decision:
        return self._decision(lambda: Decision(self._request(port, body)), deadline, request)

    @ray.method(concurrency_group="dags")
    def request_dag(self, port: int, body: bytes, deadline: float, request: str = "") -> Decision:
        """A DAG to be created; waits for pins, too."""
        return self._decision(lambda: Decision(self._request(port, body)), deadline, request)

    @ray.method(concurrency_group="deletes")
    def request_delete(self, port: int, body: bytes, deadline: float, request: str = "") -> Decision:
        return self._decision(lambda: Decision(self._request(port, body)), deadline, request)

    def _decision(self, decide: Callable[[], Decision], deadline: float, request: str) -> Decision:
        with serving(request):
            try:
                if time.monotonic() > deadline:
                    raise NoResourcesError("the scheduler heard of it too late: try again")
                return decide()
            except RaySchedError as error:
                return Decision(refusal(error))
            except Exception as error:  # a fault of ours: it costs this request and no other
                log.exception("a request failed")
                return Decision(refusal(error))

    def _decide(self, port: int, body: bytes) -> Decision:
        now = time.monotonic()
        with self._lock:
            self._counts[CALL_KINDS[port]] += 1
            try:
                self._leasing.check_may_decide(now)
            except NoResourcesError as error:
                return Decision(refusal(error), again=True)
            if port == ports.DAG_CALL:
                dispatched = self._dispatcher.call_dag(parse(cb.DagCall, body), now, time.time())
            elif port == ports.CONTINUATION:
                continuation = parse(cb.Continuation, body)
                try:
                    dispatched = self._dispatcher.continue_dag(continuation, now, time.time())
                except RaySchedError as error:
                    return self._fail_continuation(continuation, error)
            else:
                dispatched = self._dispatcher.call(parse(cb.FunctionCall, body), now)
            sends = self._sends(dispatched, now)
        return Decision(Reply(accepted(dispatched[0])), sends)

    def _tell_bookings(self) -> None:
        """The Policy hears which executors were taken, now or when it has answered what came before."""
        if self._booked and self._policy.has_room():
            self._policy.tell("on_bookings", self._booked)
            self._booked = []

    def _fail_continuation(self, continuation: cb.Continuation, error: RaySchedError) -> Decision:
        """Nobody waits for a reply, but somebody for the result: there the error value goes."""
        refused = refusal(error)
        code = cb.GenericResponse.FromString(refused.body).error
        value = values.dumps(values.error_value(str(error), code))
        to = Destination.of_continuation(continuation)
        if to.address:
            return Decision(refused, (), ((to.address, value),))
        if to.causal:
            lattice = MultiCausal({to.writer: 1}, {}, frozenset([value]))
            self._kvs.put_future(to.key, lattice).add_done_callback(log_failure)
        else:
            self._kvs.put_bytes_future(to.key, value).add_done_callback(log_failure)
        return Decision(refused)

    def _sends(self, dispatched: Dispatched, now: float) -> tuple[Send, ...]:
        _, sends = dispatched
        if log.isEnabledFor(logging.DEBUG):
            log.debug("a call is placed", extra=fields(**self._dispatcher.decisions.last().ids()))
        if not self._config.local:
            self._booked += [Booked(e.address, seq_at(now)) for e, kind, _ in sends if kind == CALL]
            self._tell_bookings()
        return tuple((e.ip, e.tid, kind, message) for e, kind, message in sends)

    def _request(self, port: int, body: bytes) -> Reply:
        if port == ports.FUNCTION_CREATE:
            self.create_function(parse(cb.Function, body))
            return OK
        if port == ports.LIST:
            names = self.function_names(parse_text("prefix", body))
            return Reply(shared_pb2.StringSet(keys=names).SerializeToString())
        if port == ports.DAG_CREATE:
            self._dags.create(parse(cb.Dag, body))
            return OK
        if port == ports.DAG_DELETE:
            self._dags.remove(parse_text("DAG name", body))
            return OK
        raise BadMessageError(f"port {port} takes no requests")

    # --- functions ---

    def create_function(self, function: cb.Function) -> None:
        """Store a function and name it in the index.

        Raises BadMessageError, NoResourcesError, KvsError, TimedOutError.
        """
        with self._lock:
            self._registry.check_room_for_function(function.name)
        self._catalog.store_function(function)
        with self._lock:
            self._registry.add_function(function.name)
        self._requests.note(time.monotonic(), (function.name,), "function {} is registered", function.name)

    def function_names(self, prefix: str) -> list[str]:
        """The functions in the key-value store's index, other schedulers' among them."""
        try:
            self._learn_functions(self._catalog.functions())
        except RaySchedError as error:
            log.warning("the list of functions is as of the last time: %s", error)
        with self._lock:
            return self._registry.functions(prefix)

    def _learn_functions(self, names: Iterable[str]) -> None:
        with self._lock:
            for name in names:
                self._registry.add_function(name)

    # --- DAGs ---

    @ray.method(concurrency_group="peers")
    def delete_own_dag(self, name: str) -> None:
        """A client of another group deleted the DAG."""
        self._dags.remove_own(name)

    @ray.method(concurrency_group="peers")
    def forget_dags(self, names: list[str]) -> None:
        """A peer deleted these."""
        self._dags.forget(names)

    @ray.method(concurrency_group="peers")
    def learn_dags(self, candidates: list[str]) -> list[str]:
        """A peer named these; gives those that can be called from here now, and could not before."""
        return self._dags.learn(candidates)

    @ray.method(concurrency_group="events")
    def dag_names(self) -> list[str]:
        with self._lock:
            return sorted(self._registry.dags())

    # --- calls that may be lost ---

    @ray.method(concurrency_group="lists")
    def settle_calls(self, doubtful: Sequence[Doubtful]) -> list[Doubtful]:
        """Write the error value for those that are lost; gives those that are open.

        Raises KvsError, NoResourcesError, TimedOutError.
        """
        # After a restart the table is empty.
        if not self._leasing.fresh.wait(self._config.scheduler.table_timeout_s):
            raise NoResourcesError("the Policy has not told yet which executors there are: try again")
        with self._lock:
            known = frozenset(self._leasing.table.executors)
        return settle(self._config, self._kvs, doubtful, known)

    # --- the table ---

    @ray.method(concurrency_group="events")
    def on_executors(self, update: Update) -> None:
        """What the Policy knows of the executors."""
        self._leasing.on_executors(update)

    @ray.method(concurrency_group="events")
    def whole_table(self) -> Update | None:
        """For an ingress that starts or missed something; None until this Scheduler knows it itself."""
        return self._leasing.whole()

    def _reconcile(self) -> None:
        self._dags.reconcile()

    # --- the heart ---

    def _run(self) -> None:
        self._recover()
        next_reconcile = 0.0
        while not self._stopping.wait(self._config.scheduler.heartbeat_s):
            now = time.monotonic()
            with self._lock:
                self._leasing.table.age(now)
                self._tell_bookings()
            if now >= next_reconcile:
                self._reconcile()
                self._lane.run(self._dags.forget_erased)
                next_reconcile = now + self._config.stats.policy_period_s
            if not self._leasing.is_fresh(time.monotonic()):
                self._leasing.ask_policy()
            self._leasing.publish(heartbeat=True)
            batch = self._arrivals.take()
            if batch is not None:
                self._stats.tell("record", batch)

    def _recover(self) -> None:
        """Read back what was acknowledged before a restart; nothing is answered until that is done."""
        while not self._stopping.is_set():
            try:
                self._learn_functions(self._catalog.functions())
                loaded = self._dags.read_back()
                if loaded:
                    log.info("dags=%d were read back from the key-value store", len(loaded))
            except RaySchedError as error:
                log.warning("waiting for the key-value store: %s", error)
                self._stopping.wait(RETRY_S)
                continue
            self._recovered.set()
            self._reconcile()
            self._leasing.ask_policy()
            return

    # --- for Python programs on the cluster ---

    @ray.method(concurrency_group="api")
    def register(self, function: Any, name: str) -> str:
        """Register a function, or a tuple `(cls, args)` of a class with `run`; returns the name.

        Executors call a function as `function(library, ...)`; of a class each makes one
        `cls(library, *args)`, whose `run(library, ...)` every call there shares.

        Raises BadMessageError, KvsError, TimedOutError.
        """
        with self._requested():
            self.create_function(build_function(function, name))
        return name

    @ray.method(concurrency_group="api")
    def register_dag(
        self,
        name: str,
        functions: Sequence[str | DagFunction],
        connections: Sequence[tuple[str, str]] = (),
        colocated: Sequence[str] = (),
        num_replicas: int = 0,
        timeout_s: float = 0.0,
    ) -> str:
        """Create a DAG, pinned `num_replicas` times (0: as configured); returns the name.

        One that finds no room is tried again for `timeout_s` seconds, in which an autoscaler may add nodes.

        Raises DagExistsError, InvalidDagError, FunctionNotFoundError, NoResourcesError, KvsError,
        TimedOutError.
        """
        dag = build_dag(name, functions, connections, colocated)
        if isinstance(num_replicas, bool) or not isinstance(num_replicas, int) or num_replicas < 0:
            raise InvalidDagError(
                f"DAG {name!r}: num_replicas = {num_replicas!r} is not allowed; give a whole number, 0 for "
                "scheduler.num_replicas"
            )
        until = time.monotonic() + timeout_s
        with self._requested():
            while True:
                try:
                    self._dags.create(dag, num_replicas)
                    return name
                except NoResourcesError:
                    left_s = until - time.monotonic()
                    if left_s <= 0 or self._stopping.wait(min(AGAIN_S, left_s)):
                        raise

    @ray.method(concurrency_group="api")
    def call(self, name: str, *args: Any, timeout_s: float | None = None) -> RemoteValue:
        """Call a function once; its result is what `ray.get` gives.

        Raises NoResourcesError, FunctionNotFoundError, ExecutionError, TimedOutError.
        """
        return self._python.call(name, args, timeout_s)

    @ray.method(concurrency_group="api")
    def call_dag(
        self, name: str, args: Mapping[str, Sequence[Any]] | None = None, *, timeout_s: float | None = None
    ) -> RemoteValue:
        """Call a DAG with each function's list of arguments; its result is what `ray.get` gives.

        Raises NoSuchDagError, NoResourcesError, ExecutionError, TimedOutError.
        """
        return self._python.call_dag(name, args or {}, timeout_s)

    @ray.method(concurrency_group="api")
    def delete_dag(self, name: str) -> None:
        """Raises NoSuchDagError, KvsError, TimedOutError."""
        with self._requested():
            self._dags.remove(name)

    @ray.method(concurrency_group="api")
    def list(self, prefix: str = "") -> list[str]:
        """The names of the registered functions that start with the prefix."""
        return self.function_names(prefix)

    @ray.method(concurrency_group="api")
    def get(self, key: str) -> RemoteValue:
        """A key's value in the key-value store. Raises KeyMissingError, KvsError, TimedOutError."""
        return self._python.get(key)

    @ray.method(concurrency_group="api")
    def put(self, key: str, value: Any) -> None:
        """Raises KvsError, TimedOutError."""
        self._python.put(key, value)

    def _place(self, call: cb.FunctionCall | cb.DagCall, failed: Callable[[BaseException], None]) -> str:
        self._await_lease()
        now = time.monotonic()
        with self._lock, self._counting_refusals():
            self._counts["python"] += 1
            check_names(self._config.scheduler.max_name_bytes, call.name)
            self._leasing.check_may_decide(now)
            if isinstance(call, cb.DagCall):
                dispatched = self._dispatcher.call_dag(call, now, time.time())
            else:
                dispatched = self._dispatcher.call(call, now)
            sends = self._sends(dispatched, now)

        def sent(future: Any) -> None:
            error = future.exception()
            if error is not None:
                failed(NoResourcesError(f"the ingress is not there to send the call, try again: {error}"))

        self._ingresses.front.ask("send", sends).add_done_callback(sent)
        return dispatched[0]

    def _await_lease(self) -> None:
        """Calls that come in hundreds may keep this process from hearing the Policy in time."""
        until = time.monotonic() + self._config.scheduler.lease_s
        while (now := time.monotonic()) < until and not self._leasing.may_decide(now):
            if self._stopping.wait(FRESH_PAUSE_S):
                return

    @contextmanager
    def _counting_refusals(self) -> Iterator[None]:
        """Of what Python programs ask for; the ingress counts those on the wire."""
        try:
            yield
        except RaySchedError as error:
            with self._lock:
                self._counts[f"{REFUSED}{error_name(refusal(error))}"] += 1
            raise

    @contextmanager
    def _requested(self) -> Iterator[None]:
        """By a Python program: with an id, as the ingress gives one to those on the wire."""
        with self._counting_refusals(), serving(self._ids.next()):
            yield

    # --- for the group ---

    def why(self, name: str) -> Account:
        """How calls were decided here, and what became of functions and DAGs."""
        decisions = self._dispatcher.decisions
        told = [
            *decisions.about(name, self._config.policy.name, self._leasing.table),
            *self._requests.about(name),
        ]
        with self._lock:
            known = [f"DAG {name} exists"] if self._registry.has_dag(name) else []
            known += [f"function {name} is registered"] if self._registry.has_function(name) else []
        return account(told, known, (decisions.since(), self._requests.since()))

    def ready(self) -> dict[str, Any]:
        self._recovered.wait(self._config.start_timeout_s)
        self._leasing.fresh.wait(self._config.start_timeout_s)
        with self._lock:
            return {"functions": len(self._registry.functions()), "dags": len(self._registry.dags())}

    def status(self) -> dict[str, Any]:
        now = time.monotonic()
        with self._lock:
            return {
                "pid": os.getpid(),
                "functions": self._registry.functions(),
                "dags": {
                    name: {
                        "functions": [function.name for function in dag.functions],
                        "connections": [[link.source, link.sink] for link in dag.connections],
                    }
                    for name, dag in sorted(self._registry.dags().items())
                },
                "table_fresh": self._leasing.is_fresh(now),
                "table_age_s": round(self._leasing.age_s(now), 3),
            }

    def _samples(self) -> Iterator[Sample]:
        with self._lock:
            functions, dags = len(self._registry.functions()), len(self._registry.dags())
            counts = dict(self._counts)
        yield Sample("functions", functions)
        yield Sample("dags", dags)
        for kind in (*CALL_KINDS.values(), "python"):
            yield Sample("calls", counts.get(kind, 0), (kind,))
        yield from refusals(counts)
        yield from self._dags.pin_time.samples()
        yield from self._dags.create_time.samples()

    def stop(self) -> None:
        self._stopping.set()
        self._metering.stop()
        self._heart.join(self._config.threads_stop_timeout_s)
        self._lane.close()
        self._python.close()
        self._kvs.close()


def log_failure(future: Any) -> None:
    """For what nobody waits for."""
    error = future.exception()
    if error is not None:
        log.warning("an error value could not be stored: %s", error)
