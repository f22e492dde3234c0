"""Nothing that was acknowledged is lost, whatever is killed, late, repeated or dropped between the parts.

The parts of the core under a virtual clock: one seed, one history. `make faults SEED=7 SEEDS=100` tries a
hundred of them, from the seventh on.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.simulated.run import simulate

log = logging.getLogger(__name__)

SEED = int(os.environ.get("SEED") or 1)
SEEDS = int(os.environ.get("SEEDS") or 10)
TOLD = """
import sys
from pathlib import Path
from tests.faults.simulated.run import simulate
print("\\n".join(simulate(int(sys.argv[1]), Path(sys.argv[2])).story))
"""


@pytest.mark.parametrize("seed", range(SEED, SEED + SEEDS))
def test_nothing_is_lost_between_the_parts(seed: int, tmp_path: Path) -> None:
    outcome = simulate(seed, tmp_path)
    log.info("%s", ", ".join(f"{number} {what}" for what, number in outcome.numbers().items()))
    again = f'again with: make faults SEED={seed} SEEDS=1 ARGS="-k between"'
    assert not outcome.faults, "\n".join([*outcome.faults, again])


def test_a_seed_tells_the_same_story_in_any_process(tmp_path: Path) -> None:
    stories = []
    for hashes in ("1", "2"):
        folder = tmp_path / hashes
        folder.mkdir()
        told = subprocess.run(
            [sys.executable, "-c", TOLD, str(SEED), str(folder)],
            env={**os.environ, "PYTHONHASHSEED": hashes},
            check=True,
            capture_output=True,
            timeout=100.0,
        )
        stories.append(told.stdout)
    assert stories[0] == stories[1]
    assert b"dies" in stories[0]
