"""What the Scheduler's actor does around the core."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from ray_sched.core.dispatch import Dispatched
from ray_sched.core.executor import ExecutorRecord
from ray_sched.core.executors import ExecutorTable
from ray_sched.core.open_calls import Doubtful, judge
from ray_sched.core.open_calls import Told as AtExecutors
from ray_sched.core.pins import pin_requests
from ray_sched.core.registry import Registry
from ray_sched.core.replication import Outcome, Publisher, Replica, Update
from ray_sched.errors import NoResourcesError, RaySchedError
from ray_sched.wire import cloudburst_pb2 as cb
from tests.faults.simulated.policy import Pinned
from tests.faults.simulated.relay import Act, Part, Relay
from tests.faults.simulated.store import Change

if TYPE_CHECKING:
    from tests.faults.simulated.world import World


Told = Callable[[str], object]
"""What a client is told: empty for success, else why not."""
FUNCTIONS = ("f", "g", "h", "i")


class Scheduler(Part):
    table: ExecutorTable
    registry: Registry

    def __init__(self, relay: Relay, name: str, world: World) -> None:
        super().__init__(relay, name)
        self._world = world

    def begin(self, *, again: bool) -> None:
        world = self._world
        self.registry = Registry()
        for function in FUNCTIONS:
            self.registry.add_function(function)
        self.table = world.table()
        self.replica = Replica(self.table, world.config.scheduler.lease_s)
        self.publisher = Publisher(self.table, world.epoch())
        self._dispatcher = world.dispatcher(self.table, self.registry.plans())  # type: ignore[arg-type]
        self._policy_epoch = -1
        self.recovered = False
        self._recover()
        self.every(world.config.scheduler.heartbeat_s, self._beat)
        self.every(5.0, self._reconcile)

    def _recover(self) -> None:
        store = self._world.store

        def asked() -> None:
            dags = dict(store.dags)
            self.relay.tell(store, self, "the DAGs", lambda: took(dags), kept=True, once=True)

        def took(dags: dict[str, tuple[cb.Dag, int]]) -> None:
            if self.recovered:
                return  # it was asked twice
            for dag, replicas in dags.values():
                self.registry.begin_create(dag)
                self.registry.commit(dag, replicas)
                self.publisher.set_dag(dag.name, dag.SerializeToString())
            self.recovered = True
            self._reconcile()
            self._ask_policy()

        took = self.mine(took)  # type: ignore[assignment]
        self.relay.tell(
            self, store, "DAGs?", asked, lambda: self.after(1.0, self._recover), kept=True, once=True
        )

    def _beat(self) -> None:
        self.table.age(self.relay.now)
        if not self.replica.may_decide(self.relay.now):
            self._ask_policy()
        self.publish(heartbeat=True)

    # --- the table ---

    def on_executors(self, update: Update) -> None:
        outcome = self.replica.apply(update)
        if outcome is Outcome.GAP:
            self._ask_policy()
        elif outcome is Outcome.APPLIED:
            for record in update.executors:
                self.table.dirty[record.ip, record.tid] = None
            self.table.dirty.update(dict.fromkeys(update.removed))
            new_policy, self._policy_epoch = update.epoch != self._policy_epoch, update.epoch
            if new_policy and self.recovered:
                self._reconcile()
            self.publish()

    def _ask_policy(self) -> None:
        policy = self._world.policy

        def asked() -> None:
            if policy.recovered:
                whole = policy.publisher.whole(self.relay.now)
                self.relay.tell(policy, self, "all executors", lambda: self.on_executors(whole))

        self.relay.tell(self, policy, "all executors?", asked)

    def _reconcile(self) -> None:
        if not self.recovered:
            return
        policy, as_of = self._world.policy, self.relay.now
        dags = {name: pin_requests(*own) for name, own in self.registry.own_dags().items()}
        creating = self.registry.in_change()
        self.relay.tell(self, policy, "reconcile", lambda: policy.reconcile(dags, creating, as_of))

    def may_decide(self) -> bool:
        return self.recovered and self.replica.may_decide(self.relay.now)

    def whole(self) -> Update | None:
        return self.publisher.whole(self.relay.now) if self.may_decide() else None

    def publish(self, *, heartbeat: bool = False, always: bool = False, taken: Act | None = None) -> None:
        """`taken`: once the ingress has it, or has lost its lease."""
        if not self.may_decide():
            if taken:
                taken()
            return
        if not (heartbeat or always or self.publisher.has_changes()):
            return
        ingress, update = self._world.ingress, self.publisher.next_update(self.relay.now)
        answered: list[Act] = [taken] if taken else []

        def finish() -> None:
            if answered:
                answered.pop()()

        def applied() -> None:
            ingress.apply(update)
            if taken:
                self.relay.tell(ingress, self, "applied", finish)

        self.relay.tell(self, ingress, "an update", applied)
        if taken:
            self.after(self._world.config.scheduler.lease_s, finish)

    # --- DAGs ---

    def create(self, dag: cb.Dag, replicas: int, told: Told) -> None:
        policy = self._world.policy
        if not self.recovered:
            told("not recovered")
            return
        try:
            self.registry.begin_create(dag)
        except RaySchedError as error:
            told(type(error).__name__)
            return
        requests = pin_requests(dag, replicas)

        def pinned(answer: Pinned | str) -> None:
            if isinstance(answer, str):
                fail(answer)
                return
            result, records = answer
            if result.reason:
                fail(result.reason)
            else:
                self._store({dag.name: (dag, replicas)}, lambda: stored(records), fail)

        def stored(records: list[ExecutorRecord | None]) -> None:
            for record in records:
                if record is not None:
                    self.table.apply(record)
                    self.table.dirty[record.ip, record.tid] = None
            self.registry.commit(dag, replicas)
            self.publisher.set_dag(dag.name, dag.SerializeToString())
            self.publish(always=True, taken=lambda: told(""))

        def fail(reason: str) -> None:
            self.registry.abort(dag.name)
            self.relay.tell(self, policy, f"release {dag.name}", lambda: policy.release(dag.name))
            told(reason)

        self.relay.ask(
            self, policy, f"pin {dag.name}", lambda done: policy.pin_dag(dag.name, requests, done), pinned
        )

    def delete(self, name: str, told: Told) -> None:
        if not self.recovered:
            told("not recovered")
            return
        try:
            self.registry.begin_delete(name)
        except RaySchedError as error:
            told(type(error).__name__)
            return

        def gone() -> None:
            policy = self._world.policy
            self.registry.remove(name)
            self.publisher.set_dag(name, None)
            self.relay.tell(self, policy, f"release {name}", lambda: policy.release(name))
            self.registry.end_delete(name)
            self.publish(always=True, taken=lambda: told(""))

        def failed(reason: str) -> None:
            self.registry.abort_delete(name)
            told(reason)

        self._store({name: None}, gone, failed)

    def _store(self, change: Change, done: Act, failed: Told) -> None:
        store = self._world.store
        done, failed = self.mine(done), self.mine(failed)

        def write() -> None:
            for name, dag in change.items():
                if dag is None:
                    store.dags.pop(name, None)
                else:
                    store.dags[name] = dag
            self.relay.tell(store, self, "stored", done, kept=True, once=True)

        def lost() -> None:
            self.after(0.0, lambda: failed("the store did not answer"))

        self.relay.tell(self, store, "DAGs", write, lost, kept=True, once=True)

    # --- calls ---

    def decide(self, call: cb.DagCall | cb.FunctionCall) -> Dispatched:
        """Raises RaySchedError."""
        now = self.relay.now
        if not self.may_decide():
            raise NoResourcesError("the scheduler does not know the executors (yet): try again")
        if isinstance(call, cb.DagCall):
            return self._dispatcher.call_dag(call, now, now)
        return self._dispatcher.call(call, now)

    def settle(self, doubtful: list[Doubtful], told: Callable[[tuple[str, list[Doubtful]]], object]) -> None:
        store, executors = self._world.store, self._world.executors
        down = {executor.address for executor in executors if not executor.up}
        verdict = judge(doubtful, AtExecutors([e.open_calls() for e in executors if e.up], unheard=down))
        lost = [call.to.key for call in verdict.lost]

        def write() -> None:
            for key in lost:
                store.values.setdefault(key, "error")
            self.relay.tell(
                store, self, "errors stored", lambda: told(("", verdict.open)), kept=True, once=True
            )

        self.relay.tell(
            self,
            store,
            f"errors for {' '.join(lost)}",
            write,
            lambda: told(("no store", [])),
            kept=True,
            once=True,
        )
