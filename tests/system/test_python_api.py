"""Programs on the cluster: the Scheduler's handle takes and gives Python values."""

from __future__ import annotations

import os
from typing import Any

import pytest
import ray

import ray_sched
from ray_sched.messages import DagFunction

pytestmark = pytest.mark.cluster

CALL_ID = r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"


class Where:
    """Tells in which process it was unpickled last."""

    pid = 0

    def __reduce__(self) -> tuple[Any, tuple[()]]:
        return (unpickled, ())


def unpickled() -> Where:
    found = Where()
    found.pid = os.getpid()
    return found


def test_a_function_is_registered_and_called(scheduler: Any) -> None:
    assert ray.get(scheduler.register.remote(lambda _, x, y: x * y, "api_times")) == "api_times"
    assert ray.get(scheduler.call.remote("api_times", 6, 7)) == 42
    assert ray.get(scheduler.list.remote("api_t")) == ["api_times"]


def test_a_class_keeps_its_state(scheduler: Any) -> None:
    class Adder:
        def __init__(self, _: Any, step: int) -> None:
            self.step = step

        def run(self, _: Any, x: int) -> int:
            return x + self.step

    ray.get(scheduler.register.remote((Adder, (10,)), "api_adder"))
    assert ray.get(scheduler.call.remote("api_adder", 5)) == 15


@pytest.mark.parametrize("result", [None, [1, 2, 3], [], {"a": (1, "b")}, "text", b"bytes", 1.5])
def test_results_come_back_as_they_were(scheduler: Any, result: object) -> None:
    ray.get(scheduler.register.remote(lambda _, x: x, "api_same"))
    assert ray.get(scheduler.call.remote("api_same", result)) == result


def test_a_dag_runs_and_is_deleted(scheduler: Any) -> None:
    ray.get(scheduler.register.remote(lambda _, x: x + 1, "api_incr"))
    ray.get(scheduler.register.remote(lambda _, x: x * x, "api_square"))
    ray.get(scheduler.register.remote(lambda _, x, y: (x, y), "api_join"))
    ray.get(
        scheduler.register_dag.remote(
            "api_diamond",
            ["api_incr", DagFunction("api_square"), "api_join"],
            [("api_incr", "api_join"), ("api_square", "api_join")],
        )
    )
    args = {"api_incr": [1], "api_square": [5]}
    assert ray.get(scheduler.call_dag.remote("api_diamond", args)) == (2, 25)
    many = ray.get(
        [scheduler.call_dag.remote("api_diamond", {"api_incr": [n], "api_square": [n]}) for n in range(40)]
    )
    assert many == [(n + 1, n * n) for n in range(40)]
    ray.get(scheduler.delete_dag.remote("api_diamond"))
    with pytest.raises(ray_sched.NoSuchDagError, match="api_diamond"):
        ray.get(scheduler.call_dag.remote("api_diamond", args))


def test_a_result_is_unpickled_by_its_caller_and_not_in_the_scheduler(scheduler: Any) -> None:
    ray.get(scheduler.register.remote(lambda _: Where(), "api_where"))
    assert ray.get(scheduler.call.remote("api_where")).pid == os.getpid()
    ray.get(scheduler.register_dag.remote("api_where_dag", ["api_where"]))
    assert ray.get(scheduler.call_dag.remote("api_where_dag")).pid == os.getpid()
    ray.get(scheduler.delete_dag.remote("api_where_dag"))


def test_keys_are_put_and_got_and_referred_to(scheduler: Any) -> None:
    ray.get(scheduler.put.remote("api_key", {"a": 1}))
    assert ray.get(scheduler.get.remote("api_key")) == {"a": 1}
    ray.get(scheduler.register.remote(lambda _, x: x["a"] + 1, "api_deref"))
    assert ray.get(scheduler.call.remote("api_deref", ray_sched.CloudburstReference("api_key"))) == 2
    with pytest.raises(ray_sched.KeyMissingError, match="api_nothing"):
        ray.get(scheduler.get.remote("api_nothing"))


