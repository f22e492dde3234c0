from __future__ import annotations

import io
import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import cloudpickle
import pytest

from ray_sched.reference import CloudburstReference

VECTORS = Path(__file__).parent / "wire" / "vectors.json"
ARGUMENTS = {entry["name"]: entry for entry in json.loads(VECTORS.read_text())["arguments"]}
REAL_CLASS = """
class CloudburstReference():
    def __init__(self, key, deserialize):
        self.key = key
        self.deserialize = deserialize
"""


def vector(name: str) -> bytes:
    return bytes.fromhex(ARGUMENTS[name]["hex"])


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_pickles_to_the_recorded_bytes(protocol: int) -> None:
    expected = vector(f"reference_protocol_{protocol}")
    reference = CloudburstReference("some-key")
    assert pickle.dumps(reference, protocol=protocol) == expected
    assert cloudpickle.dumps(reference, protocol=protocol) == expected


def test_inside_a_tuple_it_pickles_to_the_recorded_bytes() -> None:
    assert pickle.dumps((1, CloudburstReference("in-tuple"), "x"), protocol=4) == vector(
        "tuple_with_reference"
    )


@pytest.mark.parametrize("dumps", [pickle.dumps, cloudpickle.dumps])
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_reads_back_what_it_wrote(dumps: Any, protocol: int) -> None:
    given = [CloudburstReference("a"), (CloudburstReference("b", False), 1)]
    assert pickle.loads(dumps(given, protocol=protocol)) == given


def test_pickles_written_in_python_read_back_too() -> None:
    buffer = io.BytesIO()
    pickle._Pickler(buffer, 4).dump(CloudburstReference("some-key"))
    assert buffer.getvalue() == vector("reference_protocol_4")
    assert pickle._Unpickler(io.BytesIO(buffer.getvalue())).load() == CloudburstReference("some-key")


def test_reads_what_a_legacy_client_wrote() -> None:
    assert pickle.loads(vector("reference_cloudpickle")) == CloudburstReference("other", deserialize=False)


def test_state_is_the_two_attributes() -> None:
    assert vars(CloudburstReference("k")) == {"key": "k", "deserialize": True}


def test_equality_is_by_content() -> None:
    assert CloudburstReference("k") != CloudburstReference("k", False)
    assert len({CloudburstReference("k"), CloudburstReference("k"), CloudburstReference("l")}) == 2


def python(code: str, path: Path) -> subprocess.CompletedProcess[str]:
    """Run `code` in an interpreter of its own, with `path` importable."""
    return subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(path)!r})\n{code}"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def install_real(path: Path) -> None:
    """What the legacy project's package looks like, as far as it matters here."""
    shared = path / "cloudburst" / "shared"
    shared.mkdir(parents=True)
    (path / "cloudburst" / "__init__.py").touch()
    (shared / "__init__.py").touch()
    (shared / "reference.py").write_text(REAL_CLASS)
    (shared / "other.py").write_text(
        "from cloudburst.shared.reference import CloudburstReference\nFOUND = 1\n"
    )


def test_an_installed_real_package_is_used_as_it_is(tmp_path: Path) -> None:
    install_real(tmp_path)
    done = python(
        f"""
import pickle
from ray_sched.reference import CloudburstReference
import cloudburst.shared.reference as real
assert real.__file__.startswith({str(tmp_path)!r}), real
assert type(CloudburstReference("k")) is real.CloudburstReference
assert CloudburstReference("k").deserialize is True
body = bytes.fromhex({ARGUMENTS["reference_protocol_4"]["hex"]!r})
assert type(pickle.loads(body)) is real.CloudburstReference
assert pickle.dumps(CloudburstReference("some-key"), 4) == body
""",
        tmp_path,
    )
    assert done.returncode == 0, done.stderr


def test_modules_of_a_real_package_that_comes_later_are_found(tmp_path: Path) -> None:
    install_real(tmp_path / "later")
    done = python(
        f"""
import importlib.util
from ray_sched.reference import CloudburstReference
assert importlib.util.find_spec("cloudburst.shared.other") is None
sys.path.insert(0, {str(tmp_path / "later")!r})
import cloudburst.shared.other
assert cloudburst.shared.other.FOUND == 1
assert cloudburst.shared.other.CloudburstReference is CloudburstReference
""",
        tmp_path,
    )
    assert done.returncode == 0, done.stderr


def test_another_package_of_that_name_stays_what_it_is(tmp_path: Path) -> None:
    (tmp_path / "cloudburst.py").write_text("WEATHER = 'wet'\n")
    done = python(
        """
import pickle
from ray_sched.reference import CloudburstReference
import cloudburst
assert cloudburst.WEATHER == "wet"
assert pickle.loads(pickle.dumps(CloudburstReference("k"), 4)) == CloudburstReference("k")
""",
        tmp_path,
    )
    assert done.returncode == 0, done.stderr
