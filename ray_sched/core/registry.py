"""The functions and DAGs that exist.

A DAG is reserved while its functions are being pinned, so that two clients that create the same
one at the same time get one success and one refusal, and a failed creation leaves nothing.
"""

from __future__ import annotations

from collections.abc import Callable

from ray_sched.core.dags import Plan, plan_of, validate_dag
from ray_sched.errors import DagExistsError, NoSuchDagError
from ray_sched.wire import cloudburst_pb2 as cb


class Registry:
    def __init__(self) -> None:
        self._functions: set[str] = set()
        self._dags: dict[str, cb.Dag] = {}
        self._plans: dict[str, Plan] = {}
        self._creating: set[str] = set()

    # --- functions ---

    def add_function(self, name: str) -> None:
        self._functions.add(name)

    def functions(self, prefix: str = "") -> list[str]:
        """The names that start with the prefix, sorted."""
        return sorted(name for name in self._functions if name.startswith(prefix))

    def has_function(self, name: str) -> bool:
        return name in self._functions

    # --- DAGs ---

    def begin_create(self, dag: cb.Dag, is_registered: Callable[[str], bool] | None = None) -> None:
        """Reserve a DAG's name; follow with `commit` or `abort`.

        Raises DagExistsError, InvalidDagError, FunctionNotFoundError.
        """
        if dag.name in self._dags or dag.name in self._creating:
            raise DagExistsError(f"DAG {dag.name!r} exists already: delete it first, or choose another name")
        validate_dag(dag, is_registered or self.has_function)
        self._creating.add(dag.name)

    def commit(self, dag: cb.Dag) -> None:
        """The DAG exists from now on."""
        self._creating.discard(dag.name)
        self._dags[dag.name] = dag
        self._plans[dag.name] = plan_of(dag)

    def abort(self, name: str) -> None:
        self._creating.discard(name)

    def remove(self, name: str) -> cb.Dag:
        """Forget a DAG. Raises NoSuchDagError."""
        dag = self.dag(name)
        del self._dags[name], self._plans[name]
        return dag

    def dag(self, name: str) -> cb.Dag:
        """Raises NoSuchDagError."""
        dag = self._dags.get(name)
        if dag is None:
            raise NoSuchDagError(f"no DAG {name!r} exists: create it first, or look at the list of DAGs")
        return dag

    def has_dag(self, name: str) -> bool:
        return name in self._dags

    def dags(self) -> dict[str, cb.Dag]:
        """All DAGs by name; not to be changed."""
        return self._dags

    def plans(self) -> dict[str, Plan]:
        """All plans by name: the dispatcher's live view, not to be changed."""
        return self._plans
