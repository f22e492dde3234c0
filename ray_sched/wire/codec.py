"""Between bytes and meaning: parsing with errors that say what was wrong, and replies.

A refusal is a `GenericResponse` with the nearest of the legacy error codes. Its reason, in words,
would change the reply's bytes, so that only who asks for it gets it, as a second part of the reply:
our client adds `WANTS_REASON` to its request as a second part, which legacy clients never do. It
does so once it knows that it may, because a legacy scheduler fails at a second part: a connect request
that is `WANTS_REASON` itself gets a second, empty part in its reply from us alone.
"""

from __future__ import annotations

from typing import Final, NamedTuple, TypeVar

from google.protobuf.message import DecodeError, Message

from ray_sched import errors
from ray_sched.wire import cloudburst_pb2 as cb
from ray_sched.wire.protobuf import delimited

WANTS_REASON: Final = b"ray_sched:reason"

CODES: Final[dict[type[errors.RaySchedError], cb.CloudburstError]] = {
    errors.FunctionNotFoundError: cb.FUNC_NOT_FOUND,
    errors.NotPinnedError: cb.NOT_PINNED,
    errors.ExecutionError: cb.EXECUTION_ERROR,
    errors.NoSuchDagError: cb.NO_SUCH_DAG,
    errors.NoResourcesError: cb.NO_RESOURCES,
    errors.DagExistsError: cb.DAG_ALREADY_EXISTS,
    # The wire has no code for these: what cannot be done as it is asked is an execution error,
    # what could be done at another time is a lack of resources.
    errors.InvalidDagError: cb.EXECUTION_ERROR,
    errors.BadMessageError: cb.EXECUTION_ERROR,
    errors.TimedOutError: cb.NO_RESOURCES,
    errors.KvsError: cb.NO_RESOURCES,
}

ERRORS: Final[dict[int, type[errors.RefusedError]]] = {
    cb.FUNC_NOT_FOUND: errors.FunctionNotFoundError,
    cb.NOT_PINNED: errors.NotPinnedError,
    cb.EXECUTION_ERROR: errors.ExecutionError,
    cb.NO_SUCH_DAG: errors.NoSuchDagError,
    cb.NO_RESOURCES: errors.NoResourcesError,
    cb.DAG_ALREADY_EXISTS: errors.DagExistsError,
}
"""The exception that a code of the wire means to a client."""

M = TypeVar("M", bound=Message)


def error_meant(text: str, response: bytes) -> errors.RefusedError | None:
    """The exception that the legacy error value `(text, response)` stands for; None where it is none."""
    if not text.startswith("ERROR"):
        return None
    try:
        refused = cb.GenericResponse.FromString(response)
    except DecodeError:
        return None
    if refused.success or not refused.error:
        return None
    kind = ERRORS.get(refused.error, errors.RefusedError)
    return kind(text.removeprefix("ERROR").removeprefix(":").strip())


class Reply(NamedTuple):
    """An answer to a request: its bytes, and, where it is a refusal, why."""

    body: bytes
    reason: str = ""


OK: Final = Reply(cb.GenericResponse(success=True).SerializeToString())


def is_longer(name: str, limit: int) -> bool:
    """Whether a name has more than so many bytes; most are far from it, and need not be encoded for that."""
    return 4 * len(name) > limit and len(name.encode()) > limit


def check_names(limit: int, *names: str) -> None:
    """Raises BadMessageError for a name, a key or an id of more than `limit` bytes: such are remembered
    for a while, many of them."""
    for name in names:
        if is_longer(name, limit):
            size = len(name.encode())
            raise errors.BadMessageError(
                f"a name or key of {size} bytes: the limit is {limit} (scheduler.max_name_bytes)"
            )


def accepted(response_id: str) -> bytes:
    """The reply to a call that was placed: a `GenericResponse`, as each call needs one."""
    if not response_id:
        return OK.body
    return OK.body + delimited(cb.GenericResponse.RESPONSE_ID_FIELD_NUMBER, response_id.encode())


def refusal(error: Exception) -> Reply:
    """The reply to a request that failed; errors that are not ours count as execution errors."""
    code = next((CODES[kind] for kind in type(error).__mro__ if kind in CODES), cb.EXECUTION_ERROR)
    return Reply(cb.GenericResponse(error=code).SerializeToString(), str(error) or type(error).__name__)


def error_name(reply: Reply) -> str:
    """The protocol's name of what a refusal says, such as `NO_RESOURCES`."""
    response = cb.GenericResponse.FromString(reply.body)
    return cb.CloudburstError.Name(response.error)


def parse(kind: type[M], body: bytes) -> M:
    """Raises BadMessageError."""
    try:
        return kind.FromString(body)
    except DecodeError as error:
        raise not_a(kind.DESCRIPTOR.name, body) from error


def parse_text(what: str, body: bytes) -> str:
    """A message that is a plain string. Raises BadMessageError."""
    try:
        return body.decode()
    except UnicodeDecodeError as error:
        raise not_a(f"{what} in UTF-8", body) from error


def not_a(what: str, body: bytes) -> errors.BadMessageError:
    return errors.BadMessageError(f"{len(body)} bytes that are not a {what}")
