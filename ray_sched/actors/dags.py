"""The life of a DAG in the Scheduler: created and pinned, learned from a peer, read back, deleted."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable

from ray_sched.actors.catalog import Catalog
from ray_sched.actors.leasing import Leasing
from ray_sched.actors.link import Link
from ray_sched.actors.messages import Pinned
from ray_sched.config import Config
from ray_sched.core.history import REQUEST, Ring
from ray_sched.core.pins import pin_requests
from ray_sched.core.registry import Registry
from ray_sched.errors import NoResourcesError, RaySchedError, TimedOutError
from ray_sched.metrics import Histogram
from ray_sched.wire import cloudburst_pb2 as cb

log = logging.getLogger(__name__)


class Dags:
    """What changes the DAGs of the `registry`. Thread-safe; waits only where a method says so."""

    def __init__(
        self,
        config: Config,
        lock: threading.RLock,
        registry: Registry,
        catalog: Catalog,
        leasing: Leasing,
        policy: Link,
        gossip: Link,
        recovered: threading.Event,
        forgotten: Callable[[str], object],
        story: Ring,
    ) -> None:
        """`recovered` is set once the DAGs are known; `forgotten` hears, under the `lock`, of each that was
        deleted here; the `story` is told what became of which."""
        self._scheduler = config.scheduler
        self._lock = lock
        self._registry = registry
        self._catalog = catalog
        self._leasing = leasing
        self._policy = policy
        self._gossip = gossip
        self._recovered = recovered
        self._forgotten = forgotten
        self._story = story
        self.pin_time, self.create_time = Histogram("pin"), Histogram("create")

    # --- created ---

    def create(self, dag: cb.Dag, num_replicas: int = 0) -> None:
        """Pin a DAG's functions and persist it, or leave nothing; waits for the pins and for the store.

        Raises DagExistsError, InvalidDagError, FunctionNotFoundError, NoResourcesError, KvsError,
        TimedOutError.
        """
        began = time.monotonic()
        try:
            self._create(dag, num_replicas or self._scheduler.num_replicas)
        except BaseException as error:
            self._note(dag.name, "DAG {} was not created: {}", _words(error))
            raise
        self.create_time.observe(time.monotonic() - began)
        self._note(dag.name, "DAG {} is created")

    def _create(self, dag: cb.Dag, replicas: int) -> None:
        self._wait_recovered()
        if not self._registry.has_dag(dag.name):
            self._learn_functions_of(dag)
        with self._lock:
            self._registry.begin_create(dag)
        is_stored = False
        try:
            pinned = self._pin(dag, replicas)
            self._catalog.store_dag(dag)
            is_stored = True
            self._catalog.add_to_index(dag.name, replicas)
        except BaseException:
            if is_stored:  # before the name is free for another
                self._catalog.erase_soon(dag.name)
            with self._lock:
                self._registry.abort(dag.name)
            # Should this not arrive, the next `reconcile` does.
            self._policy.tell("release_dag", dag.name, REQUEST.get())
            raise
        with self._lock:
            self._leasing.on_pinned(pinned.executors)
            self._registry.commit(dag, replicas)
            self._leasing.set_dag(dag.name, dag.SerializeToString())
        self._gossip.tell("dag_created", dag.name)
        self._leasing.publish_and_wait()

    def _learn_functions_of(self, dag: cb.Dag) -> None:
        """Look up what the DAG needs and is not known here: another scheduler may have registered it."""
        with self._lock:
            unknown = {f.name for f in dag.functions if f.name and not self._registry.has_function(f.name)}
        stored = self._catalog.which_exist(unknown)
        with self._lock:
            for name in stored:
                self._registry.add_function(name)

    def _pin(self, dag: cb.Dag, replicas: int) -> Pinned:
        timeout_s = self._scheduler.request_timeout_s
        # The Policy ends it in time itself; the margin is for the call.
        began = time.monotonic()
        deadline = began + timeout_s * 0.8
        try:
            pinned: Pinned = self._policy.get(
                "pin_dag",
                dag.name,
                pin_requests(dag, replicas),
                deadline,
                REQUEST.get(),
                timeout_s=timeout_s,
            )
        except TimedOutError:
            raise
        except RaySchedError as error:  # it is being started anew
            raise NoResourcesError(f"DAG {dag.name!r} was not created, try again: {error}") from error
        self.pin_time.observe(time.monotonic() - began)
        if pinned.reason:
            raise NoResourcesError(f"DAG {dag.name!r} was not created: {pinned.reason}")
        return pinned

    # --- deleted ---

    def remove(self, name: str) -> None:
        """Forget a DAG and release its pins; waits for the store. Raises NoSuchDagError, KvsError,
        TimedOutError.

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
            self._drop(name)
            self._forgotten(name)
        self._note(name, "DAG {} is deleted")
        self._gossip.tell("dag_deleted" if own else "delete_elsewhere", name)
        try:
            if own:
                self._catalog.erase_dag(name)
                self._policy.get(
                    "release_dag", name, REQUEST.get(), timeout_s=self._scheduler.request_timeout_s
                )
        except RaySchedError as error:
            log.warning("dag=%s is deleted, but not all of it is gone yet: %s", name, error)
        finally:
            with self._lock:
                self._registry.end_delete(name)
        self._leasing.publish_and_wait()

    def remove_own(self, name: str) -> None:
        """`remove` it, if it was created here."""
        if self._registry.is_own(name):
            self.remove(name)

    def forget(self, names: Iterable[str]) -> None:
        """A peer deleted these; those that were learned from it are forgotten, our own stay."""
        with self._lock:
            for name in names:
                if self._registry.has_dag(name) and not self._registry.is_own(name):
                    self._drop(name)
        self._leasing.publish()

    def forget_erased(self) -> None:
        """Learned DAGs whose creator deleted them: one in another Ray cluster can tell it in no other way.
        Waits for the store."""
        with self._lock:
            learned = self._registry.learned_dags()
        try:
            self._catalog.erase_rest()
            erased = self._catalog.erased(learned)
        except RaySchedError as error:
            log.warning("learned DAGs stay as they were: %s", error)
            return
        if erased:
            self.forget(erased)

    def _drop(self, name: str) -> None:
        self._registry.remove(name)
        self._leasing.set_dag(name, None)

    # --- known from elsewhere ---

    def read_back(self) -> list[str]:
        """Take over the DAGs that were acknowledged before a restart; waits for the store. Gives their names.

        Raises KvsError, TimedOutError.
        """
        return self._load(self._catalog.read_dag_index())

    def learn(self, candidates: Iterable[str]) -> list[str]:
        """Look up DAGs that a peer named; those that exist are called from here, too. Waits for the store."""
        with self._lock:
            unknown = [name for name in candidates if not self._registry.has_dag(name)]
        learned = self._load(dict.fromkeys(unknown, 0))
        if learned:
            self._leasing.publish_and_wait()
        return learned

    def _load(self, replicas: dict[str, int]) -> list[str]:
        """Take DAGs over as they are stored, with their replicas (0: another scheduler's); returns the
        names of those that can be called."""
        loaded = []
        for name, dag in self._catalog.load_dags(replicas).items():
            try:
                with self._lock:
                    self._registry.begin_create(dag, lambda function: True)
                    self._registry.commit(dag, replicas[name])
                    self._leasing.set_dag(name, dag.SerializeToString())
            except RaySchedError as error:
                log.warning("dag=%s is stored but cannot be called: %s", name, error)
                continue
            loaded.append(name)
        return loaded

    # --- their pins ---

    def reconcile(self) -> None:
        """Tell the Policy which DAGs need pins: it may have missed something, or begun anew."""
        as_of = time.monotonic()
        with self._lock:
            dags = {
                name: pin_requests(dag, number) for name, (dag, number) in self._registry.own_dags().items()
            }
            creating = self._registry.in_change()
        self._policy.tell("reconcile", dags, creating, as_of)

    def _note(self, name: str, what: str, *facts: object) -> None:
        # What is remembered and logged is short, however long the name of what was refused.
        name = name[: self._scheduler.max_name_bytes]
        self._story.note(time.monotonic(), (name,), what, name, *facts)

    def _wait_recovered(self) -> None:
        if not self._recovered.wait(self._scheduler.request_timeout_s):
            raise NoResourcesError("the scheduler still waits for the key-value store: try again")


def _words(error: BaseException) -> str:
    """Ours are made of names and numbers; what another one says is not known."""
    return str(error) if isinstance(error, RaySchedError) else type(error).__name__
