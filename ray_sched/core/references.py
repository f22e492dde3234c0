"""Which keys the arguments of a call refer to, read from their pickles without unpickling anything.

Rule 1: nothing here imports, calls or builds what a pickle names. The opcodes are followed with
stand-ins; a stand-in knows whether it is a reference, a string, a dictionary or a tuple, and no more.
Rule 2: any bytes are fine. A pickle that is broken, or what is left of a call's arguments after
`MAX_OPCODES`, has no references:
they only say where a call runs best, and the executor that unpickles it tells what is wrong with it.
Rule 3: work and memory are bounded by the opcodes that are there, never by a number that they carry.

A reference counts at the top level and as a member of a top-level tuple, which legacy schedulers flatten.
"""

from __future__ import annotations

import pickletools
import re
from collections.abc import Callable, Iterable
from typing import Any, Final

from ray_sched.wire import cloudburst_pb2 as cb

MAX_OPCODES: Final = 4096
"""About a hundred references in one tuple; some milliseconds of work at most."""
MAX_KEY_BYTES: Final = 1 << 16

_MODULE = "cloudburst.shared.reference"
_CLASS = "CloudburstReference"
_MARKER = _CLASS.encode()

# What pickle and cloudpickle write for a reference at the top level.
_STANDARD_2 = re.compile(
    rb"\x80[\x02\x03]ccloudburst\.shared\.reference\nCloudburstReference\nq\x00\)\x81q\x01\}q\x02\("
    rb"X\x03\0\0\0keyq\x03X(.{4})(.*)q\x04X\x0b\0\0\0deserializeq\x05([\x88\x89])ub\.",
    re.DOTALL,
)
_STANDARD_4 = re.compile(
    rb"\x80[\x04\x05]\x95.{8}\x8c\x1bcloudburst\.shared\.reference\x94\x8c\x13CloudburstReference\x94\x93\x94"
    rb"\)\x81\x94\}\x94\(\x8c\x03key\x94(?:\x8c(.)|X(.{4}))(.*)\x94\x8c\x0bdeserialize\x94([\x88\x89])ub\.",
    re.DOTALL,
)


def may_refer(serialized: bytes) -> bool:
    """Whether there can be a reference among arguments that were serialized, looked at without any care:
    most calls have none, and to go through their values costs as much as to place the call."""
    return _MARKER in serialized


def references_of(values: Iterable[cb.Value]) -> list[str]:
    """The keys that these arguments refer to, in order, as often as they do."""
    keys: list[str] = []
    budget = _Budget()
    for value in values:
        if value.type == cb.DEFAULT:
            body = value.body
            if _MARKER in body:
                keys += [key for key, _ in parse_references(body, budget)]
    return keys


class _Budget:
    """The opcodes that may be read for one call, however many arguments it has."""

    def __init__(self) -> None:
        self.opcodes = MAX_OPCODES


def parse_references(body: bytes, budget: _Budget | None = None) -> list[tuple[str, bool]]:
    """(key, deserialize) of each reference in the pickled argument `body`; never raises."""
    if _MARKER not in body:
        return []
    try:
        if match := _STANDARD_4.fullmatch(body):
            length, long_length, key, flag = match.groups()
            if int.from_bytes(length or long_length, "little") == len(key):
                return [(key.decode(), flag == b"\x88")]
        elif match := _STANDARD_2.fullmatch(body):
            length, key, flag = match.groups()
            if int.from_bytes(length, "little") == len(key):
                return [(key.decode(), flag == b"\x88")]
        return _Machine(body).run(budget or _Budget())
    except (LookupError, ValueError):
        return []


class _Reference:
    """Stands for an instance of the class; its attributes, as far as they are strings and flags."""

    def __init__(self) -> None:
        self.attributes: dict[str, Any] = {}

    def found(self) -> list[tuple[str, bool]]:
        key = self.attributes.get("key")
        if not isinstance(key, str):
            return []
        key.encode()  # a key with lone surrogates cannot be on the wire: ValueError
        return [(key, self.attributes.get("deserialize") is not False)]


# Stand-ins without content. Strings, flags, tuples and dictionaries stand for themselves.
_MARK, _OTHER, _REFERENCE_CLASS, _RECONSTRUCTOR = object(), object(), object(), object()

_GLOBALS = {
    (_MODULE, _CLASS): _REFERENCE_CLASS,
    ("copyreg", "_reconstructor"): _RECONSTRUCTOR,
    ("copy_reg", "_reconstructor"): _RECONSTRUCTOR,
}

_LENGTH_BYTES = {
    pickletools.TAKEN_FROM_ARGUMENT1: 1,
    pickletools.TAKEN_FROM_ARGUMENT4: 4,
    pickletools.TAKEN_FROM_ARGUMENT4U: 4,
    pickletools.TAKEN_FROM_ARGUMENT8U: 8,
}


