from __future__ import annotations

import pytest

from ray_sched.core.destination import Destination
from ray_sched.wire import cloudburst_pb2 as cb


def then(**last: str) -> cb.Continuation:
    return cb.Continuation(name="next", call=cb.DagCall(**last))


@pytest.mark.parametrize(
    ("schedule", "address", "key"),
    [
        (cb.DagSchedule(), "", "id"),
        (cb.DagSchedule(output_key="out"), "", "out"),
        (cb.DagSchedule(response_address="tcp://a", output_key="out"), "tcp://a", "out"),
        (cb.DagSchedule(continuation=cb.Continuation(), output_key="out"), "", "out"),
        (cb.DagSchedule(continuation=then(response_address="tcp://b")), "tcp://b", "id"),
        (cb.DagSchedule(continuation=then(output_key="end"), response_address="tcp://a"), "", "end"),
        (cb.DagSchedule(continuation=then(), response_address="tcp://a"), "tcp://a", "id"),
        (
            cb.DagSchedule(
                continuation=cb.Continuation(
                    name="next", call=cb.DagCall(output_key="between", continuation=then(output_key="end"))
                )
            ),
            "",
            "end",
        ),
    ],
)
def test_an_error_goes_where_the_caller_waits(schedule: cb.DagSchedule, address: str, key: str) -> None:
    schedule.id = "id"
    to = Destination.of_error(schedule)
    assert (to.address, to.key) == (address, key)


def test_a_causal_result_is_its_client_s_write() -> None:
    to = Destination.of_result(cb.DagSchedule(id="id", consistency=cb.MULTI, client_id="me"))
    assert (to.causal, to.writer) == (True, "me")
    to = Destination.of_call(cb.FunctionCall(response_key="key", consistency=cb.SINGLE))
    assert (to.key, to.causal, to.writer) == ("key", True, "base")
