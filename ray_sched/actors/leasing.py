"""The Scheduler's copy of the Policy's table, and what the ingresses are told of it and of the DAGs.

An ingress decides calls under a lease that each update renews. So nothing is published while this
copy is out of date itself, or while it is not known which DAGs there are.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from typing import Any

from ray_sched.actors.ingresses import Ingresses
from ray_sched.actors.link import Lane, Link
from ray_sched.config import Config
from ray_sched.core.executor import Address, ExecutorRecord
from ray_sched.core.executors import ExecutorTable
from ray_sched.core.replication import Outcome, Publisher, Replica, Update
from ray_sched.errors import NoResourcesError

log = logging.getLogger(__name__)


class Leasing:
    """Thread-safe, but for `table`, which whoever holds the `lock` may use."""

    def __init__(
        self,
        config: Config,
        lock: threading.RLock,
        policy: Link,
        ingresses: Ingresses,
        lane: Lane,
        recovered: threading.Event,
        on_new_policy: Callable[[], None],
    ) -> None:
        """`recovered` is set once the DAGs are known; `on_new_policy` hears of a Policy that began anew."""
        self._lock = lock
        self._policy = policy
        self._ingresses = ingresses
        self._lane = lane
        self._recovered = recovered
        self._on_new_policy = on_new_policy
        self._lease_s = config.scheduler.lease_s
        self.table = ExecutorTable(
            config.policy,
            local=config.local,
            pin_grace_s=config.scheduler.pin_grace_s,
            executor_timeout_s=config.scheduler.executor_timeout_s,
        )
        self._replica = Replica(self.table, self._lease_s)
        self._policy_epoch = -1
        self._publisher = Publisher(self.table, epoch=random.SystemRandom().getrandbits(48))
        self.fresh = threading.Event()
        """Set once the Policy has told which executors there are."""

    # --- the copy ---

    def on_executors(self, update: Update) -> None:
        """What the Policy knows of the executors."""
        with self._lock:
            outcome = self._replica.apply(update)
            if outcome is Outcome.APPLIED:
                self._pass_on((record.ip, record.tid) for record in update.executors)
                self._pass_on(update.removed)
                self.fresh.set()
                new_policy = update.epoch != self._policy_epoch
                self._policy_epoch = update.epoch
        if outcome is Outcome.GAP:
            self.ask_policy()
        elif outcome is Outcome.APPLIED:
            if new_policy and self._recovered.is_set():
                self._on_new_policy()
            self.publish()

    def on_pinned(self, executors: Iterable[ExecutorRecord]) -> None:
        """What the Policy's answer to a pin says of the executors, ahead of its next update."""
        with self._lock:
            for record in executors:
                self.table.apply(record)
                self._pass_on([(record.ip, record.tid)])

    def _pass_on(self, addresses: Iterable[Address]) -> None:
        self.table.dirty.update(dict.fromkeys(addresses))

    def ask_policy(self) -> None:
        """Ask for the whole table, and take it in when it comes."""

        def got(update: Update | None, error: BaseException | None) -> None:
            if update is not None:
                self._lane.run(lambda: self.on_executors(update))

        self._lane.ask(self._policy, "whole_table", (), got)

    def is_fresh(self, now: float) -> bool:
        """Whether the Policy has told of the executors lately."""
        return self._replica.may_decide(now)

    def age_s(self, now: float) -> float:
        """Seconds since the Policy's last word."""
        return self._replica.age_s(now)

    def may_decide(self, now: float) -> bool:
        """Whether calls can be decided, here and under a lease."""
        return self._recovered.is_set() and self.is_fresh(now)

    def check_may_decide(self, now: float) -> None:
        """Raise NoResourcesError where calls cannot be decided now."""
        if not self.may_decide(now):
            raise NoResourcesError("the scheduler does not know how the executors are just now: try again")

    # --- what the ingresses are told ---

    def set_dag(self, name: str, dag: bytes | None) -> None:
        """A DAG came to be, or (None) is no more; told with the next update."""
        self._publisher.set_dag(name, dag)

    def whole(self) -> Update | None:
        """For an ingress that starts or missed something; None while nothing may be leased."""
        now = time.monotonic()
        with self._lock:
            return self._publisher.whole(now) if self.may_decide(now) else None

    def publish(self, *, heartbeat: bool = False) -> None:
        """Tell the ingresses what changed, and (as a heartbeat: though nothing did) renew their leases.

        One that does not keep up is told later, of all that changed, in one piece.
        """
        now = time.monotonic()
        with self._lock:
            has_news = heartbeat or self._publisher.has_changes()
            if has_news and self.may_decide(now) and self._ingresses.has_room():
                self._ingresses.tell(self._publisher.next_update(now))

    def publish_and_wait(self) -> None:
        """Publish, and wait until every ingress has it, so that what was acknowledged holds there.

        An ingress that does not answer loses its lease; after that it asks.
        """
        deadline = time.monotonic() + self._lease_s
        for future in self._ask_ingresses():
            try:
                future.result(max(0.0, deadline - time.monotonic()))
            except Exception as error:
                log.warning("the ingress did not take the update: %s", error)

    def _ask_ingresses(self) -> Sequence[Future[Any]]:
        now = time.monotonic()
        with self._lock:
            return self._ingresses.ask(self._publisher.next_update(now)) if self.may_decide(now) else ()
