"""The ports are those of the wire contract, in both layouts, and none of an address's ports meet."""

from __future__ import annotations

import pytest

from ray_sched.wire import ports
from ray_sched.wire.ports import CLASSIC, LAYOUTS, WIDE, Layout


def bases(layout: Layout) -> dict[str, int]:
    return {
        "pin": layout.pin,
        "unpin": layout.unpin,
        "call": layout.call,
        "schedule": layout.schedule,
        "trigger": layout.trigger,
        "depart": layout.depart,
        "user_message": layout.user_message,
    }


def test_classic_layout() -> None:
    assert bases(CLASSIC) == {
        "pin": 4000,
        "unpin": 4010,
        "call": 4020,
        "schedule": 4030,
        "trigger": 4040,
        "depart": 4050,
        "user_message": 5500,
    }


def test_wide_layout() -> None:
    assert bases(WIDE) == {
        "pin": 4000,
        "unpin": 4150,
        "call": 4300,
        "schedule": 4450,
        "trigger": 4600,
        "depart": 4750,
        "user_message": 5500,
    }
    assert WIDE.threads == 150


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_no_two_threads_of_an_address_share_a_port(layout: Layout) -> None:
    taken = [base + tid for base in bases(layout).values() for tid in range(layout.threads)]
    assert len(set(taken)) == len(taken)


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_executors_and_schedulers_fit_on_one_address(layout: Layout) -> None:
    executors = {base + tid for base in bases(layout).values() for tid in range(layout.threads)}
    assert executors.isdisjoint((*ports.REQUEST_PORTS, *ports.PUSH_PORTS))


def test_layouts_are_found_by_their_names() -> None:
    assert {name: layout.name for name, layout in LAYOUTS.items()} == {"classic": "classic", "wide": "wide"}


def test_scheduler_ports() -> None:
    assert ports.REQUEST_PORTS == (5000, 5001, 5002, 5003, 5004, 5005, 5006)
    assert {
        "call queue": ports.CALL_QUEUE,
        "status": ports.STATUS,
        "scheduler update": ports.SCHEDULER_UPDATE,
        "pin accept": ports.PIN_ACCEPT,
        "continuation": ports.CONTINUATION,
    } == {
        "call queue": 4999,
        "status": 5007,
        "scheduler update": 5008,
        "pin accept": 5010,
        "continuation": 5011,
    }
    assert sorted(ports.PUSH_PORTS) == [4999, 5007, 5008, 5010, 5011]


def test_management_ports() -> None:
    assert (ports.MGMT_STATUS, ports.MGMT_SCHEDULERS, ports.MGMT_DEPART, ports.MGMT_STATISTICS) == (
        7003,
        7004,
        7005,
        7006,
    )


def test_kvs_ports() -> None:
    assert (ports.KVS_ROUTING, ports.KVS_ROUTING_THREADS, ports.KVS_STORAGE) == (6450, 4, 6200)
    assert (ports.KVS_CLIENT_RESPONSE, ports.KVS_CLIENT_ADDRESS) == (6460, 6760)
    assert ports.KVS_CLIENT_RESPONSE + ports.KVS_CLIENT_OFFSETS <= ports.KVS_CLIENT_ADDRESS


def test_an_address_is_written_the_way_zeromq_reads_it() -> None:
    assert ports.tcp("127.0.0.9", ports.CONNECT) == "tcp://127.0.0.9:5000"
