"""The Python API over ZeroMQ: what `ray_sched.connect` gives.

    with ray_sched.connect("127.0.0.1") as client:
        square = client.register(lambda library, x: x * x, "square")
        assert square(3).get(timeout_s=10) == 9

A function's first argument is the executor's user library. Every wait has a time-out, and what is refused
raises an error of `ray_sched.errors`. Results are unpickled here: connect to schedulers that you trust.
"""

from __future__ import annotations

import itertools
import os
import socket
import time
from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, Final

from ray_sched.errors import (
    BadMessageError,
    FunctionNotFoundError,
    InvalidDagError,
    KeyMissingError,
    NoResourcesError,
    NotRunningError,
    RefusedError,
    TimedOutError,
)
from ray_sched.future import Future, object_in
from ray_sched.kvs.client import KvsClient
from ray_sched.messages import (
    Continuation,
    DagFunction,
    build_call,
    build_dag,
    build_dag_call,
    build_function,
    check_consistency,
    check_name,
)
from ray_sched.requests import Requester
from ray_sched.responses import ResponsePool
from ray_sched.values import dumps
from ray_sched.wire import cloudburst_pb2 as cb
from ray_sched.wire import ports, shared_pb2
from ray_sched.wire.codec import ERRORS, WANTS_REASON, parse, parse_text
from ray_sched.wire.curve import Keys

__all__ = ["Client", "Continuation", "DagFunction", "Future", "RemoteFunction", "build_dag", "connect"]

AGAIN_S: Final = 0.5
"""After which a DAG that found no room is tried again."""
_ADVICE: Final[dict[int, str]] = {
    cb.FUNC_NOT_FOUND: "a function that it needs is not registered: register that first",
    cb.NOT_PINNED: "the executor does not hold the function (any more): try again",
    cb.NO_SUCH_DAG: "no DAG of that name exists: register it first",
    cb.NO_RESOURCES: "no executor can take it now: try again later, or start more executors",
    cb.DAG_ALREADY_EXISTS: "a DAG of that name exists already: delete it first",
}
"""For schedulers that tell a code and no reason."""

# Inside the class `list` is its method.
_Names = list[str]
_Parts = list[bytes]


def connect(
    host: str = "127.0.0.1",
    *,
    timeout_s: float = 5.0,
    local_ip: str | None = None,
    kvs_routing_ports: int = 1,
    keys: str | os.PathLike[str] | None = None,
) -> Client:
    """A client of the scheduler at `host`.

    `timeout_s` is how long each request may take. Results and values come to `local_ip`, an address of
    this machine that executors and the key-value store can reach; the default is the one from which
    `host` is reached. `kvs_routing_ports` is 4 for an Anna in cluster mode. `keys` is the folder of this
    client's keys, for a scheduler that admits their holders alone (`ray-sched keys new`).

    Raises:
        NotRunningError: no scheduler answered at `host` within `timeout_s` seconds.
        ConfigError: `local_ip` is no address of this machine, or `keys` no folder of keys.
        PortTakenError: `local_ip` has no room for another client of the key-value store.
    """
    own = Keys.of_client(keys) if keys is not None else None
    local_ip = local_ip or _local_ip(host)
    requester = Requester(host, own)
    try:
        # A legacy scheduler takes any string here, and answers with one part. Ours adds a second one when
        # it is asked like this, and may then be asked for its reasons; a legacy one would not survive that.
        routing, *gives_reasons = requester.read(
            ports.CONNECT, [WANTS_REASON], f"connect to {host}", timeout_s=timeout_s
        )
        kvs = KvsClient(
            parse_text("address of the key-value store", routing),
            local_ip,
            timeout_s=min(timeout_s, 3.0),
            routing_ports=kvs_routing_ports,
            keys=own,
        )
    except TimedOutError as error:
        requester.close()
        raise NotRunningError(str(error)) from error
    except BaseException:
        requester.close()
        raise
    responses = ResponsePool(local_ip, keys=own)
    return Client(requester, kvs, responses, timeout_s=timeout_s, reasons=bool(gives_reasons))


