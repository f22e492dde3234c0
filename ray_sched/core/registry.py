"""The functions and DAGs that exist.

A DAG's name is reserved while its functions are being pinned, so that two clients that create the
same one at the same time get one success and one refusal, and a failed creation leaves nothing; and
while it is being deleted, so that a new one of that name is not undone along with the old.

A DAG is our own, with a number of replicas, or was learned from a peer, who pins its functions.
"""

from __future__ import annotations

from collections.abc import Callable

from ray_sched.core.dags import LIMITS, Limits, Plan, plan_of, validate_dag
from ray_sched.errors import DagExistsError, NoResourcesError, NoSuchDagError
from ray_sched.wire import cloudburst_pb2 as cb


class Registry:
    def __init__(self, limits: Limits = LIMITS) -> None:
        self._limits = limits
        self._functions: set[str] = set()
        self._dags: dict[str, cb.Dag] = {}
        self._plans: dict[str, Plan] = {}
        self._replicas: dict[str, int] = {}
        """Of our own DAGs."""
        self._creating: set[str] = set()
        self._deleting: set[str] = set()

    # --- functions ---

    def check_room_for_function(self, name: str) -> None:
        """Raises NoResourcesError where so many are registered that there is no room for a new one."""
        if len(self._functions) >= self._limits.functions and name not in self._functions:
            raise NoResourcesError(
                f"{self._limits.functions} functions are registered, which is the limit "
                "(scheduler.max_functions)"
            )

    def add_function(self, name: str) -> None:
        """Beyond the limit it is not known here; whoever needs it looks it up."""
        if len(self._functions) < self._limits.functions:
            self._functions.add(name)

    def functions(self, prefix: str = "") -> list[str]:
        """The names that start with the prefix, sorted."""
        return sorted(name for name in self._functions if name.startswith(prefix))

    def has_function(self, name: str) -> bool:
        return name in self._functions

    # --- DAGs ---

    def begin_create(self, dag: cb.Dag, is_registered: Callable[[str], bool] | None = None) -> None:
        """Reserve a DAG's name; follow with `commit` or `abort`.

        Raises DagExistsError, InvalidDagError, FunctionNotFoundError, NoResourcesError.
        """
        if dag.name in self._dags or dag.name in self._creating:
            raise DagExistsError(f"DAG {dag.name!r} exists already: delete it first, or choose another name")
        if dag.name in self._deleting:
            raise DagExistsError(f"DAG {dag.name!r} is being deleted: try again")
        validate_dag(dag, is_registered or self.has_function, self._limits)
        if len(self._dags) + len(self._creating) >= self._limits.dags:
            raise NoResourcesError(
                f"{self._limits.dags} DAGs exist, which is the limit: delete one (scheduler.max_dags)"
            )
        self._creating.add(dag.name)

    def commit(self, dag: cb.Dag, replicas: int = 0) -> None:
        """The DAG exists from now on, as our own where it has replicas."""
        self._creating.discard(dag.name)
        self._dags[dag.name] = dag
        self._plans[dag.name] = plan_of(dag)
        if replicas:
            self._replicas[dag.name] = replicas

    def abort(self, name: str) -> None:
        """The DAG that was being created will not be."""
        self._creating.discard(name)

    def begin_delete(self, name: str) -> None:
        """Reserve the name of a DAG that exists; follow with `remove` or `abort_delete`.

        Raises NoSuchDagError.
        """
        self.dag(name)
        if name in self._deleting:
            raise NoSuchDagError(f"no DAG {name!r} exists: somebody else is deleting it")
        self._deleting.add(name)

    def abort_delete(self, name: str) -> None:
        """The DAG goes on to exist."""
        self._deleting.discard(name)

    def remove(self, name: str) -> None:
        """The DAG is no more; its name stays reserved until `end_delete`."""
        self.dag(name)
        del self._dags[name], self._plans[name]
        self._replicas.pop(name, None)

    def end_delete(self, name: str) -> None:
        """All that was left of a removed DAG is gone: there may be a new one."""
        self._deleting.discard(name)

    def is_own(self, name: str) -> bool:
        return name in self._replicas

    def own_dags(self) -> dict[str, tuple[cb.Dag, int]]:
        """Our own DAGs with their replicas, but those that are being deleted."""
        return {
            name: (self._dags[name], replicas)
            for name, replicas in self._replicas.items()
            if name not in self._deleting
        }

    def learned_dags(self) -> list[str]:
        """The names of those that others created."""
        return [name for name in self._dags if name not in self._replicas]

    def in_change(self) -> list[str]:
        """The DAGs of which it is not certain yet whether they will exist: a deletion may fail, too."""
        return sorted({*self._creating, *self._deleting.intersection(self._dags)})

    def dag(self, name: str) -> cb.Dag:
        """Raises NoSuchDagError."""
        dag = self._dags.get(name)
        if dag is None:
            raise NoSuchDagError(f"no DAG {name!r} exists: create it first; ray-sched status lists the DAGs")
        return dag

    def has_dag(self, name: str) -> bool:
        return name in self._dags

    def dags(self) -> dict[str, cb.Dag]:
        """All DAGs by name; not to be changed."""
        return self._dags

    def plans(self) -> dict[str, Plan]:
        """All plans by name: the dispatcher's live view, not to be changed."""
        return self._plans
