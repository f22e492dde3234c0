"""What a restarted Scheduler reads back, and what another one finds."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from ray_sched.actors.catalog import Catalog
from ray_sched.errors import BadMessageError, LatticeMismatchError, TimedOutError
from ray_sched.kvs.client import KvsClient
from ray_sched.kvs.lattices import LWW, SetLattice, SingleCausal
from ray_sched.kvs.server import KvsServer
from ray_sched.kvs.store import Store
from ray_sched.wire import cloudburst_pb2 as cb
from tests.system.conftest import eventually

IP = "127.0.8.11"


@pytest.fixture
def kvs() -> Iterator[KvsClient]:
    server = KvsServer(IP, Store())
    server.start()
    with KvsClient(IP, IP) as client:
        yield client
    server.stop()


def dag(name: str) -> cb.Dag:
    return cb.Dag(name=name, functions=[cb.Dag.FunctionReference(name="f")])


@pytest.fixture
def catalog(kvs: KvsClient) -> Catalog:
    return Catalog(kvs, "group", causal=False)


def test_functions_are_stored_under_the_legacy_keys(kvs: KvsClient, catalog: Catalog) -> None:
    catalog.store_function(cb.Function(name="f", body=b"body"))
    stored, index = kvs.get("funcs/f"), kvs.get("funcs/index-allfuncs")
    assert isinstance(stored, LWW) and stored.value == b"body"
    assert index == SetLattice(frozenset([b"funcs/f"]))
    assert catalog.functions() == ["f"]
    assert catalog.which_exist(["f", "g"]) == ["f"]


def test_causal_functions_begin_with_version_one_and_replace_each_other(kvs: KvsClient) -> None:
    catalog = Catalog(kvs, "group", causal=True)
    catalog.store_function(cb.Function(name="f", body=b"old"))
    assert kvs.get("funcs/f") == SingleCausal({"base": 1}, frozenset([b"old"]))
    catalog.store_function(cb.Function(name="f", body=b"new"))
    stored = kvs.get("funcs/f")
    assert isinstance(stored, SingleCausal)
    assert (stored.vector_clock, stored.values) == ({"base": 2}, frozenset([b"new"]))


@pytest.mark.parametrize("name", ["", "index-allfuncs"])
def test_a_name_that_would_break_the_index_is_refused(catalog: Catalog, name: str) -> None:
    with pytest.raises(BadMessageError):
        catalog.store_function(cb.Function(name=name))


def test_a_restart_reads_what_was_acknowledged_and_not_deleted(kvs: KvsClient, catalog: Catalog) -> None:
    for name in ("a", "b", "c"):
        catalog.store_dag(dag(name))
        catalog.add_to_index(name, 2)
    catalog.remove_from_index("b")
    catalog.erase_dag("b")
    again = Catalog(kvs, "group", causal=False)
    assert again.read_dag_index() == {"a": 2, "c": 2}
    assert again.load_dags(["a", "b", "c"]) == {"a": dag("a"), "c": dag("c")}
    again.add_to_index("d e", 1)
    assert Catalog(kvs, "group", causal=False).read_dag_index() == {"a": 2, "c": 2, "d e": 1}
    assert Catalog(kvs, "other", causal=False).read_dag_index() == {}


def test_a_restarted_writer_is_not_outranked_by_what_it_wrote_before(
    kvs: KvsClient, catalog: Catalog
) -> None:
    for number in range(60):  # faster than the clock of the timestamps goes
        catalog.add_to_index(f"dag{number}", 1)
        catalog.store_dag(dag("body"))
    with KvsClient(IP, IP) as other:
        again = Catalog(other, "group", causal=False)
        again.read_dag_index()
        again.remove_from_index("dag0")
        changed = dag("body")
        changed.functions.add(name="g")
        again.store_dag(changed)
    assert "dag0" not in Catalog(kvs, "group", causal=False).read_dag_index()
    assert catalog.load_dags(["body"]) == {"body": changed}


def test_dags_that_are_created_at_the_same_time_are_all_in_the_index(
    kvs: KvsClient, catalog: Catalog
) -> None:
    names = [f"dag{number}" for number in range(40)]
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda name: catalog.add_to_index(name, 1), names))
    assert Catalog(kvs, "group", causal=False).read_dag_index() == dict.fromkeys(names, 1)


def test_what_is_no_dag_of_that_name_is_left_out(kvs: KvsClient, catalog: Catalog) -> None:
    kvs.put_bytes("bytes", b"\xff\xff")
    kvs.put_bytes("other", dag("another").SerializeToString())
    kvs.put("set", SetLattice(frozenset([b"x"])))
    assert catalog.load_dags(["bytes", "other", "set", "missing"]) == {}


def test_an_index_that_was_overwritten_does_not_keep_a_restart_waiting(kvs: KvsClient) -> None:
    kvs.put_bytes("ray_sched/dags/group", b"\xff\xff")
    catalog = Catalog(kvs, "group", causal=False)
    assert catalog.read_dag_index() == {}
    assert kvs.get_bytes("ray_sched/dags/group/damaged") == b"\xff\xff"
    catalog.add_to_index("a", 1)
    assert Catalog(kvs, "group", causal=False).read_dag_index() == {"a": 1}


def test_a_name_at_which_something_else_is_stored_is_refused_and_holds_up_nothing(
    kvs: KvsClient, catalog: Catalog
) -> None:
    taken = SetLattice(frozenset([b"somebody else's"]))
    kvs.put("taken", taken)
    with pytest.raises(LatticeMismatchError):
        catalog.store_dag(dag("taken"))
    with pytest.raises(LatticeMismatchError):
        catalog.erase_dag("taken")
    catalog.erase_rest()
    assert kvs.get("taken") == taken


def test_a_dag_that_was_never_written_erases_nothing_at_its_name() -> None:
    """It may be another scheduler's."""
    store = Store()
    server = KvsServer(IP, store)
    server.start()
    with KvsClient(IP, IP, timeout_s=0.5, retries=0) as client:
        Catalog(client, "another", causal=False).store_dag(dag("theirs"))
        server.stop()
        catalog = Catalog(client, "group", causal=False)
        with pytest.raises(TimedOutError):
            catalog.store_dag(dag("theirs"))
        server = KvsServer(IP, store)
        server.start()

        def can_erase() -> bool:
            try:
                catalog.erase_rest()
                return client.get_bytes("theirs") is not None
            except TimedOutError:
                return False

        eventually(can_erase, "the store answers again")
        assert catalog.load_dags(["theirs"]) == {"theirs": dag("theirs")}
    server.stop()


def test_a_deleted_dag_that_could_not_be_erased_is_not_learned_and_erased_later() -> None:
    server = KvsServer(IP, Store())
    server.start()
    with KvsClient(IP, IP, timeout_s=0.5, retries=0) as client:
        catalog = Catalog(client, "group", causal=False)
        for name in ("a", "b"):
            catalog.store_dag(dag(name))
        kept = client.get("a"), client.get("b")
        server.stop()
        for name in ("a", "b"):
            with pytest.raises(TimedOutError):
                catalog.erase_dag(name)
        server = KvsServer(IP, Store())
        server.start()

        def answers() -> bool:
            try:
                return client.get("a") is None
            except TimedOutError:
                return False

        eventually(answers, "the store answers again")
        for name, lattice in zip(("a", "b"), kept, strict=True):
            assert lattice is not None
            client.put(name, lattice)
        assert catalog.load_dags(["a", "b"]) == {}  # a peer that names it has not heard of the deletion
        catalog.store_dag(dag("b"))  # created again
        catalog.erase_rest()
        assert catalog.load_dags(["a", "b"]) == {"b": dag("b")}
        assert client.get_bytes("a") == b""
    server.stop()
