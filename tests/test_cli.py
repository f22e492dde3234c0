"""The commands as a person uses them: real processes, a real group, signals from a terminal."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import ray
from click.testing import CliRunner

import ray_sched
from ray_sched.actors import names
from ray_sched.actors.cluster import LocalCluster
from ray_sched.cli import main
from ray_sched.config import Config
from ray_sched.errors import NotRunningError
from tests.commands import PATIENCE_S, Up, assert_nothing_left, left_behind, run, runs


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RAY_SCHED_STATE_DIR", str(tmp_path / "state"))
    return tmp_path / "state"


@pytest.fixture
def ended(state: Path) -> Iterator[list[Up]]:
    """Whatever a failed test leaves running is ended."""
    ups: list[Up] = []
    yield ups
    for up in ups:
        if up.process.poll() is None:
            up.process.terminate()
        up.wait()


def test_help_needs_neither_ray_nor_zmq() -> None:
    code = "import sys, ray_sched.cli; print(sorted({'ray', 'zmq'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_the_commands_have_exactly_the_names_that_other_tools_use() -> None:
    flags = {
        command: {
            flag for option in main.commands[command].params for flag in option.opts if flag.startswith("--")
        }
        for command in main.commands
    }
    assert flags["up"] == {
        *("--host", "--executors", "--policy", "--kvs", "--kvs-path", "--mgmt", "--layout"),
        *("--address", "--config", "--detach"),
    }
    assert {"up", "down", "status", "call", "dag"} <= set(flags)
    assert {"--host"} <= flags["down"]
    assert {"--host", "--json"} <= flags["status"]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (
            ["up", "--executors", "many"],
            "--executors: executor.count = 'many' is not allowed; it must be a whole",
        ),
        (
            ["up", "--executors", "11"],
            "--executors: executor.count = 11 is not allowed; it must be at most 10",
        ),
        (
            ["up", "--policy", "fastest"],
            "policy.name = 'fastest' is not allowed; it must be one of locality, random",
        ),
        (
            ["up", "--layout", "tall"],
            "--layout: layout = 'tall' is not allowed; it must be one of classic, wide",
        ),
        (
            ["up", "--host", "192.0.2.77"],
            "host = '192.0.2.77' is not allowed; it must be an address of this machine",
        ),
        (["up", "--config", "no-such-file.yml"], "no-such-file.yml: cannot be read as a YAML file"),
        (["dag", "call", "x", "--arg", "3"], "--arg: '3' is not allowed; it must be FUNCTION=VALUE"),
        (["status", "--host", "nowhere.invalid"], "--host: host = 'nowhere.invalid' is not allowed"),
    ],
)
def test_a_wrong_value_is_refused_in_one_line_with_exit_code_2(
    state: Path, args: list[str], words: str
) -> None:
    done = run(*args)
    assert done.returncode == 2
    assert words in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert list(state.glob("*.json")) == []


def test_without_a_group_every_command_says_so(state: Path) -> None:
    for command in (
        ["status"],
        ["down"],
        ["call", "f", "--timeout-s", "1"],
        ["dag", "call", "d", "--timeout-s", "1"],
    ):
        done = CliRunner().invoke(main, [*command, "--host", "127.0.5.40"])
        assert done.exit_code == 1, command
        assert "127.0.5.40" in done.output and len(done.output.splitlines()) == 1, command


def test_a_port_that_is_taken_is_named_with_its_holder(state: Path) -> None:
    with socket.create_server(("127.0.5.41", 5006)):
        done = run("up", "--host", "127.0.5.41")
    assert done.returncode == 1
    assert f"port 5006 (DAG delete) on 127.0.5.41 is taken by process {os.getpid()} (" in done.stderr
    assert_nothing_left(state, "127.0.5.41")


def test_a_stale_file_is_noticed_and_removed(state: Path) -> None:
    entry = {
        "host": "127.0.5.42",
        "group": "g",
        "ray_address": "127.0.0.1:1",
        "pid": os.getpid(),
        "pid_started": 1,
    }
    state.mkdir()
    (state / "127.0.5.42.json").write_text(json.dumps(entry))
    assert (
        "no scheduler group of this user runs on 127.0.5.42" in run("status", "--host", "127.0.5.42").stderr
    )
    assert list(state.glob("*.json")) == []


def test_a_group_whose_ray_cluster_has_gone_is_forgotten(state: Path) -> None:
    with socket.create_server(("127.0.5.49", 0)) as free:
        port = free.getsockname()[1]
    entry = {"host": "127.0.5.49", "group": "g", "ray_address": f"127.0.5.49:{port}"}
    state.mkdir()
    (state / "127.0.5.49.json").write_text(json.dumps({**entry, "pid": 0, "pid_started": 0}))
    down = run("down", "--host", "127.0.5.49")
    assert down.returncode == 0, down.stderr
    assert "The scheduler group on 127.0.5.49 was gone already" in down.stdout
    assert list(state.glob("*.json")) == []


@pytest.mark.cluster
def test_a_group_from_up_to_down(state: Path, tmp_path: Path) -> None:
    host = "127.0.5.43"
    up = run("up", "--host", host, "--executors", "2", "--detach", "--kvs-path", str(tmp_path / "kvs.sqlite"))
    assert up.returncode == 0, up.stderr
    try:
        parts = [
            line.split()[0] for line in up.stdout.splitlines() if " ready " in line and line.startswith("  ")
        ]
        assert parts[:7] == ["ray", "kvs", "stats", "policy", "scheduler", "gossip", "ingress"]
        assert sorted(parts[7:]) == [f"executor-{host}-0", f"executor-{host}-1"]
        assert f"ray-sched status --host {host}" in up.stdout

        second = run("up", "--host", host)
        assert second.returncode == 1 and f"ray-sched down --host {host}" in second.stderr

        with ray_sched.connect(host) as client:
            client.register(lambda _, a, b: [a, b], "pair")
            client.register(lambda _, x: x * 2, "double")
            client.register_dag("doubled", ["pair", "double"], [("pair", "double")])
        assert run("call", "pair", "41", "text", "--host", host).stdout == "[41, 'text']\n"
        for direct in ([], ["--direct"]):
            args = [
                "dag",
                "call",
                "doubled",
                "--arg",
                "pair=-1",
                "--arg",
                "pair=b=c",
                *direct,
                "--host",
                host,
            ]
            assert run(*args).stdout == "[-1, 'b=c', -1, 'b=c']\n"

        unknown = run("call", "nobody", "--host", host)
        assert (
            unknown.returncode == 1 and "nobody" in unknown.stderr and len(unknown.stderr.splitlines()) == 1
        )
        failing = run("call", "double", "--host", host)
        assert failing.returncode == 1 and "missing 1 required positional argument" in failing.stderr
        no_dag = run("dag", "call", "nothing", "--host", host)
        assert no_dag.returncode == 1 and len(no_dag.stderr.splitlines()) == 1

        told = json.loads(run("status", "--json", "--host", host).stdout)
        assert set(told) == {
            *("group", "actors", "executors", "dags", "functions"),
            *("reservations", "demand", "missing_pins", "counts"),
        }
        assert set(told["actors"]) == set(parts) - {"ray"}
        assert sorted(name for executor in told["executors"] for name in executor["functions"]) == [
            "double",
            "pair",
        ]
        assert told["functions"] == ["double", "pair"]
        assert [dag["name"] for dag in told["dags"]] == ["doubled"]
        assert told["counts"]["executors"] == 2
        reserved = f"pin/doubled/double/{host}:"
        assert [name for name in told["reservations"]["held"] if name.startswith(reserved)]
        assert told["reservations"]["missing"] == [] and told["demand"] == {}
        table = run("status", "--host", host).stdout
        assert all(word in table for word in (f"executor-{host}-1", f"{host}:0", reserved, "pair, double"))
    finally:
        down = run("down", "--host", host)
    assert down.returncode == 0, down.stderr
    assert_nothing_left(state, host)


@pytest.mark.cluster
@pytest.mark.parametrize(
    ("at", "number"),
    # SIGINT, and once all is up: tests/faults/test_everything_killed.py
    [("  ray ", signal.SIGHUP), ("  policy ", signal.SIGTERM)],
)
def test_a_signal_stops_everything_at_any_moment(
    state: Path, ended: list[Up], at: str, number: signal.Signals
) -> None:
    up = Up("--host", "127.0.5.44", "--executors", "1")
    ended.append(up)
    up.wait_for(at)
    up.signal(number)
    assert up.wait() == 130, up.lines
    assert_nothing_left(state, "127.0.5.44")


@pytest.mark.cluster
def test_a_second_signal_stops_everything_at_once(state: Path, ended: list[Up]) -> None:
    up = Up("--host", "127.0.5.45", "--executors", "0")
    ended.append(up)
    up.wait_for("Stop it with Ctrl-C")
    below = psutil.Process(up.process.pid).children(recursive=True)
    up.signal(signal.SIGINT)
    up.wait_for("Stopping everything")
    up.signal(signal.SIGINT)
    assert up.wait() == 130, up.lines
    assert [process for process in below if runs(process)] == []
    assert_nothing_left(state, "127.0.5.45")


@pytest.mark.cluster
def test_what_a_killed_group_left_is_cleaned_up_by_the_next_command(state: Path, ended: list[Up]) -> None:
    up = Up("--host", "127.0.5.46", "--executors", "0")
    ended.append(up)
    up.wait_for("Stop it with Ctrl-C")
    holder = json.loads((state / "127.0.5.46.json").read_text())
    os.kill(holder["pid"], signal.SIGKILL)
    assert up.wait() == 1
    assert "ended unexpectedly" in up.lines[-1]
    assert Path(holder["folder"]).exists()
    assert run("down", "--host", "127.0.5.46").returncode == 1
    assert not Path(holder["folder"]).exists()
    assert_nothing_left(state, "127.0.5.46")


@pytest.mark.cluster
@pytest.mark.parametrize(("flags", "at"), [([], "Stop it with Ctrl-C"), (["--detach"], "  ray ")])
def test_an_up_that_is_killed_before_it_has_let_go_takes_its_group_with_it(
    state: Path, ended: list[Up], flags: list[str], at: str
) -> None:
    up = Up("--host", "127.0.5.47", "--executors", "0", *flags)
    ended.append(up)
    up.wait_for(at)
    up.process.kill()
    deadline = time.monotonic() + PATIENCE_S
    while left_behind(state) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert_nothing_left(state, "127.0.5.47")


@pytest.mark.cluster
def test_a_group_in_a_ray_cluster_that_exists(
    state: Path, ended: list[Up], monkeypatch: pytest.MonkeyPatch
) -> None:
    host = "127.0.5.48"
    with tempfile.TemporaryDirectory(dir="/tmp", ignore_cleanup_errors=True) as folder:
        cluster = LocalCluster.start(Config(), folder)
        try:
            there = ["--host", host, "--address", cluster.address]
            up = run("up", *there, "--executors", "1", "--detach")
            assert up.returncode == 0, up.stderr
            assert sorted(names.roles_by_group()) == [host]
            with ray_sched.connect(host) as client:
                client.register(lambda _, x: x + 1, "incr")
                client.register_dag("one", ["incr"])
            scheduler = ray_sched.get_scheduler()
            assert ray.get(scheduler.call_dag.remote("one", {"incr": [1]}), timeout=PATIENCE_S) == 2
            with pytest.raises(NotRunningError, match="no scheduler"):
                ray_sched.get_scheduler(group="another")
            assert run("call", "incr", "1", "--host", host).stdout == "2\n"
            # The state file is this machine's alone; by the cluster's address it is found from everywhere.
            file = state / f"{host}.json"
            remembered = file.read_text()
            file.unlink()
            assert f"executor-{host}-0" in run("status", *there).stdout
            again = run("up", *there, "--detach")
            assert again.returncode == 1 and "taken by process" in again.stderr
            file.write_text(remembered)
            assert run("down", "--host", host).returncode == 0
            assert names.roles_by_group() == {}
            assert run("down", *there).returncode == 1

            settings = state / "blue.yml"
            settings.write_text("group: blue")
            # As it is after Ray was ended, with the group, and started again at the same address.
            left = {"host": host, "group": "blue", "ray_address": cluster.address, "pid": 0, "pid_started": 0}
            file.write_text(json.dumps(left))
            foreground = Up(*there, "--executors", "0", "--config", str(settings))
            ended.append(foreground)
            foreground.wait_for("Stop it with Ctrl-C")
            with ray_sched.connect(host) as client:
                client.register(lambda _: 1, "one")
            again = run("up", *there, "--detach", "--config", str(settings))
            assert again.returncode == 1 and f"runs on {host} already" in again.stderr
            remembered = file.read_text()
            file.unlink()
            assert run("status", *there).returncode == 1
            monkeypatch.setenv("RAY_SCHED_GROUP", "blue")
            told = run("status", *there)
            assert told.stdout.startswith("Group blue: 6 actors, 0 executors, 0 DAGs, 1 function\n")
            monkeypatch.delenv("RAY_SCHED_GROUP")
            file.write_text(remembered)
            foreground.signal(signal.SIGINT)
            assert foreground.wait() == 0, foreground.lines
            assert names.roles_by_group() == {}
            file.write_text(json.dumps(left))
            gone = run("down", "--host", host)
            assert gone.returncode == 0 and "gone already" in gone.stdout
            assert not file.exists()
            assert ray.get(ray.put(1)) == 1
        finally:
            cluster.stop()
    nowhere = run("status", *there)
    assert nowhere.returncode == 1 and f"no Ray cluster answers at {cluster.address}" in nowhere.stderr
