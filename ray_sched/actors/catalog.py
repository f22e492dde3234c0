"""The functions and DAGs as the key-value store keeps them.

Keys of the legacy systems: `funcs/<name>`, `funcs/index-allfuncs`, and a DAG under its own name.
Ours alone: `ray_sched/dags/<group>`, LWW of a `StringSet` of "<replicas> <name>", the DAGs that exist,
which is what a restart reads; the legacy systems keep no such index and forget their DAGs.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Collection, Iterable
from concurrent.futures import Future
from typing import Final

from ray_sched.errors import BadMessageError, KvsError, LatticeMismatchError, RaySchedError
from ray_sched.kvs.client import KvsClient
from ray_sched.kvs.lattices import LWW, Lattice, SetLattice, SingleCausal, type_name
from ray_sched.wire import cloudburst_pb2 as cb
from ray_sched.wire import shared_pb2
from ray_sched.wire.codec import is_longer, parse

log = logging.getLogger(__name__)

FUNCTIONS: Final = "funcs/"
FUNCTION_INDEX: Final = "funcs/index-allfuncs"
DAG_INDEX: Final = "ray_sched/dags/"
MAX_UNERASED: Final = 100_000
HIGHEST_VERSION: Final = 2**32 - 1
"""Of a vector clock's counters on the wire."""


