"""The Gossip: tells the other schedulers what exists here, and takes in what they tell.

Peers are found each period: through the management node (whose reply has a time-out), in the same
Ray cluster by the names of their actors, and in the configuration. Groups of this Ray cluster are
told through their handles, foreign schedulers over the wire.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import zmq

from ray_sched.actors import names
from ray_sched.actors.link import Link
from ray_sched.actors.metering import Metering
from ray_sched.actors.process import prepare_process
from ray_sched.config import Config
from ray_sched.core.peers import Peers, locations_in, status_message
from ray_sched.errors import RaySchedError
from ray_sched.metrics import Sample
from ray_sched.wire import internal_pb2, ports, shared_pb2
from ray_sched.wire.codec import parse
from ray_sched.wire.curve import Keys
from ray_sched.wire.sockets import PushSockets

log = logging.getLogger(__name__)

MAX_PEERS = 1_000


@dataclass(frozen=True)
class GroupSender:
    """Who tells something through a handle."""

    group: str
    host: str
    kvs_host: str


class GossipActor:
    def __init__(self, config: Config) -> None:
        prepare_process(config, "gossip")
        self._config = config
        self._scheduler = Link(config.group_name, names.SCHEDULER)
        self._policy = Link(config.group_name, names.POLICY)
        self._sender = GroupSender(config.group_name, config.host, config.kvs_host)
        self._siblings: dict[str, Link] = {}
        self._sibling_hosts: dict[str, str] = {}
        self._lock = threading.Lock()
        self._peers = Peers(config.host)
        self.counts: Counter[str] = Counter()
        self._heard_at: float | None = None
        """When a peer last told something."""
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="gossip", daemon=True)
        self._thread.start()
        self._metering = Metering(config, "gossip", self._samples)

    # --- the actor's methods ---

    def on_wire_update(self, body: bytes) -> None:
        """A `SchedulerStatus` came on port 5008."""
        self.counts["updates_taken"] += 1
        self._take(parse(internal_pb2.SchedulerStatus, body))

    def on_group_update(self, sender: GroupSender, body: bytes, deleted: list[str]) -> None:
        """The same from a group of this Ray cluster, which also names the DAGs that it deleted.

        A group with another key-value store has other functions and DAGs, whatever their names.
        """
        with self._lock:
            self._sibling_hosts[sender.group] = sender.host
        if sender.kvs_host != self._config.kvs_host:
            self.counts["updates_of_other_stores"] += 1
            return
        self.counts["updates_taken"] += 1
        message = parse(internal_pb2.SchedulerStatus, body)
        with self._lock:
            gone = self._peers.deleted_elsewhere(deleted, message.dags)
        if gone:
            self._scheduler.tell("forget_dags", gone)
        self._take(message)

    def dag_created(self, name: str) -> None:
        with self._lock:
            self._peers.created(name)

    def dag_deleted(self, name: str) -> None:
        with self._lock:
            self._peers.deleted(name)

    def delete_elsewhere(self, name: str) -> None:
        """A client deleted a DAG here that was learned from a peer: whichever group has it deletes it."""
        with self._lock:
            siblings = list(self._siblings.values())
        for link in siblings:
            link.tell("delete_own", self._sender, name)

    def delete_own(self, sender: GroupSender, name: str) -> None:
        """A client of another group deleted a DAG; if it is ours, it goes."""
        if sender.kvs_host == self._config.kvs_host:
            self._scheduler.tell("delete_own_dag", name)

    def ready(self) -> dict[str, Any]:
        return {"peers_from": self._config.mgmt or "this Ray cluster"}

    def status(self) -> dict[str, Any]:
        with self._lock:
            peers = [*self._peers.hosts(), *(f"group {group}" for group in sorted(self._siblings))]
        return {"pid": os.getpid(), "peers": peers, "counts": dict(self.counts)}

    def stop(self) -> None:
        self._metering.stop()
        self._stopping.set()
        self._thread.join(self._config.threads_stop_timeout_s)

    # --- inside ---

    def _samples(self) -> Iterator[Sample]:
        with self._lock:
            peers = len(self._peers.hosts()) + len(self._siblings)
        yield Sample("peers", peers)
        for direction in ("taken", "sent", "unsent"):
            yield Sample("gossip_updates", self.counts[f"updates_{direction}"], (direction,))
        if self._heard_at is not None:
            yield Sample("gossip_age_seconds", time.monotonic() - self._heard_at)

    def _take(self, message: internal_pb2.SchedulerStatus) -> None:
        self._heard_at = time.monotonic()
        locations = locations_in(message)
        if locations:
            self._policy.tell("merge_locations", locations)
        with self._lock:
            candidates = self._peers.to_learn(message.dags, ())
        if candidates:
            self._scheduler.tell("learn_dags", candidates)

    def _run(self) -> None:
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        out = PushSockets(context, MAX_PEERS, keys=Keys.of_group(self._config.security.curve))
        management = _Management(context, self._config) if self._config.mgmt else None
        try:
            while not self._stopping.wait(self._config.gossip.period_s):
                try:
                    self._find_peers(management)
                    self._tell_peers(out)
                except Exception:  # Ray's errors, of many kinds, while the cluster is in trouble
                    log.exception("nothing is told to the peers this time")
        finally:
            if management is not None:
                management.close()
            out.close()
            context.destroy(0)

    def _find_peers(self, management: _Management | None) -> None:
        hosts = set(self._config.gossip.peers)
        if management is not None:
            try:
                hosts.update(management.schedulers())
            except RaySchedError as error:
                self.counts["management_silent"] += 1
                log.warning("the peers stay as they were: %s", error)
                with self._lock:
                    hosts.update(self._peers.hosts())
        groups = {
            group
            for group, roles in names.roles_by_group().items()
            if group != self._config.group_name and names.GOSSIP in roles
        }
        with self._lock:
            # A group of this cluster is told through its handle, not over the wire as well.
            told = {self._sibling_hosts.get(group, group) for group in groups}
            self._peers.found(host for host in list(hosts)[:MAX_PEERS] if host not in told)
            self._siblings = {
                group: self._siblings.get(group) or Link(group, names.GOSSIP) for group in groups
            }

    def _tell_peers(self, out: PushSockets) -> None:
        with self._lock:
            hosts, siblings = self._peers.hosts(), dict(self._siblings)
            deleted = self._peers.recently_deleted()
        if not hosts and not siblings:
            return
        try:
            dags = self._scheduler.get("dag_names", timeout_s=self._config.answer_timeout_s)
            locations = self._policy.get("locations", timeout_s=self._config.answer_timeout_s)
        except RaySchedError as error:
            log.warning("nothing is told to the peers this time: %s", error)
            return
        body = status_message(dags, locations).SerializeToString()
        for host in hosts:
            try:
                sent = out.send(ports.tcp(host, ports.SCHEDULER_UPDATE), body)
            except RaySchedError as error:
                log.warning("peer=%s cannot be told: %s", host, error)
                sent = False
            self.counts["updates_sent" if sent else "updates_unsent"] += 1
        for link in siblings.values():
            sent = link.tell("on_group_update", self._sender, body, deleted)
            self.counts["updates_sent" if sent else "updates_unsent"] += 1


class _Management:
    """The management node's list of schedulers; a silent one costs its time-out and nothing more."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], config: Config) -> None:
        self._timeout_s = config.gossip.mgmt_timeout_s
        self._address = ports.tcp(config.mgmt, ports.MGMT_SCHEDULERS)
        self._socket: zmq.Socket[bytes] = context.socket(zmq.REQ)
        self._socket.linger = 0
        # With these two a request that was never answered does not stand in the way of the next.
        self._socket.setsockopt(zmq.REQ_RELAXED, 1)
        self._socket.setsockopt(zmq.REQ_CORRELATE, 1)
        self._socket.rcvtimeo = int(self._timeout_s * 1000)
        self._socket.sndtimeo = int(self._timeout_s * 1000)
        self._socket.connect(self._address)

    def schedulers(self) -> list[str]:
        """Raises RaySchedError."""
        try:
            self._socket.send(b"")
            return list(parse(shared_pb2.StringSet, self._socket.recv()).keys)
        except zmq.ZMQError as error:
            raise RaySchedError(
                f"{self._address} did not answer within {self._timeout_s:g} s ({error})"
            ) from error

    def close(self) -> None:
        self._socket.close(0)
