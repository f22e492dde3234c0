"""The wire's requests, from what a Python caller gives; what cannot be sent is refused here."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from ray_sched.errors import BadMessageError, InvalidDagError, RaySchedError
from ray_sched.future import Future
from ray_sched.values import dumps, to_value
from ray_sched.wire import cloudburst_pb2 as cb

CONSISTENCIES: Final = {"normal": cb.NORMAL, "single": cb.SINGLE, "multi": cb.MULTI}


@dataclass(frozen=True)
class DagFunction:
    """A registered function, as a DAG uses it."""

    name: str
    gpu: bool = False
    batching: bool = False
    """It takes a list of many requests' arguments at once."""
    multiexec: bool = False
    """It runs once for each trigger, until a result is not among `invalid_results`."""
    invalid_results: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Continuation:
    """A DAG to be called next, with the result appended to `args` of each of its source functions."""

    name: str
    args: Mapping[str, Sequence[Any]]
    continuation: Continuation | None = None


def build_function(function: Any, name: str) -> cb.Function:
    """A function, or a class with a `run` method as the tuple `(cls, args)`. Raises BadMessageError."""
    check_name("a function", name)
    body: Any = function
    if isinstance(function, tuple):
        cls, *rest = function
        if not isinstance(cls, type) or not callable(getattr(cls, "run", None)) or len(rest) > 1:
            raise BadMessageError(
                f"function {name!r}: a tuple has to be (class with a `run` method, its arguments)"
            )
        given = rest[0] if rest else ()
        # Legacy executors fail on anything but a tuple here.
        body = (cls, given if isinstance(given, tuple) else (given,))
    elif not callable(function):
        raise BadMessageError(f"function {name!r}: a {type(function).__name__} cannot be called")
    elif isinstance(function, type) and callable(getattr(function, "run", None)):
        raise BadMessageError(
            f"function {name!r}: register a class with a `run` method as (class, its arguments)"
        )
    elif inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
        raise BadMessageError(
            f"function {name!r}: an async function gives no result here: use asyncio.run within a function"
        )
    elif inspect.isgeneratorfunction(function):
        raise BadMessageError(f"function {name!r}: a generator's result cannot be sent: return a list")
    try:
        return cb.Function(name=name, body=dumps(body))
    except Exception as error:
        raise BadMessageError(f"function {name!r} cannot be pickled: {_said(error)}") from error


def build_dag(
    name: str,
    functions: Sequence[str | DagFunction],
    connections: Iterable[tuple[str, str]] = (),
    colocated: Iterable[str] = (),
) -> cb.Dag:
    """Raises InvalidDagError, for what can be seen without knowing which functions are registered."""
    check_name("a DAG", name, InvalidDagError)
    if isinstance(functions, str) or not functions:
        raise InvalidDagError(f"DAG {name!r}: give its functions as a list of at least one")
    dag = cb.Dag(name=name)
    for function in functions:
        dag.functions.append(_function_reference(name, function))
    known = {reference.name for reference in dag.functions}
    if len(known) < len(dag.functions):
        raise InvalidDagError(f"DAG {name!r}: a function is in it twice")
    for link in connections:
        if not isinstance(link, (tuple, list)) or len(link) != 2:
            raise InvalidDagError(f"DAG {name!r}: {link!r} is not a connection, a pair (source, sink)")
        for end in link:
            if end not in known:
                raise InvalidDagError(
                    f"DAG {name!r}: the connection {link!r} names {end!r}, which is not in it"
                )
        dag.connections.add(source=link[0], sink=link[1])
    for function_name in colocated:
        if function_name not in known:
            raise InvalidDagError(f"DAG {name!r}: {function_name!r} is to be colocated, but is not in it")
        dag.colocated.append(function_name)
    return dag


