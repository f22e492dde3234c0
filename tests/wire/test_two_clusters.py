"""Two scheduler groups in two Ray clusters, behind the same executors and the same key-value store.

Nothing but the wire lies between them: gossip, the store, and the statuses that executors send to both.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.wire.conftest import CLUSTER, Scheduler, scheduler
from tests.wire.players import LegacyClient, PlayedExecutor, Record, Stage, Verdict, messages, until

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def other(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, cluster: Scheduler
) -> Iterator[Scheduler]:
    """Beside `cluster`, in a Ray cluster of its own; that one is its peer by configuration."""
    if request.config.getoption("--target", ""):
        pytest.skip("a target is one scheduler")
    assert cluster.management is not None
    yield from scheduler(
        request, tmp_path_factory, CLUSTER, "127.0.6.4",
        "--executors", "0", "--mgmt", cluster.management.ip, "--kvs", cluster.ip, "--layout", "wide",
        layout="wide", settings={"RAY_SCHED_GOSSIP_PEERS": cluster.ip}, own_ray=True,
    )  # fmt: skip


@pytest.fixture
def second(cluster: Scheduler, other: Scheduler, node_addresses: Iterator[str]) -> Iterator[Stage]:
    """The stage of the other group, which the management node alone names: so that one finds it."""
    assert cluster.management is not None
    cluster.management.schedulers = [other.ip]
    with Stage(other.ip, node_addresses, layout=other.layout) as second:
        yield second
    cluster.management.schedulers = []


def one_function_alone(executor: PlayedExecutor) -> None:
    """In cluster mode an executor rejects a second function, whoever asks for it."""

    def verdict(pin: Record) -> Verdict:
        return Verdict.ACCEPT if executor.functions in ([], [pin.name]) else Verdict.REJECT

    executor.verdict = verdict


def calls(client: LegacyClient, dag: str, executor: PlayedExecutor) -> None:
    """Call the DAG once it is known there; the executor that holds its function gets the call."""
    key = f"called by {id(client)}"
    until(lambda: client.call_dag(dag, output_key=key).success, f"{dag} could not be called")
    executor.wait_for("schedule", where=lambda schedule: schedule.output_key == key)


def test_both_pin_and_call_on_the_same_executors(cluster_stage: Stage, second: Stage) -> None:
    first = cluster_stage
    executors = first.executors(2, also_tells=[second.scheduler_ip])
    for executor in executors:
        one_function_alone(executor)
    f, g = first.function("f"), second.function("g")
    ours, theirs = first.create_dag([f]), second.dag_name()
    # The second group has not heard of the executors yet, or not of what one of them holds since.
    until(lambda: second.client.create_dag(theirs, [g]).success, "the second group found no executor")
    assert sorted(executor.functions for executor in executors) == sorted([[f], [g]])
    holders = {executor.functions[0]: executor for executor in executors}

    for client in (first.client, second.client):
        calls(client, ours, holders[f])
        calls(client, theirs, holders[g])
    assert first.client.create_dag(theirs, [g]).error == messages.DAG_ALREADY_EXISTS

    # What the second group gives up is free for the first one, and what the first one holds stays.
    assert second.client.delete_dag(theirs).success
    holders[g].wait_for("unpin")
    until(
        lambda: first.client.call_dag(theirs).error == messages.NO_SUCH_DAG,
        "the first group did not hear of the deletion",
    )
    h, later = first.function("h"), first.dag_name()
    until(lambda: first.client.create_dag(later, [h]).success, "its executor did not come free")
    assert (holders[f].functions, holders[g].functions) == ([f], [h])
    assert holders[f].received("unpin") == []
    holders[f].mailbox.clear()
    for client in (first.client, second.client):
        calls(client, ours, holders[f])
        calls(client, later, holders[g])

    # A status that says goodbye reaches both.
    holders[f].report(running=False)
    for client in (first.client, second.client):
        until(
            lambda client=client: client.call_dag(ours).error == messages.NO_RESOURCES,  # type: ignore[misc]
            "an executor that left is called still",
        )
