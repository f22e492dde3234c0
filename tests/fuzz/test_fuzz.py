"""Whatever arrives at a port, the part behind it serves the next peer, and answers each request once.

`make fuzz SECONDS=600` does the same for longer. What fails is written to tests/fuzz/corpus, whose
inputs are sent again by each run.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings

from tests.fuzz import inputs
from tests.fuzz.group import Cluster, Group
from tests.fuzz.targets import ExecutorPorts, Ingress, KvsClientPorts, KvsPorts, ResponsePorts, Target

Story = list[tuple[int, list[bytes]]]

SECONDS: Final = float(os.environ.get("FUZZ_SECONDS", "3"))
"""For each of the targets."""
FIRST_SEED: Final = int(os.environ.get("FUZZ_SEED", "1"))
CORPUS: Final = Path(__file__).with_name("corpus")

MAKERS: Final[dict[str, Callable[[str, Path], Target]]] = {
    "ingress": lambda ip, folder: Ingress(ip),
    "executor": ExecutorPorts,
    "kvs_server": lambda ip, folder: KvsPorts(ip),
    "kvs_client": lambda ip, folder: KvsClientPorts(ip),
    "responses": lambda ip, folder: ResponsePorts(ip),
    "group": Group,
    "cluster": Cluster,
}


@pytest.fixture(scope="module", params=list(MAKERS))
def target(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    number = list(MAKERS).index(request.param)
    made = MAKERS[request.param](f"127.0.17.{20 + number}", tmp_path_factory.mktemp("fuzz"))
    yield made
    made.close()


def play(target: Target, story: Story) -> None:
    for port, frames in story:
        target.send(port, frames)
    target.check()


def test_what_failed_once_is_sent_again(target: Target) -> None:
    for name, fault, story in kept_in(CORPUS, target):
        try:
            play(target, story)
        except AssertionError as error:
            raise AssertionError(f"{name}: {fault}") from error


@pytest.mark.timeout(120 + 10 * SECONDS)
@pytest.mark.filterwarnings("ignore:Generating overly large repr")
def test_any_bytes_at_any_port(target: Target) -> None:
    failed: list[Story] = []
    end = time.monotonic() + SECONDS * target.share
    for number in itertools.count(FIRST_SEED):

        @seed(number)
        @settings(
            max_examples=target.examples,
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            phases=[Phase.generate, Phase.shrink],
        )
        @given(inputs.story(target.ports))
        def fuzz(story: Story) -> None:
            try:
                play(target, story)
            except BaseException:
                failed[:] = [story]
                target.begin_anew()
                raise

        try:
            fuzz()
        except BaseException as error:
            keep(CORPUS, target, failed, f"seed {number}: {type(error).__name__}: {error}"[:500])
            raise
        if time.monotonic() > end:
            return


def keep(folder: Path, target: Target, failed: list[Story], fault: str) -> None:
    """Write the input down; ports by their place among the target's, since some differ by start."""
    folder.mkdir(exist_ok=True)
    for story in failed:
        places = [(target.ports.index(port), [frame.hex() for frame in frames]) for port, frames in story]
        text = json.dumps({"fault": fault, "story": places}, indent=1)
        name = hashlib.sha256(text.encode()).hexdigest()[:8]
        (folder / f"{target.name}-{name}.json").write_text(text + "\n")


def kept_in(folder: Path, target: Target) -> Iterator[tuple[str, str, Story]]:
    """Of each file that is kept for this target: its name, the fault, and the input."""
    for file in sorted(file for name in target.kept_for for file in folder.glob(f"{name}-*.json")):
        kept = json.loads(file.read_text())
        story = [
            (target.ports[place], [bytes.fromhex(frame) for frame in frames])
            for place, frames in kept["story"]
        ]
        yield file.name, kept["fault"], story


def test_what_fails_is_kept_and_found_again(target: Target, tmp_path: Path) -> None:
    story: Story = [(target.ports[-1], [b"\xff", b""]), (target.ports[0], [b""])]
    keep(tmp_path / "corpus", target, [story], "a fault")
    ((_, fault, found),) = kept_in(tmp_path / "corpus", target)
    assert (fault, found) == ("a fault", story)
