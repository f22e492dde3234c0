"""What went wrong in an actor, in its own words instead of Ray's."""

from __future__ import annotations

from ray.exceptions import RayTaskError

from ray_sched import errors
from ray_sched.errors import RaySchedError


def plain_error(role: str, error: Exception) -> RaySchedError:
    """What an actor raised, without Ray's wrapping: an error of ours itself, else its words with the role."""
    if isinstance(error, RaySchedError) and not isinstance(error, RayTaskError):
        return error
    if isinstance(error, RayTaskError):
        cause = error.cause
        if isinstance(cause, RaySchedError):
            return cause
        return RaySchedError(f"{role} failed: {type(cause).__name__}: {cause}")
    # The death of an actor is told in text alone, with the error of its constructor in the last line.
    kind, _, words = str(error).strip().rpartition("\n")[2].partition(": ")
    own = getattr(errors, kind.rpartition(".")[2], None)
    if isinstance(own, type) and issubclass(own, RaySchedError):
        return own(words)
    return RaySchedError(f"{role} died: {kind}: {words}" if words else f"{role} died: {kind}")
