"""What a scheduler has to do with a management node, and with the other schedulers that this one names."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from tests.wire.conftest import Scheduler
from tests.wire.players import (
    AnnaClient,
    PlayedManagement,
    PlayedPeer,
    Stage,
    dag,
    encode,
    messages,
    until,
)

pytestmark = pytest.mark.cluster

PATIENCE_S = 40.0
"""Several periods of a target that keeps to the legacy ones, 5 s each."""


@pytest.fixture
def management(cluster: Scheduler) -> Iterator[PlayedManagement]:
    assert cluster.management is not None
    yield cluster.management
    cluster.management.schedulers = []


@pytest.fixture
def peer(cluster_stage: Stage) -> Iterator[PlayedPeer]:
    peer = PlayedPeer(cluster_stage.node(), cluster_stage.pusher)
    yield peer
    peer.close()


@pytest.fixture
def another_peer(cluster_stage: Stage) -> Iterator[PlayedPeer]:
    peer = PlayedPeer(cluster_stage.node(), cluster_stage.pusher)
    yield peer
    peer.close()


def test_the_management_node_is_asked_for_schedulers_with_an_empty_request(
    management: PlayedManagement,
) -> None:
    asked = len(management.mailbox.all("schedulers"))
    assert set(management.mailbox.wait_for("schedulers", asked + 2, timeout_s=PATIENCE_S)) == {b""}


def test_peers_are_told_of_dags_and_locations(
    cluster_stage: Stage, management: PlayedManagement, peer: PlayedPeer
) -> None:
    [executor] = cluster_stage.executors(1)
    function = cluster_stage.function()
    name = cluster_stage.create_dag([function])
    location = {"name": function, "ip": executor.ip, "tid": executor.tid}
    management.schedulers = [cluster_stage.scheduler_ip, peer.ip]
    peer.wait_for(where=lambda told: name in told.dags and location in told.function_locations)


def test_a_peer_that_is_gone_is_told_nothing_more(
    cluster_stage: Stage, management: PlayedManagement, peer: PlayedPeer, another_peer: PlayedPeer
) -> None:
    management.schedulers = [cluster_stage.scheduler_ip, peer.ip, another_peer.ip]
    for told in (peer, another_peer):
        told.wait_for()
    management.schedulers = [cluster_stage.scheduler_ip, another_peer.ip]
    # Whom it tells this time it has asked before: after the second request nothing is on its way.
    asked = len(management.mailbox.all("schedulers"))
    management.mailbox.wait_for("schedulers", asked + 3, timeout_s=PATIENCE_S)
    before, stays = len(peer.mailbox.all("update")), len(another_peer.mailbox.all("update"))
    management.mailbox.wait_for("schedulers", asked + 6, timeout_s=PATIENCE_S)
    another_peer.wait_for(stays + 2, timeout_s=PATIENCE_S)
    assert len(peer.mailbox.all("update")) == before


def test_a_management_node_that_hangs_holds_up_nobody(
    cluster_stage: Stage, management: PlayedManagement, peer: PlayedPeer, another_peer: PlayedPeer
) -> None:
    [executor] = cluster_stage.executors(1)
    management.schedulers = [cluster_stage.scheduler_ip, peer.ip]
    peer.wait_for()
    with management.hung():
        told = len(peer.mailbox.all("update"))
        function = cluster_stage.function()
        name = cluster_stage.create_dag([function])
        assert cluster_stage.client.call_dag(name).success
        executor.wait_for("schedule")
        # The peers stay as they were, and hear what is new.
        peer.wait_for(told + 3, timeout_s=PATIENCE_S)
        peer.wait_for(where=lambda status: name in status.dags)
        assert not another_peer.mailbox.all("update")
        management.schedulers = [another_peer.ip]
    # A request that was never answered does not stand in the way of the next.
    another_peer.wait_for(where=lambda status: name in status.dags)


@pytest.fixture
def anna(cluster_stage: Stage) -> Iterator[AnnaClient]:
    """A client of the key-value store that the scheduler uses."""
    client = AnnaClient(cluster_stage.client.connect(), cluster_stage.node(), cluster_stage.pusher)
    yield client
    client.close()


def store(anna: AnnaClient, name: str, value: bytes, later: int = 0) -> None:
    """Write a key as another scheduler does, so many tenths of a second later."""
    stored = {"timestamp": int(time.time() * 10) + later, "value": value}
    answer = anna.put(name, messages.LWW, encode(messages.LWW_VALUE, stored))
    assert answer.error == messages.NO_ERROR


def test_a_peers_dag_is_learned_and_called(cluster_stage: Stage, peer: PlayedPeer, anna: AnnaClient) -> None:
    # The peer alone has heard of the executor, and of the function.
    executor = cluster_stage.executor()
    function, name = cluster_stage.name("function"), cluster_stage.dag_name()
    store(anna, name, encode(messages.DAG, dag(name, [function])))
    assert cluster_stage.client.call_dag(name).error == messages.NO_SUCH_DAG

    nonsense = [(function, "no address", 0), (function, executor.ip, 2**20), ("", executor.ip, 1)]
    places = [*nonsense, (function, executor.ip, executor.tid)]
    peer.tell(cluster_stage.scheduler_ip, [name], places)
    until(lambda: cluster_stage.client.call_dag(name).success, "the peer's DAG was not learned")
    assert all(cluster_stage.client.call_dag(name).success for _ in range(8))
    schedules = executor.wait_for("schedule", 9)
    assert {schedule.target_function for schedule in schedules} == {function}
    assert cluster_stage.client.delete_dag(name).success


def test_a_peers_dag_that_its_creator_erased_is_forgotten_and_not_learned_again(
    cluster: Scheduler, cluster_stage: Stage, peer: PlayedPeer, anna: AnnaClient
) -> None:
    """A group of ours in another Ray cluster deletes a DAG: only the store can tell that."""
    if not cluster.ray_address:
        pytest.skip("a legacy scheduler learns creations alone")
    executor = cluster_stage.executor()
    function = cluster_stage.function()
    erased, later = cluster_stage.dag_name(), cluster_stage.dag_name()
    executor.report(functions=[function])
    cluster_stage.settle()
    place = (function, executor.ip, executor.tid)
    store(anna, erased, encode(messages.DAG, dag(erased, [function])))
    peer.tell(cluster_stage.scheduler_ip, [erased], [place])
    until(lambda: cluster_stage.client.call_dag(erased).success, "the peer's DAG was not learned")

    store(anna, erased, b"", later=1)

    def is_forgotten() -> bool:
        reply = cluster_stage.client.call_dag(erased)
        return bool(reply.error == messages.NO_SUCH_DAG)

    until(is_forgotten, "the DAG was not forgotten")
    # Another peer may name it still.
    store(anna, later, encode(messages.DAG, dag(later, [function])))
    peer.tell(cluster_stage.scheduler_ip, [erased, later], [place])
    until(lambda: cluster_stage.client.call_dag(later).success, "a later DAG was not learned")
    assert is_forgotten()


def test_a_peer_that_tells_of_a_dag_without_a_body_stops_nothing(
    cluster_stage: Stage, peer: PlayedPeer
) -> None:
    cluster_stage.executors(1)
    peer.tell(cluster_stage.scheduler_ip, [cluster_stage.name("never stored")])
    name = cluster_stage.create_dag([cluster_stage.function()])
    assert cluster_stage.client.call_dag(name).success


def test_statistics_count_calls(cluster_stage: Stage, management: PlayedManagement) -> None:
    [executor] = cluster_stage.executors(1)
    function = cluster_stage.function()
    name = cluster_stage.create_dag([function])
    calls = 3
    for _ in range(calls):
        assert cluster_stage.client.call_dag(name).success
    executor.wait_for("schedule", calls)

    def counted() -> bool:
        reports = management.wait_for_statistics()
        functions = [entry for report in reports for entry in report.functions if entry.name == function]
        dags = [entry for report in reports for entry in report.dags if entry.name == name]
        # A DAG's count is its gaps in the period plus one, a function's the calls in the period.
        assert all(entry.call_count == len(entry.interarrival) + 1 for entry in dags)
        assert all(gap >= 0 for entry in dags for gap in entry.interarrival)
        return bool(dags) and sum(entry.call_count for entry in functions) == calls

    until(counted, "the calls were not counted")
