from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_sched.errors import KvsError, LatticeMismatchError
from ray_sched.kvs.lattices import LWW, Lattice, SetLattice, SingleCausal
from ray_sched.kvs.store import Store

from .test_lattices import STRATEGIES


def test_a_put_merges() -> None:
    store = Store()
    store.put("k", LWW(2, b"new"))
    store.put("k", LWW(1, b"old"))
    assert store.get("k") == LWW(2, b"new")
    assert store.get("other") is None
    assert store.keys() == ["k"]
    assert len(store) == 1


def test_another_type_is_refused_and_changes_nothing() -> None:
    store = Store()
    store.put("k", LWW(1, b"v"))
    with pytest.raises(LatticeMismatchError, match=r"'k' holds a LWW lattice, not SET"):
        store.put("k", SetLattice(frozenset({b"a"})))
    assert store.get("k") == LWW(1, b"v")


def test_a_file_keeps_everything(tmp_path: Path) -> None:
    path = str(tmp_path / "store.db")
    written: dict[str, Lattice] = {
        "lww": LWW(2**64 - 1, bytes(range(256))),
        "set": SetLattice(frozenset({b"a", b"b"})),
        "with\0zero and ünïcode \N{SNOWMAN}": LWW(1, b""),
        "": LWW(3, b"the empty key"),
    }
    store = Store(path)
    for key, lattice in written.items():
        store.put(key, lattice)
    assert {file.stat().st_mode & 0o777 for file in tmp_path.iterdir()} == {0o600}
    store.close()
    again = Store(path)
    assert {key: again.get(key) for key in again.keys()} == written  # noqa: SIM118
    again.close()


@settings(deadline=None, max_examples=30)
@given(data=st.data())
def test_neither_the_order_of_writes_nor_a_restart_makes_a_difference(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    number = data.draw(st.sampled_from(sorted(STRATEGIES)))
    lattices = data.draw(st.lists(STRATEGIES[number], min_size=1, max_size=6))
    expected = Store()
    for lattice in lattices:
        expected.put("k", lattice)
    path = str(tmp_path_factory.mktemp("store") / "store.db")
    for lattice in data.draw(st.permutations(lattices)):
        store = Store(path)
        store.put("k", lattice)
        store.close()
    store = Store(path)
    assert store.get("k") == expected.get("k")
    store.close()


def test_a_batch_is_all_or_nothing(tmp_path: Path) -> None:
    path = str(tmp_path / "store.db")
    store = Store(path)
    store.put("held", LWW(1, b"before"))
    with pytest.raises(RuntimeError, match="in the middle"), store.batch():
        store.put("held", LWW(2, b"after"))
        store.put("new", LWW(1, b"v"))
        assert store.get("held") == LWW(2, b"after")
        raise RuntimeError("in the middle")
    assert store.get("held") == LWW(1, b"before")
    assert store.keys() == ["held"]
    with store.batch():
        store.put("held", LWW(3, b"at last"))
    store.close()
    again = Store(path)
    assert again.keys() == ["held"]
    assert again.get("held") == LWW(3, b"at last")
    again.close()


def test_a_file_that_cannot_be_written_takes_nothing_into_memory(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "store.db"))
    store.put("k", LWW(1, b"v"))
    store.close()
    with pytest.raises(KvsError, match="closed"):
        store.put("k", LWW(2, b"w"))
    assert store.get("k") == LWW(1, b"v")


def test_a_write_that_sqlite_refuses_is_undone(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "store.db"))
    assert store._file is not None
    store._file.execute("PRAGMA max_page_count=10")
    store.put("small", LWW(1, b"v"))
    with pytest.raises(KvsError, match="could not write"):
        store.put("large", LWW(1, bytes(1 << 20)))
    assert store.get("large") is None
    store.put("small", LWW(2, b"w"))
    assert store.get("small") == LWW(2, b"w")
    store.close()


def test_replaced_versions_leave_the_file(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    store = Store(str(path))
    for writer in "abc":
        store.put("k", SingleCausal({writer: 1}, frozenset({writer.encode()})))
    store.put("k", SingleCausal({"a": 2, "b": 2, "c": 2}, frozenset({b"all"})))
    store.close()
    file = sqlite3.connect(path)
    assert file.execute("SELECT count(*) FROM parts").fetchone() == (1,)
    file.close()


def test_one_process_at_a_time_holds_a_file(tmp_path: Path) -> None:
    path = str(tmp_path / "store.db")
    store = Store(path)
    with pytest.raises(KvsError, match="another process holds it"):
        Store(path, lock_timeout_s=0.05)
    store.close()
    Store(path, lock_timeout_s=0.05).close()


def text(path: Path) -> None:
    path.write_text("This is no database, however long it may become. " * 100)


def foreign_database(path: Path) -> None:
    file = sqlite3.connect(path)
    file.execute("CREATE TABLE somebody_elses (x)")
    file.commit()
    file.close()


def cut_off(path: Path) -> None:
    fill(path)
    os.truncate(path, path.stat().st_size // 2)


def scribbled_over(path: Path) -> None:
    fill(path)
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(os.urandom(path.stat().st_size - 4096))


def payload_of_another_type(path: Path) -> None:
    fill(path)
    file = sqlite3.connect(path)
    file.execute("UPDATE parts SET payload = x'ffffff' WHERE key = 'k1'")
    file.commit()
    file.close()


def fill(path: Path) -> None:
    store = Store(str(path))
    with store.batch():
        for number in range(300):
            store.put(f"k{number}", LWW(1, bytes(200)))
    store.close()


@pytest.mark.parametrize(
    "spoil",
    [text, foreign_database, cut_off, scribbled_over, payload_of_another_type],
    ids=lambda f: f.__name__,
)
def test_a_broken_or_foreign_file_is_named_with_what_to_do(
    tmp_path: Path, spoil: Callable[[Path], None]
) -> None:
    path = tmp_path / "store.db"
    spoil(path)
    before = path.read_bytes()
    with pytest.raises(KvsError, match=r"store\.db is not a store of ray-sched, or is broken .*move it away"):
        Store(str(path))
    assert path.read_bytes() == before


def test_a_newer_format_is_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    fill(path)
    file = sqlite3.connect(path)
    file.execute("PRAGMA user_version=2")
    file.commit()
    file.close()
    with pytest.raises(KvsError, match="newer version"):
        Store(str(path))


def test_a_folder_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(KvsError, match=r"there is no folder .*missing; create it"):
        Store(str(tmp_path / "missing" / "store.db"))
    with pytest.raises(KvsError, match="it is a folder"):
        Store(str(tmp_path))
