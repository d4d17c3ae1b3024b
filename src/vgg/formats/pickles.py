"""Pickles, read without running anything.

A pickle is a program for a stack machine that may call any function by its name. Here the program is followed, but nothing is
imported, built or called: what would be an object becomes a `Record` of the name and arguments. A few names are known to the
caller, which makes plain values of them. The memory is bounded by the length of the pickle, the time by `MOST`. A pickle can
pass one value to many calls, which may copy it; the lengths of their arguments are counted.
"""

import pickletools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, BinaryIO

from ..errors import ModelError

MOST = 2**21  # opcodes; the state of VGG-16 and its optimizer has 5000
_COPIED = 2**20  # length of the arguments of calls that may exceed that of the pickle
# Opcodes that push their argument, a number, text or bytes.
_VALUES = frozenset((
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "STRING", "BINSTRING",
    "SHORT_BINSTRING", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8",
    "BYTEARRAY8",
))  # fmt: skip
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_EMPTY: dict[str, Callable[[], Any]] = {"EMPTY_LIST": list, "EMPTY_TUPLE": tuple, "EMPTY_DICT": dict, "EMPTY_SET": list}
_SCALARS = (str, int, float, bytes, type(None))  # keys of dictionaries; the hash of nested tuples could take forever


class Record:
    """A class or function named in a pickle, or what the pickle would make with it.

    Attributes:
        name: module and name, such as `torch.nn.modules.linear.Linear`.
        arguments: those of the call; None for the class or function itself.
        state: what the pickle would pass to `__setstate__`.
        items: the entries if it is a kind of dictionary.
    """

    __slots__ = ("arguments", "items", "name", "state")

    def __init__(self, name: str, arguments: Any = None) -> None:
        self.name, self.arguments = name, arguments
        self.state: Any = None
        self.items: dict[Any, Any] = {}

    def __repr__(self) -> str:
        return self.name


class _Machine:
    """The stack of a pickle, its marks, and the values that it refers to again."""

    def __init__(self, known: Mapping[str, Callable[..., Any]]) -> None:
        self.known = known
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        self.copied = 0  # the length of the arguments of known functions

    def marked(self) -> list[Any]:
        """The values since the last mark, which leave the stack."""
        start = self.marks.pop()
        values = self.stack[start:]
        del self.stack[start:]
        return values

    def last(self, count: int) -> list[Any]:
        values = self.stack[-count:]
        if len(values) < count:
            raise ValueError("a pickle with too few values")
        del self.stack[-count:]
        return values

    def made(self, function: Any, arguments: Any) -> Any:
        """The value of a call: a record, or what is known of a name."""
        name = function.name if isinstance(function, Record) else type(function).__name__
        if isinstance(function, Record) and function.arguments is None and name in self.known:
            try:
                self.copied += sum(len(one) for one in arguments if isinstance(one, str | bytes | list | tuple | dict))
                return self.known[name](*arguments)
            except (TypeError, ValueError, AttributeError, LookupError):  # other arguments than expected
                pass
        return Record(name, arguments)

    def fill(self, target: Any, values: list[Any]) -> None:
        """Keys and values, alternating, into a dictionary or record."""
        entries = target.items if isinstance(target, Record) else target
        if isinstance(entries, dict):
            fill(entries, zip(values[::2], values[1::2], strict=True))

    def step(self, name: str, argument: Any, persistent: Callable[[Any], Any]) -> None:
        """Follow one opcode."""
        stack = self.stack
        if name in _VALUES:
            stack.append(argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in _EMPTY:
            stack.append(_EMPTY[name]())
        elif name == "MARK":
            self.marks.append(len(stack))
        elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
            self.memo[argument] = stack[-1]
        elif name == "MEMOIZE":
            self.memo[len(self.memo)] = stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(self.memo[argument])
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            stack.append(tuple(self.last(int(name[-1]))))
        elif name in ("TUPLE", "LIST", "FROZENSET"):
            values = self.marked()
            stack.append(tuple(values) if name == "TUPLE" else values)
        elif name == "DICT":
            values = self.marked()
            stack.append({})
            self.fill(stack[-1], values)
        elif name == "SETITEM":
            values = self.last(2)
            self.fill(stack[-1], values)
        elif name == "SETITEMS":
            values = self.marked()
            self.fill(stack[-1], values)
        elif name in ("APPEND", "APPENDS", "ADDITEMS"):
            values = self.last(1) if name == "APPEND" else self.marked()
            if isinstance(stack[-1], list):  # a record that is a kind of list or set stays empty
                stack[-1].extend(values)
        elif name in ("GLOBAL", "STACK_GLOBAL"):
            parts = argument.split(" ") if name == "GLOBAL" else self.last(2)
            stack.append(Record(".".join(map(str, parts))))
        elif name in ("REDUCE", "NEWOBJ"):
            stack.append(self.made(*self.last(2)))
        elif name == "NEWOBJ_EX":
            stack.append(self.made(*self.last(3)[:2]))
        elif name in ("INST", "OBJ"):
            values = self.marked()
            function = Record(argument.replace(" ", ".")) if name == "INST" else values.pop(0)
            stack.append(self.made(function, tuple(values)))
        elif name == "BUILD":
            (state,) = self.last(1)
            if isinstance(stack[-1], Record):
                stack[-1].state = state
        elif name in ("PERSID", "BINPERSID"):
            stack.append(persistent(argument if name == "PERSID" else self.last(1)[0]))
        elif name == "POP" and self.marks and self.marks[-1] == len(stack):
            self.marks.pop()
        elif name == "POP":
            self.last(1)
        elif name == "POP_MARK":
            self.marked()
        elif name == "DUP":
            stack.append(stack[-1])
        elif name in ("EXT1", "EXT2", "EXT4"):
            stack.append(Record(f"extension {argument}"))
        elif name == "NEXT_BUFFER":
            stack.append(Record("a buffer outside the file"))
        elif name not in ("PROTO", "FRAME", "READONLY_BUFFER"):
            raise ValueError(f"unsupported opcode {name}")


def fill(target: dict[Any, Any], pairs: Iterable[tuple[Any, Any]]) -> None:
    """Set entries whose keys are numbers or text; others are left out."""
    target.update((key, value) for key, value in pairs if isinstance(key, _SCALARS))


def budget() -> Iterator[int]:
    """The opcodes that may be followed in one file; a pickle within a pickle uses the same."""
    return iter(range(MOST))


def load(
    path: object,
    file: BinaryIO,
    known: Mapping[str, Callable[..., Any]],
    persistent: Callable[[Any], Any],
    opcodes: Iterator[int] | None = None,
) -> Any:
    """The content of the pickle at a file's position, of which the rest is not read.

    Args:
        path: the file, for errors.
        file: the pickle.
        known: functions that make a plain value for a name, from the arguments in the pickle.
        persistent: makes the value of an object outside the pickle, from its identifier.
        opcodes: `budget()`, if several pickles share it.

    Raises:
        ModelError: the pickle is too long.
        ValueError, LookupError, TypeError: it is damaged.
    """
    machine = _Machine(known)
    opcodes = budget() if opcodes is None else opcodes
    for opcode, argument, _ in pickletools.genops(file):
        if opcode.name == "STOP":
            break
        if next(opcodes, None) is None:
            raise ModelError(f"{path}: its pickle has more than {MOST} entries; save the weights alone, in torch a state_dict")
        machine.step(opcode.name, argument, persistent)
        if machine.copied > _COPIED and machine.copied > _COPIED + 2 * file.tell():
            raise ValueError("a pickle that passes its values to too many calls")
    return machine.stack.pop()
