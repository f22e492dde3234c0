"""A group that admits holders of keys alone: everything works with them, nothing without."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import zmq
from click.testing import CliRunner

import ray_sched
from ray_sched import keys
from ray_sched.actors.group import Group
from ray_sched.cli import _Screen, main
from ray_sched.config import Config
from ray_sched.errors import ConfigError, NotRunningError, TimedOutError
from ray_sched.kvs.client import KvsClient
from ray_sched.wire.curve import Guard, Keys
from ray_sched.wire.sockets import PushSockets, bind_pull
from tests.security.admission import CLIENT, Port, check, holders_of, is_of_zeromq, rows
from tests.security.conftest import KEYED as HOST
from tests.security.processes import listening

PATIENCE_S = 30.0
CLIENT_IP = "127.0.18.32"


@pytest.fixture(scope="module")
def stranger_keys(keys_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A client's folder whose own key nobody knows; the group's keys in it are right."""
    other = tmp_path_factory.mktemp("stranger")
    handed = keys.new("mallory", other)
    for name in ("group", "executor"):
        (handed / f"{name}.key").write_bytes((keys_folder / f"{name}.key").read_bytes())
    return handed


@pytest.fixture
def client(keyed_group: Group, keys_folder: Path) -> Iterator[ray_sched.Client]:
    alice = keys_folder / "clients" / "alice"
    with ray_sched.connect(HOST, keys=alice, local_ip=CLIENT_IP) as client:
        yield client


@pytest.mark.cluster
def test_all_ways_work_with_a_key(client: ray_sched.Client, keyed_group: Group) -> None:
    incr = client.register(lambda library, x: x + 1, "incr")
    client.register(lambda library, x: x * x, "square")
    assert incr(41).get(timeout_s=PATIENCE_S) == 42
    client.register_dag("line", ["incr", "square"], [("incr", "square")])
    assert client.call_dag("line", {"incr": [1]}).get(timeout_s=PATIENCE_S) == 4
    assert client.call_dag("line", {"incr": [2]}, direct_response=True).get(timeout_s=PATIENCE_S) == 9
    next_one = ray_sched.Continuation("line", {})
    assert client.call_dag("line", {"incr": [1]}, continuation=next_one).get(timeout_s=PATIENCE_S) == 25

    client.put("key", 20)
    assert client.get("key") == 20
    assert incr(ray_sched.CloudburstReference("key")).get(timeout_s=PATIENCE_S) == 21

    scheduler = ray_sched.get_scheduler(keyed_group.name)
    assert ray.get(scheduler.call_dag.remote("line", {"incr": [3]}), timeout=PATIENCE_S) == 16
    assert ray.get(scheduler.call.remote("incr", 1), timeout=PATIENCE_S) == 2


@pytest.mark.cluster
def test_functions_send_each_other_messages_between_executors(client: ray_sched.Client) -> None:
    def meet(library: Any, mine: str) -> Any:
        library.put(mine, library.getid())
        other = "left" if mine == "right" else "right"
        deadline = time.monotonic() + PATIENCE_S
        while (where := library.get(other)) is None and time.monotonic() < deadline:
            time.sleep(0.05)
        while time.monotonic() < deadline:
            library.send(where, mine.encode())
            if messages := library.recv():
                library.send(where, mine.encode())
                return messages[0][1].decode()
            time.sleep(0.05)
        return "nothing came"

    # Two functions of one DAG without a connection: they run at once, on two executors.
    client.register(meet, "meet_left")
    client.register(meet, "meet_right")
    client.register(lambda library, *came: sorted(came), "met")
    client.register_dag(
        "meeting",
        ["meet_left", "meet_right", "met"],
        [("meet_left", "met"), ("meet_right", "met")],
    )
    came = client.call_dag("meeting", {"meet_left": ["left"], "meet_right": ["right"]})
    assert came.get(timeout_s=PATIENCE_S) == ["left", "right"]