def build_call(
    name: str,
    args: Sequence[Any],
    *,
    response_key: str = "",
    consistency: str = "normal",
    request_id: int = 0,
) -> cb.FunctionCall:
    """Raises BadMessageError."""
    check_name("a function", name)
    return cb.FunctionCall(
        name=name,
        request_id=request_id,
        arguments=_arguments(f"function {name!r}", args),
        response_key=response_key,
        consistency=check_consistency(consistency),
    )


def build_dag_call(
    name: str,
    args: Mapping[str, Sequence[Any]],
    *,
    response_address: str = "",
    output_key: str = "",
    consistency: str = "normal",
    client_id: str = "",
    continuation: Continuation | None = None,
) -> cb.DagCall:
    """Raises BadMessageError. Where the result goes holds for the last of the continuations."""
    check_name("a DAG", name)
    if not isinstance(args, Mapping):
        raise BadMessageError(f"DAG {name!r}: give arguments as {{function: [argument, ...]}}")
    call = cb.DagCall(
        name=name,
        response_address=response_address,
        output_key=output_key,
        consistency=check_consistency(consistency),
        client_id=client_id,
    )
    for function, given in args.items():
        check_name(f"DAG {name!r}: a function", function)
        call.function_args[function].CopyFrom(_arguments(f"DAG {name!r}, function {function!r}", given))
    if continuation is not None and not isinstance(continuation, Continuation):
        raise BadMessageError(
            f"DAG {name!r}: {continuation!r} is no Continuation: give Continuation(dag, args)"
        )
    if continuation is not None:
        call.continuation.name = continuation.name
        call.continuation.call.CopyFrom(
            build_dag_call(
                continuation.name,
                continuation.args,
                response_address=response_address,
                output_key=output_key,
                consistency=consistency,
                client_id=client_id,
                continuation=continuation.continuation,
            )
        )
    return call


def check_name(what: str, name: Any, kind: type[RaySchedError] = BadMessageError) -> str:
    """The name, if it can be one: text that UTF-8 has, and not empty."""
    if not isinstance(name, str) or not name:
        raise kind(f"{what} needs a name that is a string and not empty, not {name!r}")
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise kind(f"{what} needs a name that can be written as UTF-8: {error}") from error
    return name


def check_consistency(name: str) -> cb.ConsistencyType:
    if name not in CONSISTENCIES:
        raise BadMessageError(f"consistency {name!r} is not one of {', '.join(CONSISTENCIES)}")
    return CONSISTENCIES[name]


def _function_reference(dag: str, function: str | DagFunction) -> cb.Dag.FunctionReference:
    if not isinstance(function, DagFunction):
        function = DagFunction(function)
    check_name(f"DAG {dag!r}: a function", function.name, InvalidDagError)
    if function.invalid_results and not function.multiexec:
        raise InvalidDagError(f"DAG {dag!r}: {function.name!r} has invalid results, but is not multiexec")
    try:
        invalid_results = [dumps(result) for result in function.invalid_results]
    except Exception as error:
        raise InvalidDagError(
            f"DAG {dag!r}: an invalid result of {function.name!r} cannot be pickled: {_said(error)}"
        ) from error
    return cb.Dag.FunctionReference(
        name=function.name,
        type=cb.MULTIEXEC if function.multiexec else cb.REGULAR,
        invalid_results=invalid_results,
        gpu=function.gpu,
        batching=function.batching,
    )


def _arguments(what: str, given: Any) -> cb.Arguments:
    if not isinstance(given, (list, tuple)):
        raise BadMessageError(f"{what}: give arguments as a list, not a {type(given).__name__}")
    arguments = cb.Arguments()
    for number, argument in enumerate(given, 1):
        try:
            given_as = argument.reference() if isinstance(argument, Future) else argument
            arguments.values.append(to_value(given_as))
        except RaySchedError:
            raise
        except Exception as error:
            raise BadMessageError(f"{what}: argument {number} cannot be pickled: {_said(error)}") from error
    return arguments


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
