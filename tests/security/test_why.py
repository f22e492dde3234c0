"""`ray-sched why`: the stories of calls, refusals and pins of a running group."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import ray_sched
from ray_sched import story
from ray_sched.actors.group import Group
from tests.security.conftest import KEYED

pytestmark = pytest.mark.cluster

PATIENCE_S = 30.0


@pytest.fixture
def client(keyed_group: Group, keys_folder: Path) -> Iterator[ray_sched.Client]:
    # An address that no client without keys had before: see docs/security.md.
    alice = keys_folder / "clients" / "alice"
    with ray_sched.connect(KEYED, keys=alice, local_ip="127.0.18.31") as client:
        yield client


def told(group: Group, name: str, until: Callable[[str], bool] = bool) -> str:
    """The story as it is printed, once it has come so far."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        told = story.gather(name, group.why(name))
        text = story.as_text(told)
        if until(text) and not told["silent"]:
            return text
        assert time.monotonic() < deadline, text
        time.sleep(0.1)


def in_order(text: str, *parts: str) -> None:
    at = 0
    for part in parts:
        assert part in text[at:], f"{part!r} does not come next in:\n{text}"
        at = text.index(part, at) + len(part)


def test_a_call_is_told_from_its_coming_to_its_stored_result(
    client: ray_sched.Client, keyed_group: Group
) -> None:
    future = client.register(lambda library, x: x, "why_same")(1)
    future.get(timeout_s=PATIENCE_S)
    text = told(keyed_group, future.id, lambda text: "result stored" in text)
    in_order(
        text,
        f"call {future.id} of why_same came",
        "why_same: policy locality picked 127.0.18.2:",
        "call of why_same came",
        "why_same runs",
        "why_same is done",
        f"result stored at key {future.id}",
        "last heard: result stored",
    )


def test_a_failed_call_tells_the_kind_of_error_and_not_its_words(
    client: ray_sched.Client, keyed_group: Group
) -> None:
    def fails(library: Any, x: Any) -> None:
        raise ValueError(f"secret {x}")

    future = client.register(fails, "why_fails")("value")
    with pytest.raises(ray_sched.ExecutionError):
        future.get(timeout_s=PATIENCE_S)
    text = told(keyed_group, future.id, lambda text: "result stored" in text)
    in_order(text, "why_fails runs", "why_fails failed: ValueError", "result stored")
    assert "secret" not in text


def test_a_dag_call_and_its_pins_are_told(client: ray_sched.Client, keyed_group: Group) -> None:
    client.register(lambda library, x: x + 1, "why_first")
    client.register(lambda library, x: x * x, "why_second")
    client.register_dag("why_line", ["why_first", "why_second"], [("why_first", "why_second")])
    future = client.call_dag("why_line", {"why_first": [1]}, output_key="why_out")
    assert future.get(timeout_s=PATIENCE_S) == 4
    text = told(keyed_group, "why_out", lambda text: "result stored" in text)
    in_order(text, "of why_line came, result to key why_out", "why_second: policy locality picked")
    in_order(text, "why_first runs", "why_first is done, and triggers why_second", "why_second runs")

    direct = client.call_dag("why_line", {"why_first": [1]}, direct_response=True)
    assert direct.get(timeout_s=PATIENCE_S) == 4
    in_order(told(keyed_group, direct.id), "why_second is triggered by why_first", "result sent to tcp://")

    text = told(keyed_group, "why_line")
    in_order(
        text,
        "pin of why_first for DAG why_line: 127.0.18.2:",
        "accepted it",
        "all 2 pins of DAG why_line hold",
        "DAG why_line is created",
        "now: DAG why_line exists",
    )
    in_order(told(keyed_group, "why_second"), "now: function why_second is registered")
    executors = {line.split()[5] for line in text.splitlines() if "is pinned on" in line}
    for executor in executors:
        in_order(told(keyed_group, executor), "now: executor 127.0.18.2:", "its last status came")
    client.delete_dag("why_line")
    in_order(told(keyed_group, "why_line"), "DAG why_line is deleted")


def test_a_request_is_told_by_its_id_through_all_actors_and_the_executor(
    client: ray_sched.Client, keyed_group: Group
) -> None:
    client.register(lambda library: 1, "why_asked")
    client.register_dag("why_request", ["why_asked"])
    created = next(line for line in told(keyed_group, "why_request").splitlines() if "is created" in line)
    text = told(keyed_group, request_in(created), lambda text: "is answered" in text)
    in_order(
        text,
        "a request came to port 5004, and was handed to the Scheduler",
        "pin of why_asked for DAG why_request: 127.0.18.2:",
        "pin of why_asked accepted",
        "all 1 pins of DAG why_request hold",
        "DAG why_request is created",
        "the request is answered",
    )
    client.delete_dag("why_request")
    deleted = next(line for line in told(keyed_group, "why_request").splitlines() if "is deleted" in line)
    text = told(keyed_group, request_in(deleted), lambda text: "is answered" in text)
    in_order(text, "came to port 5006", "is deleted", "was told to unpin why_asked", "is answered")


def request_in(line: str) -> str:
    return line.rpartition("(request ")[2].rstrip(")")


def test_a_refused_creation_and_a_refused_call_are_told(client: ray_sched.Client, keyed_group: Group) -> None:
    with pytest.raises(ray_sched.FunctionNotFoundError):
        client.register_dag("why_refused", ["why_nothing"])
    in_order(told(keyed_group, "why_refused"), "DAG why_refused was not created: ", "'why_nothing'")
    with pytest.raises(ray_sched.NoSuchDagError):
        client.call_dag("why_refused")
    in_order(
        told(keyed_group, "why_refused"), "the Scheduler was asked to decide a call of why_refused: not known"
    )


def test_what_is_not_known_is_said_with_how_far_back_memory_goes(keyed_group: Group) -> None:
    text = told(keyed_group, "no-such-id")
    in_order(text, "Nothing is remembered of 'no-such-id'. The actors remember back to:", "ingress")