def states(keyed_group: Group) -> dict[str, Any]:
    status = keyed_group.status()
    ingress = status["ingress"]["counts"]
    return {
        "pids": {role: answer["pid"] for role, answer in status.items()},
        "executors": len(status["policy"]["executors"]),
        "calls": ingress.get("calls", 0) + ingress.get("queued_calls", 0),
        "puts": status["kvs"]["puts"],
    }


def listening_ports(client: ray_sched.Client, keyed_group: Group) -> tuple[list[Port], list[Port]]:
    """All ports of the group's processes and the client's, those for direct responses among them; and what
    these processes have at other addresses."""
    client.register(lambda library: 1, "one")
    client.register_dag("direct", ["one"])
    assert client.call_dag("direct", direct_response=True).get(timeout_s=PATIENCE_S) == 1
    scheduler = ray_sched.get_scheduler(keyed_group.name)
    assert ray.get(scheduler.call_dag.remote("direct"), timeout=PATIENCE_S) == 1

    pids = {role: status["pid"] for role, status in keyed_group.status().items()}
    found = [Port(role, *address) for role, pid in pids.items() for address in sorted(listening([pid]))]
    own = [Port(CLIENT, *address) for address in sorted(listening([os.getpid()])) if address[0] == CLIENT_IP]
    return [port for port in found if port.ip == HOST] + own, [port for port in found if port.ip != HOST]


@pytest.mark.cluster
def test_strangers_are_not_heard_and_nothing_dies(
    client: ray_sched.Client, keyed_group: Group, stranger_keys: Path, keys_folder: Path
) -> None:
    client.register(lambda library, x: x, "same")
    before = states(keyed_group)

    # Without a key, as a legacy client; and with a key that nobody knows.
    with pytest.raises(NotRunningError, match="admits holders of keys alone, connect with keys=FOLDER"):
        ray_sched.connect(HOST, timeout_s=1.0)
    with pytest.raises(NotRunningError, match=r"is ours, .* among its clients'"):
        ray_sched.connect(HOST, timeout_s=1.0, keys=stranger_keys)
    mallory = Keys.of_client(stranger_keys)
    for own in (None, mallory):
        kvs = KvsClient(HOST, "127.0.18.7", timeout_s=0.5, retries=0, keys=own)
        with kvs, pytest.raises(TimedOutError):
            kvs.put_bytes("stolen", b"1")

    every, elsewhere = listening_ports(client, keyed_group)
    assert all(map(is_of_zeromq, every))
    assert elsewhere and not any(map(is_of_zeromq, elsewhere)), "at other addresses are Ray's own"
    roles = {*before["pids"], CLIENT}
    assert {(port.role, port.row()[0]) for port in every} == {
        (role, what) for role in roles for what, _, _ in rows(role)
    }

    holders = holders_of(keys_folder, keys_folder / "clients" / "alice", stranger_keys)
    for port in every:
        check(port, holders)
    for number in range(20):
        assert client.function("same")(number).get(timeout_s=PATIENCE_S) == number

    after = states(keyed_group)
    assert after["pids"] == before["pids"]
    assert after["executors"] == before["executors"] == 2
    assert after["calls"] == before["calls"] + 20
    with pytest.raises(ray_sched.errors.KeyMissingError):
        client.get("stolen")
    with pytest.raises(ray_sched.errors.KeyMissingError):
        client.get("stolen-call")


@pytest.mark.cluster
def test_a_key_is_admitted_and_refused_without_a_restart(keyed_group: Group, keys_folder: Path) -> None:
    handed = keys.new("bob", keys_folder)
    with ray_sched.connect(HOST, keys=handed) as bob:
        assert bob.list() is not None
    (keys_folder / "clients" / "bob.key").unlink()
    with pytest.raises(NotRunningError):
        ray_sched.connect(HOST, timeout_s=1.0, keys=handed)


