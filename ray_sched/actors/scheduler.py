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
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any, Final

import ray

from ray_sched import values
from ray_sched.actors import names
from ray_sched.actors.catalog import Catalog
from ray_sched.actors.ingresses import Ingresses
from ray_sched.actors.link import Lane, Link
from ray_sched.actors.lost_calls import settle
from ray_sched.actors.messages import Booked, Decision, Pinned, Send
from ray_sched.actors.metering import Metering
from ray_sched.actors.process import keep_alive, prepare_process
from ray_sched.actors.python_calls import PythonCalls, RemoteValue
from ray_sched.actors.telling import Account, account
from ray_sched.config import Config
from ray_sched.core.arrivals import Arrivals
from ray_sched.core.dags import Limits
from ray_sched.core.destination import Destination
from ray_sched.core.dispatch import CALL, Dispatched, Dispatcher, seq_at
from ray_sched.core.executors import ExecutorTable
from ray_sched.core.history import Ring
from ray_sched.core.open_calls import Doubtful
from ray_sched.core.pins import pin_requests
from ray_sched.core.policies import load_policy
from ray_sched.core.registry import Registry
from ray_sched.core.replication import Outcome, Publisher, Replica, Update
from ray_sched.errors import (
    BadMessageError,
    NoResourcesError,
    RaySchedError,
    TimedOutError,
)
from ray_sched.kvs.client import KvsClient
from ray_sched.kvs.lattices import MultiCausal
from ray_sched.logs import fields, teller
from ray_sched.messages import DagFunction, build_dag, build_function
from ray_sched.metrics import REFUSED, Histogram, Sample, refusals
from ray_sched.wire import cloudburst_pb2 as cb
from ray_sched.wire import ports, shared_pb2
from ray_sched.wire.codec import OK, Reply, accepted, error_name, parse, parse_text, refusal
from ray_sched.wire.curve import Keys

log = logging.getLogger(__name__)

