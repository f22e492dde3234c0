"""A call that goes on from DAG to DAG: client, sink, scheduler, next DAG, and so on, under one id."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import ray_sched
from ray_sched.client import Client

pytestmark = pytest.mark.cluster

WAIT_S = 10.0
AND_THEN = ray_sched.Continuation


@pytest.fixture(scope="module")
def dags(client: Client) -> Iterator[None]:
    """Three links; the middle one has two sources, which both get the result."""
    client.register(lambda _, x: x + 1, "go_incr")
    client.register(lambda _, x: x * x, "go_square")
    client.register(lambda _, word, x: [word, x], "go_word")
    client.register(lambda _, x, pair: (pair, x), "go_join")
    client.register(lambda _, pair, x: f"{pair[0]} {pair[1]} {x}", "go_say")
    client.register(lambda _: 1 // 0, "go_fail")
    client.register_dag("go_first", ["go_incr"])
    client.register_dag(
        "go_second",
        ["go_square", "go_word", "go_join"],
        [("go_square", "go_join"), ("go_word", "go_join")],
    )
    client.register_dag("go_last", ["go_say"])
    client.register_dag("go_failing", ["go_fail"])
    yield
    for dag in ("go_first", "go_second", "go_last", "go_failing"):
        client.delete_dag(dag)


@pytest.mark.parametrize("direct", [False, True])
def test_the_whole_chain(client: Client, dags: None, direct: bool) -> None:
    chain = AND_THEN("go_second", {"go_word": ["nine is"]}, AND_THEN("go_last", {}))
    future = client.call_dag("go_first", {"go_incr": [2]}, continuation=chain, direct_response=direct)
    assert future.get(timeout_s=WAIT_S) == "nine is 3 9"


def test_the_result_is_at_the_key_that_was_asked_for(client: Client, dags: None) -> None:
    future = client.call_dag(
        "go_first", {"go_incr": [2]}, continuation=AND_THEN("go_first", {}), output_key="go_output"
    )
    assert future.get(timeout_s=WAIT_S) == 4
    assert client.get("go_output") == 4


@pytest.mark.parametrize("direct", [False, True])
def test_a_chain_into_an_unknown_dag_ends_with_an_error(client: Client, dags: None, direct: bool) -> None:
    chain = AND_THEN("go_nowhere", {})
    future = client.call_dag("go_first", {"go_incr": [2]}, continuation=chain, direct_response=direct)
    with pytest.raises(ray_sched.NoSuchDagError, match="go_nowhere"):
        future.get(timeout_s=WAIT_S)


@pytest.mark.parametrize("direct", [False, True])
def test_an_error_in_the_first_link_ends_the_chain(client: Client, dags: None, direct: bool) -> None:
    chain = AND_THEN("go_last", {"go_say": [("a", "b")]})
    future = client.call_dag("go_failing", {}, continuation=chain, direct_response=direct)
    with pytest.raises(ray_sched.ExecutionError, match="division"):
        future.get(timeout_s=WAIT_S)