def test_keys_are_their_owners_alone(keys_folder: Path) -> None:
    for file in keys_folder.rglob("*.key*"):
        assert file.stat().st_mode & 0o777 == 0o600, file
    assert {file.name for file in (keys_folder / "clients" / "alice").iterdir()} == {
        "alice.key_secret", "group.key", "executor.key",
    }  # fmt: skip
    with pytest.raises(ConfigError, match=r"alice\.key exists"):
        keys.new("alice", keys_folder)
    with pytest.raises(ConfigError, match="not allowed as a name"):
        keys.new("../alice", keys_folder)


def test_a_secret_that_others_can_read_is_refused(tmp_path: Path) -> None:
    handed = keys.new("carol", tmp_path)
    os.chmod(handed / "carol.key_secret", 0o640)
    with pytest.raises(ConfigError, match="can be read by others: chmod 600"):
        Keys.of_client(handed)
    with pytest.raises(ConfigError, match=r"one file \*\.key_secret, not 0"):
        Keys.of_client(tmp_path / "clients")
    (tmp_path / "group.key_secret").unlink()
    with pytest.raises(ConfigError, match="ray-sched keys new"):
        Keys.of_group(str(tmp_path))


def test_an_address_for_answers_has_to_name_its_key(keys_folder: Path) -> None:
    alice = Keys.of_client(keys_folder / "clients" / "alice")
    group = Keys.of_group(str(keys_folder))
    assert group is not None
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    guard = Guard(context, alice)
    try:
        inbox = bind_pull(context, "127.0.18.8", 45680, "nobody", keys=alice, admits="from-group")
        outbox = PushSockets(context, 8, keys=group)
        address = "tcp://127.0.18.8:45680"
        with pytest.raises(ray_sched.BadMessageError, match="has to name its key"):
            outbox.send(address, b"x")
        assert outbox.send(alice.answers_at(address), b"sealed")
        inbox.rcvtimeo = int(PATIENCE_S * 1000)
        assert inbox.recv() == b"sealed"
        with pytest.raises(ray_sched.BadMessageError):
            PushSockets(context, 8).send(alice.answers_at(address), b"x")
        outbox.close()
        inbox.close(0)
    finally:
        guard.close()
        context.term()


def test_keys_are_made_by_a_command(tmp_path: Path) -> None:
    made = CliRunner().invoke(main, ["keys", "new", "alice", "--dir", str(tmp_path / "keys")])
    assert made.exit_code == 0, made.output
    assert "connect with keys='alice' (or --keys alice)" in made.output
    assert Keys.of_client(tmp_path / "keys" / "clients" / "alice")
    again = CliRunner().invoke(main, ["keys", "new", "alice", "--dir", str(tmp_path / "keys")])
    assert again.exit_code == 2
    assert "alice.key exists" in again.output


def warnings(config: Config, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """What `up` says on stderr while parts become ready."""
    screen = _Screen(config, detached=False)
    for part in ("ray", "kvs"):
        screen.show({"part": part, "facts": {}, "seconds": 0.0})
    return capsys.readouterr().err.splitlines()


def test_up_warns_in_one_line_where_others_could_reach_it(capsys: pytest.CaptureFixture[str]) -> None:
    [warning] = warnings(Config(host="192.0.2.77"), capsys)
    assert "whoever reaches 192.0.2.77 can run code here: set security.curve" in warning
    assert warnings(Config(host=HOST), capsys) == []
    assert warnings(Config(host="192.0.2.77").replace(**{"security.curve": "/keys"}), capsys) == []


def test_up_without_the_keys_that_it_needs_says_how_to_make_them(tmp_path: Path) -> None:
    without_keys = subprocess.run(
        [sys.executable, "-m", "ray_sched.cli", "up", "--host", "127.0.18.99"],
        env={
            **os.environ,
            "RAY_SCHED_STATE_DIR": str(tmp_path),
            "RAY_SCHED_SECURITY_CURVE": str(tmp_path / "none"),
        },
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert without_keys.returncode == 2
    assert "make keys with: ray-sched keys new NAME" in without_keys.stderr
