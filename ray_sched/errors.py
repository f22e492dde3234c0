"""What can go wrong, by whose fault.

Every error of this package is a `RaySchedError`. Those below `RefusedError` are the cluster's
answer to a request that arrived; `BadMessageError` is a peer that sent something wrong;
`ConfigError`, `PortTakenError`, `AlreadyRunningError`, `NotRunningError` and `NoLocalModeError` are
ours to put right; `TimedOutError` says that nobody answered in time. All carry one message string, so that
they survive pickling between actors.
"""

from __future__ import annotations


class RaySchedError(Exception):
    """Base of all errors of this package."""


class ConfigError(RaySchedError, ValueError):
    """A setting has a value that is not allowed; the message names field, value and what is."""


class PortTakenError(RaySchedError, OSError):
    """A port that has to be bound is taken; the message names it and who could hold it."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class NotRunningError(RaySchedError, ConnectionError):
    """There is no scheduler group where one was looked for."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class AlreadyRunningError(RaySchedError):
    """A scheduler group of that name runs already; a second one is never made by accident."""


class NoLocalModeError(RaySchedError):
    """This version of Ray, or this process, cannot run a group in Ray's local mode."""


class TimedOutError(RaySchedError, TimeoutError):
    """Nobody answered in time; the message says what was waited for and how long."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class BadMessageError(RaySchedError, ValueError):
    """A peer sent bytes that do not parse, or a message whose content makes no sense."""


class RefusedError(RaySchedError):
    """The cluster refused a request; the subclasses are the wire protocol's error codes."""


class FunctionNotFoundError(RefusedError, LookupError):
    """The function is not registered."""


class NotPinnedError(RefusedError):
    """The executor does not hold the function."""


class ExecutionError(RefusedError):
    """The user's function raised; the message is the legacy error text."""


class NoSuchDagError(RefusedError, LookupError):
    """No DAG of that name exists."""


class NoResourcesError(RefusedError):
    """No executor can take the request now; it may be tried again."""


class DagExistsError(RefusedError):
    """A DAG of that name exists already; delete it first."""


class InvalidDagError(RefusedError, ValueError):
    """The DAG cannot be created as it is described; the message says why."""


class KvsError(RaySchedError):
    """The key-value store refused a request."""


class KeyMissingError(KvsError, LookupError):
    """The key does not exist."""


class LatticeMismatchError(KvsError, TypeError):
    """The key holds another lattice type than the one that was written."""


def why_command(id: str, host: str) -> str:
    """What tells the story of a call."""
    return f"ray-sched why {id}" + (f" --host {host}" if host not in ("", "127.0.0.1") else "")


def failed(what: str, error: RefusedError, why: str) -> RefusedError:
    """An error value's exception as a caller hears it: with what failed, and the command that tells where.
    Some error values have no words."""
    words = str(error)
    if not words and isinstance(error, FunctionNotFoundError):
        words = "no such function is registered: register it first"
    hint = f" (where: {why})" if isinstance(error, ExecutionError) else ""
    return type(error)(f"{what} failed: {words or type(error).__name__}{hint}")
