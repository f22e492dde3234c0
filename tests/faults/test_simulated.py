"""Nothing that was acknowledged is lost, whatever is killed, late, repeated or dropped between the parts.

The parts of the core under a virtual clock: one seed, one history. `SEED` chooses the first seed and
`SEEDS` how many follow; `make faults` tries more of them.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.faults.simulated.run import simulate

SEED = int(os.environ.get("SEED") or 1)
SEEDS = int(os.environ.get("SEEDS") or 12)
TOLD = "import sys; from tests.faults.test_simulated import story; print(story(int(sys.argv[1])))"


def story(seed: int) -> str:
    with tempfile.TemporaryDirectory() as folder:
        return "\n".join(simulate(seed, Path(folder)).story)


def test_nothing_is_lost_between_the_parts() -> None:
    faults: list[str] = []
    calls = errors = kills = dags = 0
    for seed in range(SEED, SEED + SEEDS):
        with tempfile.TemporaryDirectory() as folder:
            outcome = simulate(seed, Path(folder))
        faults += [f"SEED={seed}: {fault}" for fault in outcome.faults]
        calls += outcome.calls
        errors += outcome.errors
        kills += outcome.kills
        dags += outcome.dags
    print(
        f"{SEEDS} seeds: {kills} kills, {dags} DAGs created or deleted, {calls} calls, {errors} with the error value"
    )
    assert not faults, "\n".join(faults)


def test_a_seed_tells_the_same_story_in_any_process() -> None:
    stories = [
        subprocess.run(
            [sys.executable, "-c", TOLD, str(SEED)],
            env={**os.environ, "PYTHONHASHSEED": hashes},
            check=True,
            capture_output=True,
            timeout=120.0,
        ).stdout
        for hashes in ("1", "2")
    ]
    assert stories[0] == stories[1]
    assert b"dies" in stories[0]
