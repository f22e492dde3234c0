"""`ray-sched sim` as a person types it."""

from __future__ import annotations

import csv
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from ray_sched.cli import main

SMALL = ("--executors", "6", "--duration-s", "6", "--warm-up-s", "1")


def sim(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["sim", *SMALL, *arguments])


def test_all_installed_policies_are_compared(tmp_path: Path) -> None:
    file = tmp_path / "sim.csv"
    result = sim("--references", "1", "--csv", str(file))
    assert result.exit_code == 0, result.output
    rows = list(csv.DictReader(io.StringIO(file.read_text())))
    assert [row["policy"] for row in rows] == ["locality", "random", "round-robin"]
    for row in rows:
        assert int(row["arrivals"]) == int(row["completed"]) + int(row["refused"])
        assert 0 < float(row["p50_ms"]) <= float(row["p99_ms"])
        assert 0 < float(row["hit_rate"]) < 1
        assert row["policy"] in result.output
    assert result.output.startswith("6 executors on 2 nodes, 1 scheduler group, 30 calls/s, 6 s of which")


def test_the_same_seed_gives_the_same_bytes_whatever_the_hash_seed(tmp_path: Path) -> None:
    written = []
    for number in ("1", "2"):
        file = tmp_path / f"{number}.csv"
        subprocess.run(
            [
                *(sys.executable, "-m", "ray_sched.cli", "sim", *SMALL, "--csv", str(file)),
                *("--references", "2", "--schedulers", "2", "--functions", "2", "--load", "0.8"),
            ],
            env={**os.environ, "PYTHONHASHSEED": number},
            check=True,
            capture_output=True,
            timeout=110,
        )
        written.append(file.read_bytes())
    assert written[0] == written[1]


def test_another_seed_gives_other_figures(tmp_path: Path) -> None:
    one, two = (sim("--policy", "random", "--seed", seed).output.splitlines()[-1] for seed in "12")
    assert one != two


def test_a_scenarios_field_is_varied(tmp_path: Path) -> None:
    file = tmp_path / "sim.csv"
    result = sim("--policy", "random", "--vary", "load=0.2, 0.4", "--csv", str(file))
    assert result.exit_code == 0, result.output
    rows = list(csv.DictReader(io.StringIO(file.read_text())))
    assert [row["load"] for row in rows] == ["0.2", "0.4"]
    assert "1 scheduler group, 12 to 24 calls/s, 6 s of which" in result.output
    assert float(rows[0]["utilization"]) < float(rows[1]["utilization"])


def test_a_setting_of_the_real_cluster_is_given_and_varied(tmp_path: Path) -> None:
    file = tmp_path / "sim.csv"
    result = sim(
        *("--policy", "random", "--load", "2", "--vary", "policy.overload=refuse,keep-last"),
        *("--set", "executor.status_period_s=1", "--csv", str(file)),
    )
    assert result.exit_code == 0, result.output
    refuse, keep = csv.DictReader(io.StringIO(file.read_text()))
    assert int(refuse["refused"]) > 0 == int(keep["refused"])
    assert float(keep["left_out"]) > 0, "statuses came within the six seconds"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--policy", "best"], "--policy: policy.name = 'best' is not allowed; it must be one of"),
        (["--set", "policy.window=3"], "--set: policy.window is no setting; did you mean policy.window_s?"),
        (["--set", "policy.window_s"], "--set: 'policy.window_s' is not allowed; it must be NAME=VALUE"),
        (["--set", "load=3"], "--set: load is of the scenario: give it as --load"),
        (["--vary", "laod=1,2"], "--vary: laod is neither of the scenario nor a setting; did you mean load?"),
        (["--vary", "load=1,x"], "--vary: load = 'x' is not allowed"),
        (["--vary", "policy.window_s=x"], "--vary: policy.window_s = 'x' is not allowed"),
        (["--vary", "schedulers=1,9"], "schedulers = 9 is not allowed"),
        (["--trace", "none.csv"], "none.csv: cannot be read as a CSV file: No such file"),
        (["--plot", "sim.gif"], "--plot: 'sim.gif' is not allowed; it must end with .png or .svg"),
        (["--plot", "no/sim.svg"], "--plot: 'no/sim.svg' is not allowed; it must be a file in a folder"),
        (["--csv", "no/sim.csv"], "--csv: no/sim.csv cannot be written: No such file"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(
    arguments: list[str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = sim(*arguments)
    assert result.exit_code == 2
    (error,) = [line for line in result.output.splitlines() if line.startswith("ray-sched: ")]
    assert words in error


def test_the_word_is_what_to_install_where_matplotlib_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    result = sim("--plot", str(tmp_path / "sim.png"))
    assert result.exit_code == 2
    assert "pip install 'ray-sched[sim]'" in result.output
    assert len(result.output.splitlines()) == 1, "it is said before anything is simulated"


@pytest.mark.parametrize("arguments", [(), ("--vary", "load=0.2,0.4"), ("--vary", "mode=local,cluster")])
def test_a_plot_is_drawn(arguments: tuple[str, ...], tmp_path: Path) -> None:
    file = tmp_path / "sim.png"
    result = sim("--policy", "random", "--plot", str(file), *arguments)
    assert result.exit_code == 0, result.output
    assert file.read_bytes().startswith(b"\x89PNG")


def test_the_same_seed_draws_the_same_svg(tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("a.svg", "b.svg")]
    for file in files:
        assert sim("--policy", "random", "--references", "1", "--plot", str(file)).exit_code == 0
    assert files[0].read_bytes().startswith(b"<?xml")
    assert files[0].read_bytes() == files[1].read_bytes()


def test_help_tells_of_every_field_once() -> None:
    output = CliRunner().invoke(main, ["sim", "--help"], terminal_width=100).output
    for flag in ("--executors", "--references", "--seed", "--policy", "--trace"):
        assert output.count(f"\n  {flag} ") == 1
    assert "Keys and caches:" in output
