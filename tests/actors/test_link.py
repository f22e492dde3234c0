"""Calls between actors: whoever calls one that ends hears so, and what fails is logged."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import ray
from ray.exceptions import ActorDiedError

from ray_sched.actors import local_mode, names
from ray_sched.actors.link import Lane, Link
from ray_sched.errors import NoResourcesError
from tests.system.conftest import eventually

GROUP, ROLE = "test_link", "held"


class Held:
    """Its one thread is held until it stops."""

    def fail(self, error: Exception) -> None:
        raise error

    def __init__(self) -> None:
        self.begun, self.goes_on = threading.Event(), threading.Event()

    def hold(self) -> None:
        self.begun.set()
        self.goes_on.wait(10.0)

    def stop(self) -> None:
        pass


@pytest.fixture
def in_local_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_mode, "is_on", lambda: True)
    monkeypatch.setattr(ray, "is_initialized", lambda: True)


def test_what_fails_in_an_actor_that_is_told_something_is_logged_unless_it_is_a_refusal(
    in_local_mode: None, caplog: pytest.LogCaptureFixture
) -> None:
    actor = local_mode.adapted(Held, names.actor_name(GROUP, ROLE), {})()
    link = Link(GROUP, ROLE, unanswered=1)
    try:
        assert link.tell("fail", NoResourcesError("try again"))
        eventually(link.has_room, "it is answered")
        assert not caplog.records
        assert link.tell("fail", ZeroDivisionError("its words"))
        eventually(link.has_room, "it is answered")
        (record,) = caplog.records
        assert record.__dict__["fields"] == {"of": ROLE, "error": "ZeroDivisionError"}
        assert "its words" not in caplog.text
    finally:
        actor.stop()


def test_a_call_that_fails_in_a_lane_is_logged_and_the_next_is_made(
    caplog: pytest.LogCaptureFixture,
) -> None:
    lane, made = Lane("test"), threading.Event()
    lane.run(lambda: 1 // 0)
    lane.run(made.set)
    assert made.wait(10.0)
    assert [record.getMessage() for record in caplog.records] == ["a call in a lane failed"]
    lane.close()


def test_a_call_that_an_actor_did_not_begin_before_it_ended_fails_as_with_ray(
    in_local_mode: None, caplog: pytest.LogCaptureFixture
) -> None:
    actor = local_mode.adapted(Held, names.actor_name(GROUP, ROLE), {})()
    link, lane = Link(GROUP, ROLE, unanswered=1), Lane("test")
    first = link.ask("hold")
    assert actor.begun.wait(10.0)
    assert link.tell("hold")
    errors: list[Any] = []
    answered = threading.Event()

    def on_answer(result: Any, error: BaseException | None) -> None:
        errors.append(error)
        answered.set()

    lane.ask(link, "hold", (), on_answer)
    lane.run(actor.stop)
    assert answered.wait(10.0)
    actor.goes_on.set()
    first.result(10.0)
    lane.close()
    assert [type(error) for error in errors] == [ActorDiedError]
    assert link.has_room()
    assert not caplog.records
