"""The Kvs actor as a plain object, which is all that it is without Ray around it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from ray_sched.actors.kvs import KvsActor
from ray_sched.config import Config
from ray_sched.errors import PortTakenError
from ray_sched.kvs.client import KvsClient

pytestmark = pytest.mark.usefixtures("logging_kept")


def test_it_serves_and_keeps_what_was_written(ip: str, tmp_path: Path) -> None:
    path = str(tmp_path / "store.db")
    config = Config().replace(host=ip, **{"kvs.path": path})
    actor = KvsActor(config)
    assert actor.ready() == {"role": "kvs", "address": ip, "keys": 0, "path": path}
    with KvsClient(config.kvs_host, ip, timeout_s=10.0) as client:
        client.put_bytes("k", b"v")
        assert actor.status()["puts"] == 1
        actor.stop()
        actor.stop()
        again = KvsActor(config)
        assert again.ready()["keys"] == 1
        assert client.get_bytes("k") == b"v"
    again.stop()


def test_a_second_one_on_the_same_address_is_refused_and_lets_go_of_its_file(ip: str, tmp_path: Path) -> None:
    first = KvsActor(Config(host=ip))
    config = Config().replace(host=ip, **{"kvs.path": str(tmp_path / "store.db")})
    with pytest.raises(PortTakenError, match="another scheduler group"):
        KvsActor(config)
    first.stop()
    KvsActor(config).stop()


def test_without_a_file_of_its_own_it_leaves_nothing_when_stopped_and_begins_empty(
    ip: str, tmp_path: Path
) -> None:
    config = Config().replace(host=ip, **{"executor.runtime_dir": str(tmp_path)})
    for _ in range(2):
        actor = KvsActor(config)
        assert (actor.ready()["keys"], actor.ready()["path"]) == (0, "")
        with KvsClient(config.kvs_host, ip, timeout_s=10.0) as client:
            client.put_bytes("k", b"v")
        assert list(tmp_path.iterdir())
        actor.stop()
        assert not list(tmp_path.iterdir())


def test_another_group_of_the_same_name_does_not_touch_what_a_living_one_keeps(
    ip: str, tmp_path: Path
) -> None:
    config = Config().replace(host=ip, **{"executor.runtime_dir": str(tmp_path)})
    actor = KvsActor(config)
    kept = {path: path.stat().st_ino for path in tmp_path.iterdir()}
    with pytest.raises(PortTakenError):
        KvsActor(config)
    assert {path: path.stat().st_ino for path in tmp_path.iterdir()} == kept
    actor.stop()


def test_it_imports_without_ray() -> None:
    code = "import sys, ray_sched.actors.kvs; sys.exit('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0
