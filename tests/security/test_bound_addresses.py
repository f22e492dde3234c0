"""A running group listens on its own address and nowhere else; Ray on loopback."""

from __future__ import annotations

import os

import psutil
import pytest

from ray_sched.actors.group import Group
from ray_sched.bound_ports import group_ports
from tests.security.conftest import CONFIG
from tests.security.processes import listening

pytestmark = pytest.mark.cluster

LOOPBACK = {"127.0.0.1", "::1", "::ffff:127.0.0.1"}


def test_a_group_listens_on_its_address_and_ray_on_loopback(group: Group) -> None:
    actors = {status["pid"] for status in group.status().values()}
    own = listening(actors)
    assert {port for ip, port in own if ip == CONFIG.host} >= set(group_ports(CONFIG))
    assert {ip for ip, _ in own} <= {CONFIG.host, *LOOPBACK}

    # Ray's own processes, and whatever else they started, are children of this one.
    processes = {child.pid for child in psutil.Process(os.getpid()).children(recursive=True)}
    everything = listening(pid for pid in processes if psutil.pid_exists(pid))
    assert len(everything) > len(own)
    assert {ip for ip, _ in everything} <= {CONFIG.host, *LOOPBACK}