class Client:
    """Registers and calls functions and DAGs; made by `connect`. Thread-safe; close it after use.

    Every method raises TimedOutError when the scheduler does not reply in time: it may then have
    done what was asked, or not, and the client can be used further. Arguments that cannot be sent
    raise BadMessageError (InvalidDagError for a DAG) before anything is sent. A `timeout_s` of None
    is that of `connect`.
    """

    def __init__(
        self,
        requester: Requester,
        kvs: KvsClient,
        responses: ResponsePool,
        *,
        timeout_s: float,
        reasons: bool,
    ) -> None:
        self._requester = requester
        self._kvs = kvs
        self._responses = responses
        self._timeout_s = timeout_s
        self._reasons = reasons
        self._request_ids = itertools.count(1)

    def register(
        self, function: Any, name: str, *, consistency: str = "normal", timeout_s: float | None = None
    ) -> RemoteFunction:
        """Store a function, or a class with a `run` method as `(cls, args)`, under a name.

        Executors call a function as `function(library, ...)`; of a class each makes one
        `cls(library, *args)`, whose `run(library, ...)` every call there shares.
        A function of that name is replaced. `consistency` (normal, single, multi) is that of the
        calls of what is returned. Raises RefusedError when the scheduler cannot store it.
        """
        check_consistency(consistency)
        message = build_function(function, name)
        self._request(
            ports.FUNCTION_CREATE, message.SerializeToString(), f"register function {name!r}", timeout_s
        )
        return RemoteFunction(self, name, consistency)

    def function(self, name: str, *, consistency: str = "normal") -> RemoteFunction:
        """A function that is registered. Raises FunctionNotFoundError."""
        check_consistency(consistency)
        check_name("a function", name)
        if name not in self.list(name):
            raise FunctionNotFoundError(f"no function {name!r} is registered: register it first")
        return RemoteFunction(self, name, consistency)

    def list(self, prefix: str = "", *, timeout_s: float | None = None) -> _Names:
        """The names of the registered functions that start with `prefix`, sorted."""
        what = f"list functions {prefix!r}"
        raw, *reason = self._requester.read(
            ports.LIST, self._parts(prefix.encode()), what, timeout_s=self._patience(timeout_s)
        )
        # The two messages have no field in common: a refusal is no list, and a list no refusal.
        refused = parse(cb.GenericResponse, raw).error
        if refused:
            raise _refusal(refused, _text(reason), what)
        return sorted(parse(shared_pb2.StringSet, raw).keys)

    def register_dag(
        self,
        name: str,
        functions: Sequence[str | DagFunction],
        connections: Iterable[tuple[str, str]] = (),
        *,
        colocated: Iterable[str] = (),
        timeout_s: float = 60.0,
        wait_s: float = 0.0,
    ) -> None:
        """Create a DAG of registered functions, and pin them on executors.

        `connections` are pairs (source, sink) of function names; `colocated` functions are placed on
        one node as far as there is room. A DAG that finds no room is tried again for `wait_s` seconds, in
        which an autoscaler may add nodes for it.

        Raises:
            DagExistsError: a DAG of that name exists.
            FunctionNotFoundError: one of the functions is not registered.
            InvalidDagError: the functions and connections make no DAG.
            NoResourcesError: not every function found an executor.
        """
        raw = build_dag(name, functions, connections, colocated).SerializeToString()
        until = time.monotonic() + wait_s
        while True:
            try:
                self._request(ports.DAG_CREATE, raw, f"register DAG {name!r}", timeout_s, InvalidDagError)
                return
            except NoResourcesError:
                left_s = until - time.monotonic()
                if left_s <= 0:
                    raise
            time.sleep(min(AGAIN_S, left_s))

    def call_dag(
        self,
        name: str,
        args: Mapping[str, Sequence[Any]] | None = None,
        *,
        direct_response: bool = False,
        output_key: str | None = None,
        consistency: str = "normal",
        client_id: str | None = None,
        continuation: Continuation | None = None,
        timeout_s: float | None = None,
    ) -> Future:
        """Call a DAG with arguments by function name; upstream results are appended to them.

        The result goes to `output_key`, to a key of its own where that is None, or straight to this
        client with `direct_response`. A key that held a value before gives that until the result
        comes. Futures of other calls, and `CloudburstReference`s, are replaced by the values at their keys.

        Raises:
            NoSuchDagError: no DAG of that name exists.
            NoResourcesError: no executor can take it now, or too many direct responses are waited for.
        """
        if direct_response and output_key:
            raise BadMessageError(
                f"DAG {name!r}: a direct response is stored nowhere; leave out output_key or direct_response"
            )
        pending = self._responses.lease() if direct_response else None
        try:
            call = build_dag_call(
                name,
                {} if args is None else args,
                response_address=pending.address if pending else "",
                output_key=output_key or "",
                consistency=consistency,
                client_id=client_id or "",
                continuation=continuation,
            )
            response = self._request(
                ports.DAG_CALL, call.SerializeToString(), f"call DAG {name!r}", timeout_s
            )
        except BaseException:
            if pending:
                pending.cancel()
            raise
        return Future(f"DAG {name!r}", response.response_id, self._kvs, pending, self._requester.host)

    def delete_dag(self, name: str, *, timeout_s: float = 60.0) -> None:
        """Remove a DAG and unpin its functions. Raises NoSuchDagError."""
        check_name("a DAG", name)
        self._request(ports.DAG_DELETE, name.encode(), f"delete DAG {name!r}", timeout_s)

    def get(self, key: str) -> Any:
        """The value of a key of the key-value store; a list of the members where it is a set.

        Of concurrent causal writes the first in byte order, as executors see it. Raises
        KeyMissingError, KvsError, and BadMessageError where the value cannot be read.
        """
        lattice = self._kvs.get(check_name("a key", key))
        if lattice is None:
            raise KeyMissingError(f"the key-value store has no key {key!r}")
        return object_in(lattice)

    def put(self, key: str, value: Any) -> None:
        """Write a key; the last writer wins. Raises KvsError, LatticeMismatchError."""
        check_name("a key", key)
        try:
            raw = dumps(value)
        except Exception as error:
            raise BadMessageError(
                f"the value for key {key!r} cannot be pickled: {type(error).__name__}: {error}"
            ) from error
        self._kvs.put_bytes(key, raw)

    def close(self) -> None:
        """End whatever waits with an error. Again is harmless."""
        self._requester.close()
        self._responses.close()
        self._kvs.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _call(
        self, name: str, args: Sequence[Any], response_key: str, consistency: str, timeout_s: float | None
    ) -> Future:
        call = build_call(
            name,
            args,
            response_key=response_key,
            consistency=consistency,
            request_id=next(self._request_ids) & 0xFFFFFFFF,
        )
        response = self._request(
            ports.FUNCTION_CALL, call.SerializeToString(), f"call function {name!r}", timeout_s
        )
        return Future(f"function {name!r}", response.response_id, self._kvs, None, self._requester.host)

    def _request(
        self,
        port: int,
        body: bytes,
        what: str,
        timeout_s: float | None,
        invalid: type[RefusedError] = RefusedError,
    ) -> cb.GenericResponse:
        """Ask once, for a GenericResponse. Raises what it refuses with."""
        raw, *reason = self._requester.ask(port, self._parts(body), what, timeout_s=self._patience(timeout_s))
        response = parse(cb.GenericResponse, raw)
        if not response.success:
            raise _refusal(response.error, _text(reason), what, invalid)
        return response

    def _parts(self, body: bytes) -> _Parts:
        return [body, WANTS_REASON] if self._reasons else [body]

    def _patience(self, timeout_s: float | None) -> float:
        return self._timeout_s if timeout_s is None else timeout_s