@pytest.mark.parametrize("through_dag", [False, True])
def test_what_a_function_raises_is_an_execution_error(scheduler: Any, through_dag: bool) -> None:
    ray.get(scheduler.register.remote(lambda _: 1 // 0, "api_bad"))
    if through_dag:
        ray.get(scheduler.register_dag.remote("api_bad_dag", ["api_bad"]))
        call = scheduler.call_dag.remote("api_bad_dag")
    else:
        call = scheduler.call.remote("api_bad")
    what = "DAG 'api_bad_dag'" if through_dag else "function 'api_bad'"
    with pytest.raises(
        ray_sched.ExecutionError, match=rf"{what} failed: .*division.* \(where: ray-sched why {CALL_ID} "
    ):
        ray.get(call)
    if through_dag:
        ray.get(scheduler.delete_dag.remote("api_bad_dag"))


def test_refusals_name_their_reason(scheduler: Any) -> None:
    with pytest.raises(ray_sched.FunctionNotFoundError, match="'api_unknown' failed: no such function"):
        ray.get(scheduler.call.remote("api_unknown"))
    with pytest.raises(ray_sched.BadMessageError, match="a key needs a name that is a string"):
        ray.get(scheduler.get.remote(1))
    with pytest.raises(ray_sched.NoSuchDagError, match="api_no_dag"):
        ray.get(scheduler.delete_dag.remote("api_no_dag"))
    with pytest.raises(ray_sched.FunctionNotFoundError, match="api_unknown"):
        ray.get(scheduler.register_dag.remote("api_d", ["api_unknown"]))
    ray.get(scheduler.register.remote(lambda _: 1, "api_one"))
    with pytest.raises(ray_sched.InvalidDagError, match="cycle"):
        ray.get(scheduler.register_dag.remote("api_d", ["api_one"], [("api_one", "api_one")]))
    for replicas in (-1, "2", 1.5, True):
        with pytest.raises(ray_sched.InvalidDagError, match=r"num_replicas = .* give a whole number"):
            ray.get(scheduler.register_dag.remote("api_d", ["api_one"], num_replicas=replicas))
    ray.get(scheduler.register_dag.remote("api_d", ["api_one"]))
    with pytest.raises(ray_sched.DagExistsError, match="api_d"):
        ray.get(scheduler.register_dag.remote("api_d", ["api_one"]))
    ray.get(scheduler.delete_dag.remote("api_d"))
    with pytest.raises(ray_sched.NoResourcesError, match="GPU"):
        ray.get(scheduler.register_dag.remote("api_d", [DagFunction("api_one", gpu=True)]))


def test_a_result_that_never_comes_times_out(scheduler: Any) -> None:
    def wait(_: Any, seconds: float) -> None:
        import time

        time.sleep(seconds)

    ray.get(scheduler.register.remote(wait, "api_wait"))
    with pytest.raises(ray_sched.TimedOutError, match="api_wait"):
        ray.get(scheduler.call.remote("api_wait", 3, timeout_s=0.2))
    with pytest.raises(ray_sched.TimedOutError, match="within 0 s"):  # none is not the default
        ray.get(scheduler.call.remote("api_wait", 3, timeout_s=0.0))
    ray.get(scheduler.register_dag.remote("api_wait_dag", ["api_wait"]))
    with pytest.raises(
        ray_sched.TimedOutError, match=rf"DAG 'api_wait_dag' within 0.2 s: .*ray-sched why {CALL_ID} "
    ):
        ray.get(scheduler.call_dag.remote("api_wait_dag", {"api_wait": [1]}, timeout_s=0.2))
    ray.get(scheduler.delete_dag.remote("api_wait_dag"))


def test_replicas_are_pinned_on_different_executors(scheduler: Any) -> None:
    ray.get(scheduler.register.remote(lambda _: 1, "api_many"))
    ray.get(scheduler.register_dag.remote("api_replicas", ["api_many"], num_replicas=3))
    assert ray.get(scheduler.call_dag.remote("api_replicas")) == 1
    status = ray.get(ray.get_actor(f"ray_sched:{'127.0.8.1'}:policy", "ray_sched").status.remote())
    holders = [e["address"] for e in status["executors"] if "api_many" in e["functions"]]
    assert len(holders) == 3
    with pytest.raises(ray_sched.NoResourcesError):
        ray.get(scheduler.register_dag.remote("api_too_many", ["api_many"], num_replicas=4))
    ray.get(scheduler.delete_dag.remote("api_replicas"))