class Catalog:
    """Every method waits for the store, and raises KvsError or TimedOutError where it does not answer."""

    def __init__(
        self,
        kvs: KvsClient,
        group: str,
        *,
        causal: bool,
        max_name_bytes: int = 1024,
        max_replicas: int = 20_000,
    ) -> None:
        self._kvs = kvs
        self._max_name_bytes = max_name_bytes
        self._max_replicas = max_replicas
        self._index_key = DAG_INDEX + group
        self._causal = causal
        self._index_lock = threading.Lock()
        self._indexed: dict[str, int] = {}
        self._erasing = threading.Lock()
        self._unerased: dict[str, None] = {}
        """DAGs that are no more, which the store still has, since it did not answer."""

    def store_function(self, function: cb.Function) -> None:
        """Store a function's body and name it in the index. Raises BadMessageError for a bad name."""
        if not function.name:
            raise BadMessageError("a function needs a name")
        if is_longer(function.name, self._max_name_bytes):
            raise BadMessageError(
                f"the name of a function, {function.name[:30]!r}..., is too long: the limit is "
                f"{self._max_name_bytes} bytes (scheduler.max_name_bytes)"
            )
        key = FUNCTIONS + function.name
        if key == FUNCTION_INDEX:
            raise BadMessageError(f"{function.name!r} is the name of the index itself: choose another")
        if self._causal:
            self._kvs.put(key, SingleCausal({"base": self._next_version(key)}, frozenset([function.body])))
        else:
            self._kvs.put_bytes(key, function.body)
        self._kvs.put(FUNCTION_INDEX, SetLattice(frozenset([key.encode()])))

    def functions(self) -> list[str]:
        """The names in the index, but such as no function can have."""
        index = self._kvs.get(FUNCTION_INDEX)
        if index is not None and not isinstance(index, SetLattice):
            log.warning("key=%s holds no set of functions: %s", FUNCTION_INDEX, _kind(index))
        keys = index.values if isinstance(index, SetLattice) else ()
        longest = len(FUNCTIONS) + self._max_name_bytes
        names = (key.decode(errors="replace") for key in keys if len(key) <= longest)
        return [name.removeprefix(FUNCTIONS) for name in names if name.startswith(FUNCTIONS)]

    def which_exist(self, functions: Collection[str]) -> list[str]:
        """Those of the functions whose bodies are stored."""
        found = self._kvs.get_many([FUNCTIONS + name for name in functions]) if functions else {}
        return [key.removeprefix(FUNCTIONS) for key, lattice in found.items() if lattice is not None]

    def store_dag(self, dag: cb.Dag) -> None:
        with self._erasing:
            self._unerased.pop(dag.name, None)
        self._kvs.get(dag.name)  # so that this write outranks what is there, whoever wrote it
        try:
            self._kvs.put_bytes(dag.name, dag.SerializeToString())
        except BaseException:  # the store may have it all the same
            self.erase_soon(dag.name)
            raise

    def erase_dag(self, name: str) -> None:
        """Whoever looks the DAG up by its key alone (a peer) finds it empty from now on.

        Where the store does not answer, `erase_rest` does it later; until then it is not found here.
        """
        if len(self._unerased) < MAX_UNERASED:
            self._unerased[name] = None
        try:
            self._kvs.put_bytes(name, b"")
        except LatticeMismatchError:  # it is no DAG that is there
            self._unerased.pop(name, None)
            raise
        self._unerased.pop(name, None)

    def erase_soon(self, name: str) -> None:
        """`erase_dag` without waiting, for a DAG that was not created after all."""
        if len(self._unerased) < MAX_UNERASED:
            self._unerased[name] = None

        def erased(written: Future[None]) -> None:
            if written.exception() is None or isinstance(written.exception(), LatticeMismatchError):
                self._unerased.pop(name, None)

        with contextlib.suppress(KvsError):  # then `erase_rest` does it
            self._kvs.put_bytes_future(name, b"").add_done_callback(erased)

    def erase_rest(self) -> None:
        """Erase what these two could not, but for what is created again meanwhile."""
        with self._erasing:
            for name in list(self._unerased):
                with contextlib.suppress(LatticeMismatchError):
                    self.erase_dag(name)

    def erased(self, names: Collection[str]) -> list[str]:
        """Those of the DAGs whose creator deleted them."""
        found = self._kvs.get_many(names) if names else {}
        return [name for name, stored in found.items() if isinstance(stored, LWW) and not stored.value]

    def load_dags(self, names: Iterable[str]) -> dict[str, cb.Dag]:
        """The DAGs that are stored under these names; what is no such DAG is logged and left out."""
        wanted = [name for name in names if name not in self._unerased]
        dags = {}
        for name, lattice in self._kvs.get_many(wanted).items() if wanted else ():
            if lattice is None:
                continue
            try:
                if not isinstance(lattice, LWW):
                    raise BadMessageError(_kind(lattice))
                if not lattice.value:  # it was deleted
                    continue
                dag = parse(cb.Dag, lattice.value)
                if dag.name != name:
                    raise BadMessageError(f"the DAG in it is named {dag.name!r}")
            except RaySchedError as error:
                log.warning("key=%s holds no DAG: %s", name, error)
                continue
            dags[name] = dag
        return dags

    def read_dag_index(self) -> dict[str, int]:
        """The DAGs that were acknowledged and not deleted since, with their replicas; once, before
        anything is added.

        Of an index that somebody else has overwritten nothing is known; its bytes are kept.
        """
        replicas: dict[str, int] = {}
        for entry in self._index_entries():
            number, _, name = entry.partition(" ")
            if self._are_replicas(number) and 0 < len(name) <= self._max_name_bytes:
                replicas[name] = int(number)
            else:
                log.warning(
                    "key=%s has an entry that names no DAG, or more replicas than scheduler.max_executors",
                    self._index_key,
                )
        with self._index_lock:
            self._indexed.update(replicas)
        return replicas

    def _index_entries(self) -> Iterable[str]:
        try:
            index = self._kvs.get_bytes(self._index_key) or b""
        except LatticeMismatchError as error:
            log.error("%s: no DAGs are read back, and none can be created in this store", error)
            return ()
        try:
            return parse(shared_pb2.StringSet, index).keys
        except BadMessageError:
            kept = f"{self._index_key}/damaged"
            log.error(
                "key=%s is no index of DAGs: create them again; its bytes are at key=%s",
                self._index_key,
                kept,
            )
            # Somebody else may have put another lattice there: no reason not to start.
            with contextlib.suppress(LatticeMismatchError):
                self._kvs.put_bytes(kept, index)
            return ()

    def _are_replicas(self, number: str) -> bool:
        """Whether there may be so many executors; a number of many digits is not even read."""
        return (
            number.isdecimal()
            and len(number) <= len(str(self._max_replicas))
            and int(number) <= self._max_replicas
        )

    def add_to_index(self, name: str, replicas: int) -> None:
        """A DAG is acknowledged from now on."""
        with self._index_lock:
            self._write_index({**self._indexed, name: replicas})

    def remove_from_index(self, name: str) -> None:
        with self._index_lock:
            self._write_index({dag: replicas for dag, replicas in self._indexed.items() if dag != name})

    def _write_index(self, replicas: dict[str, int]) -> None:
        entries = [f"{number} {name}" for name, number in sorted(replicas.items())]
        self._kvs.put_bytes(self._index_key, shared_pb2.StringSet(keys=entries).SerializeToString())
        self._indexed = replicas

    def _next_version(self, key: str) -> int:
        """1 for a new function, as legacy writers have it; one more for each further registration, so
        that it replaces the one before instead of standing beside it."""
        stored = self._kvs.get(key)
        version = stored.vector_clock.get("base", 0) + 1 if isinstance(stored, SingleCausal) else 1
        if version > HIGHEST_VERSION:
            raise KvsError(f"somebody wrote {key!r} with the highest version there is: use another name")
        return version


def _kind(lattice: Lattice) -> str:
    return f"its lattice is of type {type_name(lattice.type)}"