RETRY_S: Final = 1.0
AGAIN_S: Final = 0.5
FRESH_S: Final = 5.0
"""How long what needs to know the executors waits for the Policy to tell them."""
CALL_KINDS: Final = {
    ports.FUNCTION_CALL: "function",
    ports.DAG_CALL: "dag",
    ports.CALL_QUEUE: "queued",
    ports.CONTINUATION: "continuation",
}
"""What metrics call the kinds of call."""
"""After which a DAG that found no room is tried again, where its creator waits."""


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

    def __init__(self, config: Config) -> None:
        prepare_process(config, "scheduler")
        self._config = config
        group = config.group_name
        self._policy = Link(group, names.POLICY)
        self._ingresses = Ingresses(config)
        self._gossip = Link(group, names.GOSSIP, unanswered=64)
        self._stats = Link(group, names.STATS)
        self._lane = Lane("scheduler")
        self._lock = threading.RLock()
        limits = config.scheduler
        self._registry = Registry(
            Limits(limits.max_dag_functions, limits.max_name_bytes, limits.max_functions, limits.max_dags)
        )
        self._arrivals = Arrivals()
        self._table = ExecutorTable(
            config.policy,
            local=config.local,
            pin_grace_s=config.scheduler.pin_grace_s,
            executor_timeout_s=config.scheduler.executor_timeout_s,
        )
        self._replica = Replica(self._table, config.scheduler.lease_s)
        self._policy_epoch = -1
        self._booked: list[Booked] = []
        """Executors that calls took here, until the Policy is told."""
        self._publisher = Publisher(self._table, epoch=random.SystemRandom().getrandbits(48))
        self._dispatcher = Dispatcher(
            self._table,
            self._registry.plans(),
            load_policy(config.policy),
            random.Random(config.policy.seed or None),
            self._arrivals,
            config.remembered,
        )
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
        self._catalog = Catalog(self._kvs, group, causal=causal, max_name_bytes=limits.max_name_bytes)
        self._python = PythonCalls(config, self._kvs, self._place)
        self._recovered = threading.Event()
        self._fresh = threading.Event()
        self._stopping = threading.Event()
        self._counts: Counter[str] = Counter()
        self._pin_time, self._create_time = Histogram("pin"), Histogram("create")
        self._heart = threading.Thread(
            target=keep_alive, args=(self._run,), name="scheduler-heart", daemon=True
        )
        self._heart.start()
        self._metering = Metering(config, "scheduler", self._samples)

    # --- what an ingress forwards ---

    @ray.method(concurrency_group="calls")
    def decide(self, port: int, body: bytes, deadline: float) -> Decision:
        """A call that the ingress may not decide: the answer and what to send. Never waits.

        Past `deadline` (of the node's monotonic clock) the call was refused, and must not happen.
        """
        return self._decision(lambda: self._decide(port, body), deadline)

    @ray.method(concurrency_group="functions")
    def request_function(self, port: int, body: bytes, deadline: float) -> Decision:
        """A function to be stored; waits for the key-value store, as do the other requests."""
        return self._decision(lambda: Decision(self._request(port, body)), deadline)

    @ray.method(concurrency_group="lists")
    def request_list(self, port: int, body: bytes, deadline: float) -> Decision:
        return self._decision(lambda: Decision(self._request(port, body)), deadline)

    @ray.method(concurrency_group="dags")
    def request_dag(self, port: int, body: bytes, deadline: float) -> Decision:
        """A DAG to be created; waits for pins, too."""
        return self._decision(lambda: Decision(self._request(port, body)), deadline)

    @ray.method(concurrency_group="deletes")
    def request_delete(self, port: int, body: bytes, deadline: float) -> Decision:
        return self._decision(lambda: Decision(self._request(port, body)), deadline)

    def _decision(self, decide: Callable[[], Decision], deadline: float) -> Decision:
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
            self._check_may_decide(now)
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
        return Decision(Reply(accepted(dispatched.response_id)), sends)

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

    def _check_may_decide(self, now: float) -> None:
        if not self._recovered.is_set() or not self._replica.may_decide(now):
            raise NoResourcesError("the scheduler does not know the executors (yet): try again")

    def _sends(self, dispatched: Dispatched, now: float) -> tuple[Send, ...]:
        if log.isEnabledFor(logging.DEBUG):
            log.debug("a call is placed", extra=fields(**self._dispatcher.decisions.last().ids()))
        if not self._config.local:
            self._booked += [
                Booked(e.address, seq_at(now)) for e, kind, _ in dispatched.sends if kind == CALL
            ]
            self._tell_bookings()
        return tuple((e.ip, e.tid, kind, message) for e, kind, message in dispatched.sends)

    def _request(self, port: int, body: bytes) -> Reply:
        if port == ports.FUNCTION_CREATE:
            self.create_function(parse(cb.Function, body))
            return OK
        if port == ports.LIST:
            names = self.function_names(parse_text("prefix", body))
            return Reply(shared_pb2.StringSet(keys=names).SerializeToString())
        if port == ports.DAG_CREATE:
            self.create_dag(parse(cb.Dag, body))
            return OK
        if port == ports.DAG_DELETE:
            self.remove_dag(parse_text("DAG name", body))
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
        self._note(function.name, "function {} is registered")

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

    def _learn_functions_of(self, dag: cb.Dag) -> None:
        """Look up what the DAG needs and is not known here: another scheduler may have registered it."""
        with self._lock:
            unknown = {f.name for f in dag.functions if f.name and not self._registry.has_function(f.name)}
        self._learn_functions(self._catalog.which_exist(unknown))

    # --- DAGs ---

    def create_dag(self, dag: cb.Dag, num_replicas: int = 0) -> None:
        """Pin a DAG's functions and persist it, or leave nothing.

        Raises DagExistsError, InvalidDagError, FunctionNotFoundError, NoResourcesError, KvsError,
        TimedOutError.
        """
        try:
            self._create_dag(dag, num_replicas)
        except BaseException as error:
            self._note(dag.name, "DAG {} was not created: {}", _words(error))
            raise
        self._note(dag.name, "DAG {} is created")

    def _note(self, name: str, what: str, *facts: object) -> None:
        self._requests.note(time.monotonic(), (name,), what, name, *facts)

    def _create_dag(self, dag: cb.Dag, num_replicas: int) -> None:
        began = time.monotonic()
        self._wait_recovered()
        replicas = num_replicas or self._config.scheduler.num_replicas
        if not self._registry.has_dag(dag.name):
            self._learn_functions_of(dag)
        with self._lock:
            self._registry.begin_create(dag)
        try:
            pinned = self._pin(dag, replicas)
            self._catalog.store_dag(dag)
            self._catalog.add_to_index(dag.name, replicas)
        except BaseException:
            with self._lock:
                self._registry.abort(dag.name)
            # Should this not arrive, the next `reconcile` does.
            self._policy.tell("release_dag", dag.name)
            raise
        with self._lock:
            for record in pinned.executors:
                self._table.apply(record)
                self._table.dirty[record.ip, record.tid] = None
            self._registry.commit(dag, replicas)
            self._publisher.set_dag(dag.name, dag.SerializeToString())
        self._gossip.tell("dag_created", dag.name)
        self._publish_and_wait()
        self._create_time.observe(time.monotonic() - began)

    def _pin(self, dag: cb.Dag, replicas: int) -> Pinned:
        timeout_s = self._config.scheduler.request_timeout_s
        # The Policy ends it in time itself; the margin is for the call.
        began = time.monotonic()
        deadline = began + timeout_s * 0.8
        try:
            pinned: Pinned = self._policy.get(
                "pin_dag", dag.name, pin_requests(dag, replicas), deadline, timeout_s=timeout_s
            )
        except TimedOutError:
            raise
        except RaySchedError as error:  # it is being started anew
            raise NoResourcesError(f"DAG {dag.name!r} was not created, try again: {error}") from error
        self._pin_time.observe(time.monotonic() - began)
        if pinned.reason:
            raise NoResourcesError(f"DAG {dag.name!r} was not created: {pinned.reason}")
        return pinned

    def remove_dag(self, name: str) -> None:
        """Forget a DAG and release its pins. Raises NoSuchDagError, KvsError, TimedOutError.

        Once it has left the index it is deleted, whatever happens to the rest: pins that could not
        be released are at the next `reconcile`.
        """
        self._wait_recovered()
        with self._lock:
            self._registry.begin_delete(name)
            own = self._registry.is_own(name)
        try:
            self._catalog.remove_from_index(name)
        except BaseException:
            with self._lock:
                self._registry.abort_delete(name)
            raise
        with self._lock:
            self._registry.remove(name)
            self._arrivals.forget_dag(name)
            self._publisher.set_dag(name, None)
        self._note(name, "DAG {} is deleted")
        self._gossip.tell("dag_deleted" if own else "delete_elsewhere", name)
        try:
            if own:
                self._catalog.erase_dag(name)
                self._policy.get("release_dag", name, timeout_s=self._config.scheduler.request_timeout_s)
        except RaySchedError as error:
            log.warning("dag=%s is deleted, but not all of it is gone yet: %s", name, error)
        finally:
            with self._lock:
                self._registry.end_delete(name)
        self._publish_and_wait()

    @ray.method(concurrency_group="peers")
    def delete_own_dag(self, name: str) -> None:
        """A client of another group deleted the DAG."""
        if self._registry.is_own(name):
            self.remove_dag(name)

    def _forget_erased(self) -> None:
        """Learned DAGs whose creator deleted them: one in another Ray cluster can tell it in no other way."""
        with self._lock:
            learned = self._registry.learned_dags()
        try:
            self._catalog.erase_rest()
            erased = self._catalog.erased(learned)
        except RaySchedError as error:
            log.warning("learned DAGs stay as they were: %s", error)
            return
        if erased:
            self.forget_dags(erased)

    @ray.method(concurrency_group="peers")
    def forget_dags(self, names: list[str]) -> None:
        """A peer deleted these; those that were learned from it are forgotten, our own stay."""
        with self._lock:
            for name in names:
                if self._registry.has_dag(name) and not self._registry.is_own(name):
                    self._registry.remove(name)
                    self._publisher.set_dag(name, None)
        self._publish()

    @ray.method(concurrency_group="peers")
    def learn_dags(self, candidates: list[str]) -> list[str]:
        """Look up DAGs that a peer named; those that exist are called from here, too."""
        with self._lock:
            unknown = [name for name in candidates if not self._registry.has_dag(name)]
        learned = self._load_dags(dict.fromkeys(unknown, 0))
        if learned:
            self._publish_and_wait()
        return learned

    @ray.method(concurrency_group="events")
    def dag_names(self) -> list[str]:
        with self._lock:
            return sorted(self._registry.dags())

    def _load_dags(self, replicas: dict[str, int]) -> list[str]:
        """Take DAGs over as they are stored, with their replicas (0: another scheduler's); returns the
        names of those that can be called."""
        loaded = []
        for name, dag in self._catalog.load_dags(replicas).items():
            try:
                with self._lock:
                    self._registry.begin_create(dag, lambda function: True)
                    self._registry.commit(dag, replicas[name])
                    self._publisher.set_dag(name, dag.SerializeToString())
            except RaySchedError as error:
                log.warning("dag=%s is stored but cannot be called: %s", name, error)
                continue
            loaded.append(name)
        return loaded

    # --- calls that may be lost ---

    @ray.method(concurrency_group="lists")
    def settle_calls(self, doubtful: Sequence[Doubtful]) -> list[Doubtful]:
        """Write the error value for those that are lost; gives those that are open.

        Raises KvsError, NoResourcesError, TimedOutError.
        """
        if not self._fresh.wait(FRESH_S):  # after a restart its table is empty
            raise NoResourcesError("the Policy has not told yet which executors there are: try again")
        with self._lock:
            known = frozenset(self._table.executors)
        return settle(self._config, self._kvs, doubtful, known)

    # --- the table ---

    @ray.method(concurrency_group="events")
    def on_executors(self, update: Update) -> None:
        """What the Policy knows of the executors."""
        with self._lock:
            outcome = self._replica.apply(update)
            if outcome is Outcome.APPLIED:
                for record in update.executors:
                    self._table.dirty[record.ip, record.tid] = None
                self._table.dirty.update(dict.fromkeys(update.removed))
                self._fresh.set()
                new_policy = update.epoch != self._policy_epoch
                self._policy_epoch = update.epoch
        if outcome is Outcome.GAP:
            self._ask_policy()
        elif outcome is Outcome.APPLIED:
            if new_policy and self._recovered.is_set():
                self._reconcile()
            self._publish()

    def _ask_policy(self) -> None:
        def got(update: Update | None, error: BaseException | None) -> None:
            if update is not None:
                self._lane.run(lambda: self.on_executors(update))

        self._lane.ask(self._policy, "whole_table", (), got)

    def _reconcile(self) -> None:
        """Tell the Policy which DAGs need pins: it may have missed something, or begun anew."""
        as_of = time.monotonic()
        with self._lock:
            dags = {
                name: pin_requests(dag, number) for name, (dag, number) in self._registry.own_dags().items()
            }
            creating = self._registry.in_creation()
        self._policy.tell("reconcile", dags, creating, as_of)

    @ray.method(concurrency_group="events")
    def whole_table(self) -> Update | None:
        """For an ingress that starts or missed something; None until this Scheduler knows it itself."""
        now = time.monotonic()
        with self._lock:
            if not self._recovered.is_set() or not self._replica.may_decide(now):
                return None
            return self._publisher.whole(now)

    def _publish(self, *, always: bool = False, heartbeat: bool = False) -> Sequence[Future[Any]]:
        """Tell the ingresses what changed, and so renew their leases; not on a table that is out of date."""
        now = time.monotonic()
        with self._lock:
            if not self._recovered.is_set() or not self._replica.may_decide(now):
                return ()
            if always:
                return self._ingresses.ask(self._publisher.next_update(now))
            # An ingress that does not keep up is told later, of all that changed, in one piece.
            if (heartbeat or self._publisher.has_changes()) and self._ingresses.has_room():
                self._ingresses.tell(self._publisher.next_update(now))
            return ()

    def _publish_and_wait(self) -> None:
        """Publish, and wait until every ingress has it, so that what was acknowledged holds there.

        An ingress that does not answer loses its lease; after that it asks.
        """
        futures = self._publish(always=True)
        deadline = time.monotonic() + self._config.scheduler.lease_s
        for future in futures:
            try:
                future.result(max(0.0, deadline - time.monotonic()))
            except Exception as error:
                log.warning("the ingress did not take the update: %s", error)

    def _run(self) -> None:
        self._recover()
        next_reconcile = 0.0
        while not self._stopping.wait(self._config.scheduler.heartbeat_s):
            now = time.monotonic()
            with self._lock:
                self._table.age(now)
                self._tell_bookings()
            if now >= next_reconcile:
                self._reconcile()
                self._lane.run(self._forget_erased)
                next_reconcile = now + self._config.stats.policy_period_s
            if not self._replica.may_decide(time.monotonic()):
                self._ask_policy()
            self._publish(heartbeat=True)
            batch = self._arrivals.take()
            if batch is not None:
                self._stats.tell("record", batch)

    def _recover(self) -> None:
        """Read back what was acknowledged before a restart; nothing is answered until that is done."""
        while not self._stopping.is_set():
            try:
                self._learn_functions(self._catalog.functions())
                loaded = self._load_dags(self._catalog.read_dag_index())
                if loaded:
                    log.info("dags=%d were read back from the key-value store", len(loaded))
            except RaySchedError as error:
                log.warning("waiting for the key-value store: %s", error)
                self._stopping.wait(RETRY_S)
                continue
            self._recovered.set()
            self._reconcile()
            self._ask_policy()
            return

    def _wait_recovered(self) -> None:
        if not self._recovered.wait(self._config.scheduler.request_timeout_s):
            raise NoResourcesError("the scheduler still waits for the key-value store: try again")

    # --- for Python programs on the cluster ---

    @ray.method(concurrency_group="api")
    def register(self, function: Any, name: str) -> str:
        """Register a function, or a tuple `(cls, args)` of a class with `run`; returns the name.

        Executors call a function as `function(library, ...)`; of a class each makes one
        `cls(library, *args)`, whose `run(library, ...)` every call there shares.

        Raises BadMessageError, KvsError, TimedOutError.
        """
        with self._counting_refusals():
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
        until = time.monotonic() + timeout_s
        with self._counting_refusals():
            while True:
                try:
                    self.create_dag(dag, num_replicas)
                    return name
                except NoResourcesError:
                    if time.monotonic() + AGAIN_S > until or self._stopping.wait(AGAIN_S):
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
        with self._counting_refusals():
            self.remove_dag(name)

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

    def _place(self, call: cb.FunctionCall | cb.DagCall, failed: Callable[[BaseException], None]) -> None:
        now = time.monotonic()
        with self._lock, self._counting_refusals():
            self._counts["python"] += 1
            self._check_may_decide(now)
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

    @contextmanager
    def _counting_refusals(self) -> Iterator[None]:
        """Of what Python programs ask for; the ingress counts those on the wire."""
        try:
            yield
        except RaySchedError as error:
            with self._lock:
                self._counts[f"{REFUSED}{error_name(refusal(error))}"] += 1
            raise

    # --- for the group ---

    def why(self, name: str) -> Account:
        """How calls were decided here, and what became of functions and DAGs."""
        decisions = self._dispatcher.decisions
        told = [*decisions.about(name, self._config.policy.name, self._table), *self._requests.about(name)]
        with self._lock:
            known = [f"DAG {name} exists"] if self._registry.has_dag(name) else []
            known += [f"function {name} is registered"] if self._registry.has_function(name) else []
        return account(told, known, (decisions.since(), self._requests.since()))

    def ready(self) -> dict[str, Any]:
        self._recovered.wait(self._config.start_timeout_s)
        self._fresh.wait(self._config.start_timeout_s)
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
                "table_fresh": self._replica.may_decide(now),
                "table_age_s": round(self._replica.age_s(now), 3),
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
        yield from self._pin_time.samples()
        yield from self._create_time.samples()

    def stop(self) -> None:
        self._stopping.set()
        self._metering.stop()
        self._heart.join(5.0)
        self._lane.close()
        self._python.close()
        self._kvs.close()


def _words(error: BaseException) -> str:
    """Ours are made of names and numbers; what another one says is not known."""
    return str(error) if isinstance(error, RaySchedError) else type(error).__name__


def log_failure(future: Any) -> None:
    """For what nobody waits for."""
    error = future.exception()
    if error is not None:
        log.warning("an error value could not be stored: %s", error)