class _Machine:
    """A pickle machine whose stack and memo hold stand-ins."""

    def __init__(self, body: bytes) -> None:
        self.body = body
        self.at = 0
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def run(self, budget: _Budget) -> list[tuple[str, bool]]:
        """Raises LookupError or ValueError where the pickle is broken."""
        while budget.opcodes:
            budget.opcodes -= 1
            code = self.body[self.at]
            self.at += 1
            size, pops_mark, pops, pushes, handler = _OPCODES[code]
            start, end = self._argument(size)
            if handler is not None:
                handler(self, start, end)
            elif code == _STOP:
                return self._found(self.stack[-1])
            else:
                if pops_mark:
                    self.pop_to_mark()
                for _ in range(pops):
                    self.stack.pop()
                self.stack.extend([_OTHER] * pushes)
        return []

    @staticmethod
    def _found(top: Any) -> list[tuple[str, bool]]:
        members = top if isinstance(top, tuple) else (top,)
        return [found for member in members if isinstance(member, _Reference) for found in member.found()]

    def _argument(self, size: int | str) -> tuple[int, int]:
        """Where the opcode's argument, without its length, starts and ends; moves behind it."""
        start = self.at
        if size == "line":
            end = self.body.index(b"\n", start)
            self.at = end + 1
        elif size == "two lines":
            end = self.body.index(b"\n", self.body.index(b"\n", start) + 1)
            self.at = end + 1
        elif isinstance(size, str):
            width = int(size)
            start += width
            end = start + int.from_bytes(self.body[self.at : start], "little")
            self.at = end
        else:
            end = self.at = start + size
        if end > len(self.body):
            raise ValueError("the pickle ends in an argument")
        return start, end

    def pop_to_mark(self) -> list[Any]:
        at = len(self.stack) - 1
        while self.stack[at] is not _MARK:
            at -= 1
            if at < 0:
                raise LookupError("no mark")
        items = self.stack[at + 1 :]
        del self.stack[at:]
        return items

    # Handlers, one for each opcode whose effect on references matters.

    def mark(self, start: int, end: int) -> None:
        self.stack.append(_MARK)

    def push_text(self, start: int, end: int) -> None:
        if end - start > MAX_KEY_BYTES:
            self.stack.append(_OTHER)
        else:
            self.stack.append(self.body[start:end].decode(errors="surrogatepass"))

    def push_raw_unicode(self, start: int, end: int) -> None:
        if end - start > MAX_KEY_BYTES:
            self.stack.append(_OTHER)
        else:
            self.stack.append(self.body[start:end].decode("raw-unicode-escape"))

    def push_true(self, start: int, end: int) -> None:
        self.stack.append(True)

    def push_false(self, start: int, end: int) -> None:
        self.stack.append(False)

    def push_int_line(self, start: int, end: int) -> None:
        # Protocols 0 and 1 have no flags of their own: `I01` is True, `I00` False.
        self.stack.append({b"01": True, b"00": False}.get(self.body[start:end], _OTHER))

    def push_global(self, start: int, end: int) -> None:
        self._push_named(*self.body[start:end].decode(errors="replace").split("\n", 1))

    def stack_global(self, start: int, end: int) -> None:
        name = self.stack.pop()
        self._push_named(self.stack.pop(), name)

    def _push_named(self, module: Any, name: Any) -> None:
        named = isinstance(module, str) and isinstance(name, str)
        self.stack.append(_GLOBALS.get((module, name), _OTHER) if named else _OTHER)

    def dup(self, start: int, end: int) -> None:
        self.stack.append(self.stack[-1])

    def pop(self, start: int, end: int) -> None:
        self.stack.pop()

    def tuple0(self, start: int, end: int) -> None:
        self.stack.append(())

    def tuple1(self, start: int, end: int) -> None:
        self._tuple_of(1)

    def tuple2(self, start: int, end: int) -> None:
        self._tuple_of(2)

    def tuple3(self, start: int, end: int) -> None:
        self._tuple_of(3)

    def _tuple_of(self, count: int) -> None:
        members = tuple(self.stack[-count:])
        if len(members) < count:
            raise LookupError("the stack is empty")
        self.stack[-count:] = [members]

    def tuple_from_mark(self, start: int, end: int) -> None:
        self.stack.append(tuple(self.pop_to_mark()))

    def empty_dict(self, start: int, end: int) -> None:
        self.stack.append({})

    def dict_from_mark(self, start: int, end: int) -> None:
        items = self.pop_to_mark()
        self.stack.append({})
        self._set_items(items)

    def set_item(self, start: int, end: int) -> None:
        value = self.stack.pop()
        self._set_items([self.stack.pop(), value])

    def set_items(self, start: int, end: int) -> None:
        self._set_items(self.pop_to_mark())

    def _set_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, dict):
            pairs = zip(items[::2], items[1::2], strict=True)
            target.update((key, value) for key, value in pairs if isinstance(key, str))

    def new_object(self, start: int, end: int) -> None:
        arguments = self.stack.pop()
        self._make(self.stack.pop(), arguments, called=False)

    def new_object_ex(self, start: int, end: int) -> None:
        self.stack.pop()
        self.new_object(start, end)

    def reduce(self, start: int, end: int) -> None:
        arguments = self.stack.pop()
        self._make(self.stack.pop(), arguments, called=True)

    def _make(self, maker: Any, arguments: Any, *, called: bool) -> None:
        made: Any = _OTHER
        if maker is _REFERENCE_CLASS:
            made = _Reference()
            if called and isinstance(arguments, tuple):
                made.attributes.update(zip(("key", "deserialize"), arguments, strict=False))
        elif maker is _RECONSTRUCTOR and isinstance(arguments, tuple) and arguments[0] is _REFERENCE_CLASS:
            made = _Reference()
        self.stack.append(made)

    def build(self, start: int, end: int) -> None:
        state = self.stack.pop()
        target = self.stack[-1]
        if isinstance(target, _Reference):
            # A pair is (attributes, slots); slots are set as attributes are.
            for part in state if isinstance(state, tuple) and len(state) == 2 else (state,):
                if isinstance(part, dict):
                    target.attributes.update(part)

    def memoize(self, start: int, end: int) -> None:
        self.memo[len(self.memo)] = self.stack[-1]

    def put(self, start: int, end: int) -> None:
        self.memo[int.from_bytes(self.body[start:end], "little")] = self.stack[-1]

    def get(self, start: int, end: int) -> None:
        self.stack.append(self.memo[int.from_bytes(self.body[start:end], "little")])

    def put_line(self, start: int, end: int) -> None:
        self.memo[self._index(start, end)] = self.stack[-1]

    def get_line(self, start: int, end: int) -> None:
        self.stack.append(self.memo[self._index(start, end)])

    def _index(self, start: int, end: int) -> int:
        if end - start > 20:
            raise ValueError("no memo is that long")
        return int(self.body[start:end])


