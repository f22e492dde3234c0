"""Two groups that reach each other through handles, and a legacy peer of one: what gossip alone tells."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ray_sched.actors import names
from ray_sched.config import Config
from ray_sched.core.executor import MAX_FUNCTIONS
from ray_sched.kvs.client import KvsClient
from ray_sched.wire import cloudburst_pb2 as cb
from ray_sched.wire import ports
from tests.actors.in_process import group
from tests.system.conftest import eventually
from tests.wire.players import LegacyClient, PlayedExecutor, PlayedPeer, Pusher, messages

ONE, OTHER, PEER, NODE = "127.0.39.1", "127.0.39.2", "127.0.39.3", "127.0.39.4"
BUSY, MANAGEMENT = "127.0.39.5", "127.0.39.6"
CROWDED = "127.0.39.7"
CONFIG = Config(host=ONE).replace(
    **{
        "gossip.period_s": 0.2,
        "gossip.peers": (PEER,),
        "policy.random_threshold": 0.0,
        # Played executors do not go on to say that they are there.
        "scheduler.executor_timeout_s": 600.0,
        # Else the store would tell of deletions, too.
        "stats.policy_period_s": 600.0,
    }
)

Clients = tuple[LegacyClient, LegacyClient]


@pytest.fixture(scope="module")
def pusher() -> Iterator[Pusher]:
    pusher = Pusher()
    yield pusher
    pusher.close()


@pytest.fixture(scope="module")
def peer(pusher: Pusher) -> Iterator[PlayedPeer]:
    peer = PlayedPeer(PEER, pusher)
    yield peer
    peer.close()


@pytest.fixture(scope="module")
def executor(pusher: Pusher) -> Iterator[PlayedExecutor]:
    with PlayedExecutor(NODE, 0, ONE, pusher, also_tells=[OTHER]) as executor:
        yield executor


@pytest.fixture(scope="module")
def clients(
    peer: PlayedPeer, executor: PlayedExecutor, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Clients]:
    """Of both groups; the first has the store. They know the executor."""
    one = CONFIG.replace(**{"executor.runtime_dir": str(tmp_path_factory.mktemp("one"))})
    other = one.replace(host=OTHER, **{"kvs.host": ONE, "gossip.peers": ()})
    with group(one) as actors, group(other) as others, LegacyClient(ONE) as a, LegacyClient(OTHER) as b:
        executor.report()
        for known in (actors, others):
            eventually(lambda k=known: k[names.POLICY].status()["executors"], "the executor is known")  # type: ignore[misc]
        assert a.create_function("f", b"never run").success
        yield a, b


def calls(client: LegacyClient, dag: str) -> bool:
    reply = client.call_dag(dag)
    assert reply.success or reply.error in (messages.NO_SUCH_DAG, messages.NO_RESOURCES)
    return bool(reply.success)


def exists(client: LegacyClient, dag: str) -> bool:
    return bool(client.call_dag(dag).error != messages.NO_SUCH_DAG)


def test_a_function_that_another_scheduler_registered_is_known(clients: Clients) -> None:
    one, other = clients
    assert one.create_function("elsewhere", b"never run").success
    assert other.create_dag("of_it", ["elsewhere"]).success
    assert other.delete_dag("of_it").success
    assert other.create_dag("of_nothing", ["nowhere"]).error == messages.FUNC_NOT_FOUND


def test_a_deletion_reaches_the_other_group_and_so_does_what_is_created_again(clients: Clients) -> None:
    one, other = clients
    for _ in range(2):
        assert one.create_dag("comes_and_goes", ["f"]).success
        eventually(lambda: calls(other, "comes_and_goes"), "the other group learns the DAG")
        assert one.delete_dag("comes_and_goes").success
        eventually(lambda: not exists(other, "comes_and_goes"), "the other group forgets the DAG")


def test_what_a_third_scheduler_created_is_forgotten_where_it_is_deleted_alone(
    clients: Clients, peer: PlayedPeer, executor: PlayedExecutor
) -> None:
    one, other = clients
    dag = cb.Dag(name="third", functions=[cb.Dag.FunctionReference(name="theirs")])
    with KvsClient(ONE, PEER) as kvs:
        kvs.put_bytes("third", dag.SerializeToString())
    for host, client in ((ONE, one), (OTHER, other)):
        peer.tell(host, ["third"], [("theirs", NODE, 1)])
        eventually(lambda c=client: calls(c, "third"), "the DAG is learned and its executor known")  # type: ignore[misc]
    # What the peer said is not told on as if it were known here.
    told = len(peer.mailbox.all("update"))
    later = peer.wait_for(told + 3)[told + 1 :]
    assert all("third" in update.dags for update in later)
    assert not any(place.name == "theirs" for update in later for place in update.function_locations)

    assert other.delete_dag("third").success
    # All that it told of that has been heard when this has.
    assert other.create_dag("after_it", ["f"]).success
    eventually(lambda: calls(one, "after_it"), "a later DAG is learned")
    assert exists(one, "third")
    assert other.delete_dag("after_it").success


def test_who_was_taken_by_a_call_that_the_scheduler_decided_is_asked_for_no_pin(
    pusher: Pusher, tmp_path_factory: pytest.TempPathFactory
) -> None:
    config = CONFIG.replace(
        host=BUSY,
        mgmt=MANAGEMENT,  # where nobody is: it makes this cluster mode
        **{"gossip.peers": (), "executor.runtime_dir": str(tmp_path_factory.mktemp("busy"))},
    )
    with (
        group(config) as actors,
        LegacyClient(BUSY) as client,
        PlayedExecutor(NODE, 2, BUSY, pusher, reports_calls=False) as executor,
    ):

        def free() -> list[bool]:
            return [known["free"] for known in actors[names.POLICY].status()["executors"]]

        executor.report()
        assert client.create_function("f", b"never run").success
        eventually(lambda: free() == [True], "the Policy knows the executor")
        scheduler, call = actors[names.SCHEDULER], cb.FunctionCall(name="f", response_key="k")

        def is_decided() -> bool:
            decision = scheduler.decide(ports.FUNCTION_CALL, call.SerializeToString(), time.monotonic() + 10)
            return bool(decision.sends)

        eventually(is_decided, "the Scheduler knows it, too")
        # Not that it has gone: it says nothing meanwhile.
        eventually(lambda: free() == [False], "the Policy hears that it is taken", 10.0)
        assert client.create_dag("dag", ["f"]).error == messages.NO_RESOURCES
        assert executor.received("pin") == []
        executor.report()
        eventually(lambda: client.create_dag("dag", ["f"]).success, "it comes free")


def test_peers_cannot_say_that_an_executor_holds_more_than_it_could_say_itself(tmp_path: Path) -> None:
    config = Config(host=CROWDED).replace(**{"executor.runtime_dir": str(tmp_path)})
    with group(config) as actors:
        policy = actors[names.POLICY]
        for first in (0, MAX_FUNCTIONS // 2, MAX_FUNCTIONS):  # the last of them in vain
            told = [(f"f{first + number}", (NODE, 0)) for number in range(MAX_FUNCTIONS // 2)]
            policy.merge_locations([*told, ("\u20ac" * 342, (NODE, 0))])  # of 1,026 bytes
        (executor,) = policy.status()["executors"]
        assert set(executor["functions"]) == {f"f{number}" for number in range(MAX_FUNCTIONS)}
        assert policy._believed([("f0", (NODE, 0)), ("another", (NODE, 0))]) == [("f0", (NODE, 0))]
