"""Which ports a group needs, and who is told to hold one."""

from __future__ import annotations

import os
import socket

import pytest

from ray_sched.bound_ports import check_free, group_ports, holder
from ray_sched.config import Config
from ray_sched.errors import PortTakenError

HOST = "127.0.5.72"


def test_a_group_binds_the_scheduler_ports_the_store_and_seven_for_each_executor() -> None:
    one = group_ports(Config(host=HOST).replace(**{"executor.count": 1}))
    assert {4999, 5000, 5006, 5007, 5008, 5010, 5011, 6450, 6200} <= set(one)
    two = group_ports(Config(host=HOST).replace(**{"executor.count": 2}))
    assert sorted(set(two) - set(one)) == [4001, 4011, 4021, 4031, 4041, 4051, 5501]
    foreign = group_ports(Config(host=HOST).replace(**{"kvs.host": "127.0.5.73"}))
    assert 6450 not in foreign and 6200 not in foreign


@pytest.mark.parametrize("bound", [HOST, "0.0.0.0"])
def test_the_holder_is_named_whether_it_binds_the_address_or_all(bound: str) -> None:
    with socket.create_server((bound, 0)) as server:
        assert holder(HOST, server.getsockname()[1]).startswith(f"process {os.getpid()} (")


def test_a_port_that_is_taken_is_refused_with_what_it_is_for() -> None:
    with (
        socket.create_server((HOST, 6200)),
        pytest.raises(PortTakenError, match=rf"port 6200 \(KVS storage\) on {HOST} is taken by process"),
    ):
        check_free(Config(host=HOST))


def test_an_ipv6_socket_that_takes_ipv4_as_well_is_found() -> None:
    with socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True) as server:
        assert holder(HOST, server.getsockname()[1]).startswith(f"process {os.getpid()} (")


def test_a_connection_that_is_closing_takes_no_port() -> None:
    with socket.create_server((HOST, 5003)) as server, socket.create_connection((HOST, 5003)):
        server.accept()[0].close()
    check_free(Config(host=HOST))


def test_an_address_of_another_machine_is_left_to_the_cluster() -> None:
    check_free(Config(host="192.0.2.77", ray_address="127.0.0.1:6379"))