_Handler = Callable[[_Machine, int, int], None]
_HANDLERS: dict[str, _Handler] = {
    "MARK": _Machine.mark,
    "UNICODE": _Machine.push_raw_unicode,
    "SHORT_BINUNICODE": _Machine.push_text,
    "BINUNICODE": _Machine.push_text,
    "BINUNICODE8": _Machine.push_text,
    "NEWTRUE": _Machine.push_true,
    "NEWFALSE": _Machine.push_false,
    "INT": _Machine.push_int_line,
    "GLOBAL": _Machine.push_global,
    "STACK_GLOBAL": _Machine.stack_global,
    "DUP": _Machine.dup,
    "POP": _Machine.pop,
    "EMPTY_TUPLE": _Machine.tuple0,
    "TUPLE1": _Machine.tuple1,
    "TUPLE2": _Machine.tuple2,
    "TUPLE3": _Machine.tuple3,
    "TUPLE": _Machine.tuple_from_mark,
    "EMPTY_DICT": _Machine.empty_dict,
    "DICT": _Machine.dict_from_mark,
    "SETITEM": _Machine.set_item,
    "SETITEMS": _Machine.set_items,
    "NEWOBJ": _Machine.new_object,
    "NEWOBJ_EX": _Machine.new_object_ex,
    "REDUCE": _Machine.reduce,
    "BUILD": _Machine.build,
    "MEMOIZE": _Machine.memoize,
    "BINPUT": _Machine.put,
    "LONG_BINPUT": _Machine.put,
    "BINGET": _Machine.get,
    "LONG_BINGET": _Machine.get,
    "PUT": _Machine.put_line,
    "GET": _Machine.get_line,
}


def _table() -> dict[int, tuple[int | str, bool, int, int, _Handler | None]]:
    """For each opcode: its argument's size, whether it pops to a mark, pops, pushes, and its handler.

    The size is a number of bytes, "line", "two lines", or how many bytes the length in front takes.
    """
    table: dict[int, tuple[int | str, bool, int, int, _Handler | None]] = {}
    for opcode in pickletools.opcodes:
        size: int | str
        if opcode.arg is None:
            size = 0
        elif opcode.arg.name == "stringnl_noescape_pair":
            size = "two lines"
        elif opcode.arg.n == pickletools.UP_TO_NEWLINE:
            size = "line"
        else:
            size = opcode.arg.n if opcode.arg.n >= 0 else str(_LENGTH_BYTES[opcode.arg.n])
        before = opcode.stack_before
        pops_mark = pickletools.markobject in before
        pops = before.index(pickletools.markobject) if pops_mark else len(before)
        row = (size, pops_mark, pops, len(opcode.stack_after), _HANDLERS.get(opcode.name))
        table[ord(opcode.code)] = row
    return table


_OPCODES: Final = _table()
_STOP: Final = ord(".")