class RemoteFunction:
    """A registered function; calling it gives a `Future`."""

    def __init__(self, client: Client, name: str, consistency: str) -> None:
        self._client = client
        self.name = name
        self._consistency = consistency

    def __call__(self, *args: Any) -> Future:
        """Call it once, on an executor of the scheduler's choice. Raises NoResourcesError."""
        return self.call(*args)

    def call(
        self,
        *args: Any,
        response_key: str | None = None,
        consistency: str | None = None,
        timeout_s: float | None = None,
    ) -> Future:
        """As `self(*args)`; the result goes to `response_key`, and asking may take `timeout_s` seconds."""
        return self._client._call(
            self.name, args, response_key or "", consistency or self._consistency, timeout_s
        )

    def __repr__(self) -> str:
        return f"RemoteFunction({self.name!r})"


def _refusal(code: int, reason: str, what: str, invalid: type[RefusedError] = RefusedError) -> RefusedError:
    """`invalid` is what an execution error means, where nothing was to be executed yet."""
    kind = invalid if code == cb.EXECUTION_ERROR else ERRORS.get(code, RefusedError)
    return kind(f"{what}: {reason or _ADVICE.get(code, 'the scheduler refused, and gave no reason')}")


def _text(reason: list[bytes]) -> str:
    return reason[0].decode(errors="replace") if reason else ""


def _local_ip(host: str) -> str:
    """The address from which packets to `host` leave. Raises NotRunningError."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((host, ports.CONNECT))  # sends nothing
            return str(probe.getsockname()[0])
    except OSError as error:
        raise NotRunningError(f"{host!r} cannot be reached from here: {error}") from error
