"""The words of the transcripts, and protobufs as these words. `README.md` explains them."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ray_sched.core.executor import Address
from ray_sched.messages import check_consistency
from ray_sched.values import CloudburstReference, from_value, to_value
from ray_sched.wire import cloudburst_pb2 as cb

_OPTION = re.compile(r"(\w+)=(.*)")
_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")


class Words:
    """The words of one command; whatever was not asked for in the end is a mistake."""

    def __init__(self, words: Iterable[str]) -> None:
        self.plain: list[str] = []
        self.options: dict[str, str] = {}
        for word in words:
            if match := _OPTION.fullmatch(word):
                self.options[match[1]] = match[2]
            else:
                self.plain.append(word)

    def take(self, option: str, default: str = "") -> str:
        return self.options.pop(option, default)

    def listed(self, option: str) -> list[str]:
        return [name for name in self.take(option).split(",") if name]

    def flag(self, word: str) -> bool:
        if word in self.plain:
            self.plain.remove(word)
            return True
        return False

    def finish(self) -> None:
        if self.plain or self.options:
            raise ValueError(f"not understood: {' '.join([*self.plain, *self.options])}")


class Ids:
    """Ids that were made up are written #1, #2 ... in the order in which they appear."""

    def __init__(self) -> None:
        self._numbers: dict[str, str] = {}

    def shorten(self, text: str) -> str:
        return _UUID.sub(lambda found: self._numbers.setdefault(found[0], f"#{len(self._numbers) + 1}"), text)

    def lengthen(self, word: str) -> str:
        return next((uuid for uuid, number in self._numbers.items() if number == word), word)


class _Names(dict[str, Any]):
    """A bare word is a text, ref(k) a reference to the key k."""

    def __missing__(self, name: str) -> Any:
        return CloudburstReference if name == "ref" else name


def values(text: str) -> list[cb.Value]:
    """`1,word,ref(k1),(ref(k2),3)` as arguments."""
    if not text:
        return []
    return [to_value(item) for item in eval(f"({text},)", {"__builtins__": {}}, _Names())]


def value_text(value: cb.Value) -> str:
    return _object_text(from_value(value))


def values_text(given: Iterable[cb.Value]) -> str:
    return ",".join(map(value_text, given))


def _object_text(item: Any) -> str:
    if isinstance(item, CloudburstReference):
        return f"ref({item.key})"
    if isinstance(item, tuple):
        return f"({','.join(map(_object_text, item))})"
    if isinstance(item, list):
        return f"[{','.join(map(_object_text, item))}]"
    return item if isinstance(item, str) else repr(item)


def address(text: str) -> Address:
    ip, _, tid = text.rpartition(":")
    return ip, int(tid)


def address_text(executor: Address) -> str:
    return f"{executor[0]}:{executor[1]}"


def name(text: str) -> str:
    """`''` stands for the empty name."""
    return "" if text == "''" else text


def dag(words: Words) -> cb.Dag:
    """`pipeline f->g f->h gpu=f`; the functions are those of the links, or those of `functions=`."""
    first, *shape = words.plain
    words.plain.clear()
    functions: dict[str, None] = {}
    links: list[tuple[str, str]] = []
    repeated: list[str] = []
    for chain in shape:
        ends = [name(end) for end in chain.split("->")]
        if len(ends) == 1 and ends[0] in functions:
            repeated += ends
        functions.update(dict.fromkeys(ends))
        links += itertools.pairwise(ends)
    message = cb.Dag(name=name(first), colocated=words.listed("colocated"))
    gpu, batching, multiexec = (words.listed(kind) for kind in ("gpu", "batching", "multiexec"))
    invalid = words.take("invalid")
    for function in words.listed("functions") or [*functions, *repeated]:
        message.functions.add(
            name=function,
            gpu=function in gpu,
            batching=function in batching,
            type=cb.MULTIEXEC if function in multiexec else cb.REGULAR,
            invalid_results=[
                value.SerializeToString(deterministic=True)
                for value in (values(invalid) if function in multiexec else [])
            ],
        )
    for source, sink in links:
        message.connections.add(source=source, sink=sink)
    return message


def dag_text(message: cb.Dag) -> str:
    """The words by which `dag` makes the message again."""
    linked = {end for link in message.connections for end in (link.source, link.sink)}
    words = [message.name, *(f"{link.source}->{link.sink}" for link in message.connections)]
    words += [function.name for function in message.functions if function.name not in linked]
    kinds = {
        "gpu": [f.name for f in message.functions if f.gpu],
        "batching": [f.name for f in message.functions if f.batching],
        "multiexec": [f.name for f in message.functions if f.type == cb.MULTIEXEC],
        "invalid": [
            value_text(cb.Value.FromString(raw)) for f in message.functions for raw in f.invalid_results
        ],
        "colocated": list(message.colocated),
    }
    return " ".join(words + [f"{kind}={','.join(those)}" for kind, those in kinds.items() if those])


def dag_call(words: Sequence[str]) -> cb.DagCall:
    """`pipeline f=1 key=out then next g=2`: a call, and what follows when it is done."""
    here, following = list(words), []
    if "then" in here:
        here, following = here[: here.index("then")], here[here.index("then") + 1 :]
    given = Words(here)
    call = cb.DagCall(
        name=given.plain.pop(0),
        response_address=given.take("response"),
        output_key=given.take("key"),
        client_id=given.take("client"),
        consistency=check_consistency(given.take("consistency", "normal")),
    )
    for function in list(given.options):
        call.function_args[function].values.extend(values(given.take(function)))
    given.finish()
    if following:
        call.continuation.call.CopyFrom(dag_call(following))
        call.continuation.name = call.continuation.call.name
    return call


def arguments_text(arguments: Mapping[str, cb.Arguments]) -> list[str]:
    return [f"{function}={values_text(arguments[function].values)}" for function in sorted(arguments)]


def result_text(
    message: cb.DagSchedule | cb.DagCall,
) -> list[str]:
    """Where the result goes, and what follows: the same words for a schedule as for a call."""
    given = {
        "key": message.output_key,
        "response": message.response_address,
        "client": message.client_id,
        "consistency": cb.ConsistencyType.Name(message.consistency).lower() if message.consistency else "",
    }
    words = [f"{option}={value}" for option, value in given.items() if value]
    if message.continuation.name:
        following = message.continuation.call
        words += ["then", message.continuation.name]
        words += [*arguments_text(following.function_args), *result_text(following)]
    return words


def schedule_text(message: cb.DagSchedule) -> str:
    """What the schedules of one call have in common."""
    places = [f"{function}@{message.locations[function]}" for function in sorted(message.locations)]
    words = [f"[{dag_text(message.dag)}]", message.id, *places, *arguments_text(message.arguments)]
    return " ".join([*words, *result_text(message), f"start={message.start_time:g}"])
