from __future__ import annotations

from ray_sched.executor.dependencies import Dependencies
from ray_sched.wire import cloudburst_pb2 as cb
from ray_sched.wire import shared_pb2 as shared


def trigger(source: str, **clocks: dict[str, int]) -> cb.DagTrigger:
    message = cb.DagTrigger(source=source)
    for key, clock in clocks.items():
        message.dependencies.add(key=key, vector_clock=clock)
    return message


def test_what_came_with_triggers_and_what_was_read_is_merged() -> None:
    dependencies = Dependencies([trigger("a", k={"x": 1}), trigger("b", k={"x": 2, "y": 1}, m={"z": 1})])
    dependencies.read("k", {"y": 3})
    dependencies.read("not causal", {})
    clock, others = dependencies.of_write("out", "me")
    assert clock == {"me": 1}
    assert others == {"k": {"x": 2, "y": 3}, "m": {"z": 1}}


def test_a_write_of_a_key_that_was_read_replaces_what_was_read() -> None:
    dependencies = Dependencies()
    dependencies.read("out", {"me": 2, "you": 5})
    dependencies.read("k", {"x": 1})
    assert dependencies.of_write("out", "me") == ({"me": 3, "you": 5}, {"k": {"x": 1}})


def test_they_travel_on_with_the_places_that_cached_versions() -> None:
    earlier = trigger("a", k={"x": 1})
    version = shared.KeyVersion(key="k", vector_clock={"x": 1})
    earlier.version_locations["10.0.0.1"].keys.append(version)
    later = cb.DagTrigger(source="b")
    Dependencies([earlier]).add_to(later)
    assert list(later.dependencies) == [version]
    assert list(later.version_locations["10.0.0.1"].keys) == [version]
