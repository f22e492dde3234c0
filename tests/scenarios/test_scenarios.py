"""Runs the transcripts `scheduler_*.txt` and `executor_*.txt`; each says by itself what it shows."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.scenarios import transcript
from tests.scenarios.executor_world import ExecutorWorld
from tests.scenarios.scheduler_world import SchedulerWorld

HERE = Path(__file__).parent
WORLDS: dict[str, type[SchedulerWorld] | type[ExecutorWorld]] = {
    "scheduler": SchedulerWorld,
    "executor": ExecutorWorld,
}
FILES = sorted(path.name for path in HERE.glob("*.txt"))


def kind_of(name: str) -> str:
    return name.partition("_")[0]


@pytest.mark.parametrize("name", FILES)
def test_transcript(name: str, request: pytest.FixtureRequest) -> None:
    path = HERE / name
    expected = path.read_text()
    actual = transcript.run(transcript.parse(expected), WORLDS[kind_of(name)]().command)
    if request.config.getoption("rewrite", False):
        path.write_text(actual)
    else:
        assert actual.splitlines() == expected.splitlines()


def test_there_are_transcripts_of_both_kinds() -> None:
    assert set(map(kind_of, FILES)) == set(WORLDS)


def echo(line: str) -> list[str]:
    return [] if line == "silence" else [f"{line} said", f"{line} said twice"]


def test_a_block_gets_the_output_of_all_its_commands() -> None:
    text = "# Why.\n\n# What.\na\nb\n----\nwrong\n\nsilence\n"
    assert transcript.run(transcript.parse(text), echo) == (
        "# Why.\n\n# What.\na\nb\n----\na said\na said twice\nb said\nb said twice\n"
        "\nsilence\n----\nnothing\n"
    )


def test_what_is_not_understood_is_told_with_its_line() -> None:
    blocks = transcript.parse("list\n----\n\nlist\nexecutors 10.0.0.1:0 sideways=1\n----\n")
    with pytest.raises(transcript.TranscriptError, match="line 4: 'executors"):
        transcript.run(blocks, SchedulerWorld().command)
