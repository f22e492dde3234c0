"""Lines of the log: their form, what holds repeats back, and the fields that they have."""

from __future__ import annotations

import io
import json
import logging

import pytest

from ray_sched import logs
from ray_sched.config import Config
from ray_sched.core.history import Ring


def test_the_first_lines_of_a_cause_come_and_the_rest_are_counted() -> None:
    limiter = logs.Limiter(burst=2, period_s=5.0)
    assert [limiter.admit("a", at) for at in (0.0, 0.1, 0.2, 0.3)] == [0, 0, None, None]
    assert limiter.admit("b", 0.4) == 0, "one cause does not hide another"
    assert limiter.admit("a", 5.0) == 2
    assert limiter.admit("a", 5.1) == 0
    assert limiter.admit("a", 5.2) is None


def test_the_causes_that_are_told_apart_are_bounded() -> None:
    limiter = logs.Limiter(burst=1)
    for number in range(2 * logs.CAUSES):
        assert limiter.admit(number, 0.0) == 0
    assert len(limiter._causes) == logs.CAUSES


@pytest.fixture
def output(logging_kept: None) -> io.StringIO:
    return io.StringIO()


def configured(output: io.StringIO, log_format: str, level: str = "INFO") -> logging.Logger:
    logs.configure(Config(host="127.0.18.3", log_format=log_format, log_level=level), "ingress")
    handler = logging.getLogger("ray_sched").handlers[0]
    assert isinstance(handler, logging.StreamHandler)
    handler.setStream(output)
    return logging.getLogger("ray_sched.test")


def test_a_line_is_keys_and_values(output: io.StringIO) -> None:
    log = configured(output, "key=value")
    log.warning("a result is lost", extra=logs.fields(id="id-1", why='it is "full"'))
    line = output.getvalue()
    assert line.startswith("time=20")
    assert (
        'level=WARNING logger=ray_sched.test msg="a result is lost" group=127.0.18.3 actor=ingress '
        'id=id-1 why="it is \\"full\\""\n'
    ) in line


def test_a_line_is_json_and_stays_one_line_with_a_traceback(output: io.StringIO) -> None:
    log = configured(output, "json")
    try:
        raise ValueError("wrong")
    except ValueError:
        log.exception("a request failed", extra=logs.fields(id="id-2"))
    (line,) = output.getvalue().splitlines()
    told = json.loads(line)
    assert told["msg"] == "a request failed"
    assert told["id"] == "id-2"
    assert told["traceback"].endswith("ValueError: wrong")


def test_a_flood_of_one_cause_is_a_few_lines_and_debug_is_all_there(output: io.StringIO) -> None:
    log = configured(output, "json", "DEBUG")
    for _ in range(100):
        log.warning("again")
        log.debug("each")
    log.warning("another cause")
    said = [json.loads(line)["msg"] for line in output.getvalue().splitlines()]
    assert said.count("again") == logs.BURST
    assert said.count("each") == 100
    assert said.count("another cause") == 1


def test_what_peers_do_wrong_is_told_once_for_each_cause(output: io.StringIO) -> None:
    complaints = logs.Complaints(configured(output, "json"), period_s=60.0)
    for number in range(10):
        complaints.add("a message was dropped", number)
        complaints.add("an answer was dropped", number)
    told = [json.loads(line) for line in output.getvalue().splitlines()]
    assert [(line["msg"], line["why"]) for line in told] == [
        ("a message was dropped", "0"),
        ("an answer was dropped", "0"),
    ]


def test_what_a_ring_notes_is_logged_with_its_names(output: io.StringIO) -> None:
    log = configured(output, "json")
    assert logs.teller(log, logging.DEBUG) is None
    ring = Ring(10)
    ring.heard = logs.teller(log, logging.INFO)
    ring.note(1.0, ("line", "", "f", "line"), "pin of {} is lost", "f")
    told = json.loads(output.getvalue())
    assert (told["msg"], told["id"], told["about"]) == ("pin of f is lost", "line", "f")


def test_a_flood_of_refusals_under_ever_new_names_is_a_few_lines(output: io.StringIO) -> None:
    ring = Ring(10)
    ring.heard = logs.teller(configured(output, "json"), logging.INFO)
    for number in range(100):
        ring.note(1.0, (f"d{number}",), "DAG {} was not created: {}", f"d{number}", "why")
        ring.note(1.0, (f"f{number}",), "function {} is registered", f"f{number}")
    said = [json.loads(line)["msg"] for line in output.getvalue().splitlines()]
    assert sum("was not created" in line for line in said) == logs.BURST
    assert sum("is registered" in line for line in said) == 100
