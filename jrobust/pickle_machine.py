"""The stack machine of pickle with its calls left out; see `jrobust.pickled`."""

from __future__ import annotations

import io
import pickletools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

MAX_ITEMS = 5_000_000  # counting what occurs twice twice
MAX_DEPTH = 200
TOO_LARGE = f"it is nested deeper than {MAX_DEPTH} or has more than {MAX_ITEMS} items"


@dataclass(frozen=True)
class Symbol:
    """What a pickle names as `module.name`: a function or a class, which is not looked up."""

    module: str
    name: str


@dataclass(eq=False)
class Call:
    """What a pickle would make by calling `function(*args, **kwargs)`, then giving it `state`, `entries` and `items`.

    Attributes:
      function: nearly always a `Symbol`.
      args: positional arguments.
      kwargs: keyword arguments.
      state: the argument of its `__setstate__`, or what would go into its `__dict__`; None if there is none.
      entries: what would be appended to it.
      items: keys and values that would be set in it.
    """

    function: Any
    args: tuple
    kwargs: dict = field(default_factory=dict)
    state: Any = None
    entries: list = field(default_factory=list)
    items: list[tuple] = field(default_factory=list)


@dataclass(frozen=True)
class Persistent:
    """A reference out of the pickle, such as a torch file's to the numbers of a tensor."""

    id: Any


class Bad(Exception):
    """What is wrong with a pickle."""


def run(stream: io.BytesIO) -> Any:
    """Return the data of the pickle at the position of a stream, which is left behind it.

    Raises:
      Bad: it is damaged, cut off or no pickle, or what it uses as a key is too large.
    """
    try:
        machine = _Machine()
        for opcode, argument, _ in pickletools.genops(stream):
            machine.step(opcode.name, argument)
        return machine.result()
    except (ValueError, TypeError, IndexError, OverflowError, RecursionError, MemoryError) as error:
        # what a damaged pickle leads to in pickletools, here, and in the hashing of its keys
        raise Bad(str(error).splitlines()[0] if str(error) else type(error).__name__) from error


class _Machine:
    """The stack machine of pickle with the calls left out."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []  # the stacks under each mark
        self.memo: dict[int, Any] = {}
        # Depth and size of what can be hashed, as the interpreter bounds neither the recursion nor the time of that;
        # with the thing itself, so that its identity stays its own.
        self.measured: dict[int, tuple[int, int, Any]] = {}
        self.stopped = False

    def step(self, name: str, argument: Any) -> None:
        if name in _CONSTANTS:
            self.stack.append(_CONSTANTS[name](argument))
        elif name in _STEPS:
            _STEPS[name](self, argument)
        elif name not in _IGNORED:
            raise Bad(f"it uses {name}, which refers to what is outside of the file")
        elif name == "PROTO" and argument > 5:
            raise Bad(f"protocol {argument} is newer than 5")

    def result(self) -> Any:
        if not self.stopped or self.below or len(self.stack) != 1:
            raise Bad("it does not end with one value")
        return self.stack[0]

    def top(self, count: int = 1) -> list[Any]:
        """Pop and return the last `count` values, first one first."""
        if len(self.stack) < count:
            raise Bad("it takes a value from an empty stack")
        values = self.stack[len(self.stack) - count :]
        del self.stack[len(self.stack) - count :]
        return values

    def marked(self) -> list[Any]:
        """Pop and return the values above the last mark."""
        if not self.below:
            raise Bad("it goes back to a mark that was not set")
        values, self.stack = self.stack, self.below.pop()
        return values

    def last(self) -> Any:
        if not self.stack:
            raise Bad("it takes a value from an empty stack")
        return self.stack[-1]

    def push(self, value: Any, parts: Iterable[Any]) -> None:
        """Push what holds `parts` and may be a key."""
        below = [self.measured.get(id(part), (0, 1)) for part in parts]
        depth, size = 1 + max((b[0] for b in below), default=0), 1 + sum(b[1] for b in below)
        if depth > MAX_DEPTH or size > MAX_ITEMS:
            raise Bad(TOO_LARGE)
        self.measured[id(value)] = depth, size, value
        self.stack.append(value)

    def put(self, index: int) -> None:
        self.memo[index] = self.last()

    def get(self, index: int) -> None:
        if index not in self.memo:
            raise Bad(f"it uses entry {index} of its memo, which was not written")
        self.stack.append(self.memo[index])

    def make(self, kind: Callable[[list[Any]], Any], values: list[Any]) -> None:
        self.push(kind(values), values)

    def append(self, values: list[Any]) -> None:
        target = self.last()
        if not isinstance(target, list | Call):
            raise Bad(f"it appends to {type(target).__name__}")
        (target if isinstance(target, list) else target.entries).extend(values)

    def add(self, values: list[Any]) -> None:
        target = self.last()
        if not isinstance(target, set):
            raise Bad(f"it adds to {type(target).__name__}")
        target.update(values)

    def set_items(self, values: list[Any]) -> None:
        target, pairs = self.last(), _pairs(values)
        if isinstance(target, dict):
            target.update(pairs)
        elif isinstance(target, Call):
            target.items.extend(pairs)
        else:
            raise Bad(f"it sets items of {type(target).__name__}")

    def symbol(self, module: Any, name: Any) -> None:
        if not isinstance(module, str) or not isinstance(name, str):
            raise Bad("a function has a name that is no text")
        self.stack.append(Symbol(module, name))

    def call(self, function: Any, args: Any, kwargs: Any = None) -> None:
        if not isinstance(args, tuple) or not isinstance(kwargs, dict | None):
            raise Bad("a call has arguments that are no tuple")
        container = _CONTAINERS.get((function.module, function.name)) if isinstance(function, Symbol) else None
        value = container(*args) if container and not kwargs else Call(function, args, kwargs or {})
        self.push(value, (function, args))

    def instance(self, name: str | None) -> None:
        """Push what protocol 0 makes of a class and the values above the last mark, the first of which may be it."""
        values = self.marked()
        if name is None:
            function, values = values[0], values[1:]
        else:
            self.symbol(*name.split(" ", 1))
            (function,) = self.top()
        self.call(function, tuple(values))

    def build(self, state: Any) -> None:
        target = self.last()
        if isinstance(target, Call) and target.state is None:
            target.state = state
        elif not isinstance(target, dict):  # of an OrderedDict: what else was put on it
            raise Bad(f"it gives a state to {type(target).__name__}")


def _pairs(values: list[Any]) -> list[tuple[Any, Any]]:
    return list(zip(values[::2], values[1::2], strict=True))


def _dict(pairs: Iterable[Any] = ()) -> dict:
    return dict(_listed(pairs))


def _listed(values: Any = ()) -> list | tuple:
    """Return the argument of a container, a list or tuple: anything else could be lazy or endless."""
    if not isinstance(values, list | tuple):
        raise Bad(f"a container is made from {type(values).__name__}")
    return values


def _encode(text: Any, encoding: Any) -> bytes:
    """Return how pickle writes bytes before protocol 3."""
    if not isinstance(text, str) or encoding != "latin1":
        raise Bad(f"bytes are written as {type(text).__name__} in {encoding!r}")
    return text.encode("latin-1")


def _checked(content: Any) -> bytes:
    if not isinstance(content, bytes):
        raise Bad(f"bytes are made from {type(content).__name__}")
    return content


_BUILTINS = ("builtins", "__builtin__")
# Calls that only write down plain data, which older protocols have no instruction for.
_CONTAINERS: dict[tuple[str, str], Callable[..., Any]] = {
    ("collections", "OrderedDict"): _dict,
    ("collections", "defaultdict"): lambda factory=None: {},
    ("_codecs", "encode"): _encode,
    **{(module, "set"): lambda values=(): set(_listed(values)) for module in _BUILTINS},
    **{(module, "frozenset"): lambda values=(): frozenset(_listed(values)) for module in _BUILTINS},
    **{(module, "bytes"): lambda: b"" for module in _BUILTINS},
    **{(module, "bytearray"): lambda content=b"": _checked(content) for module in _BUILTINS},
}
_CONSTANTS: dict[str, Callable[[Any], Any]] = {
    **dict.fromkeys(
        ("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"), lambda a: a
    ),
    **dict.fromkeys(("STRING", "BINSTRING", "SHORT_BINSTRING"), lambda a: a),
    **dict.fromkeys(("UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"), lambda a: a),
    **dict.fromkeys(("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"), bytes),
    "NONE": lambda a: None,
    "NEWTRUE": lambda a: True,
    "NEWFALSE": lambda a: False,
    "EMPTY_LIST": lambda a: [],
    "EMPTY_TUPLE": lambda a: (),
    "EMPTY_DICT": lambda a: {},
    "EMPTY_SET": lambda a: set(),
    "PERSID": Persistent,
}
_IGNORED = ("PROTO", "FRAME")


def _mark(machine: _Machine) -> None:
    machine.below.append(machine.stack)
    machine.stack = []


_STEPS: dict[str, Callable[[_Machine, Any], Any]] = {
    "MARK": lambda m, a: _mark(m),
    "POP": lambda m, a: m.top() if m.stack else m.marked(),
    "POP_MARK": lambda m, a: m.marked(),
    "DUP": lambda m, a: m.stack.append(m.last()),
    "STOP": lambda m, a: setattr(m, "stopped", True),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), lambda m, a: m.put(a)),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), lambda m, a: m.get(a)),
    "MEMOIZE": lambda m, a: m.put(len(m.memo)),
    "TUPLE": lambda m, a: m.make(tuple, m.marked()),
    "TUPLE1": lambda m, a: m.make(tuple, m.top(1)),
    "TUPLE2": lambda m, a: m.make(tuple, m.top(2)),
    "TUPLE3": lambda m, a: m.make(tuple, m.top(3)),
    "LIST": lambda m, a: m.make(list, m.marked()),
    "DICT": lambda m, a: m.make(lambda values: dict(_pairs(values)), m.marked()),
    "FROZENSET": lambda m, a: m.make(frozenset, m.marked()),
    "APPEND": lambda m, a: m.append(m.top()),
    "APPENDS": lambda m, a: m.append(m.marked()),
    "SETITEM": lambda m, a: m.set_items(m.top(2)),
    "SETITEMS": lambda m, a: m.set_items(m.marked()),
    "ADDITEMS": lambda m, a: m.add(m.marked()),
    "BINPERSID": lambda m, a: m.make(lambda values: Persistent(values[0]), m.top()),
    "GLOBAL": lambda m, a: m.symbol(*a.split(" ", 1)),
    "STACK_GLOBAL": lambda m, a: m.symbol(*m.top(2)),
    **dict.fromkeys(("REDUCE", "NEWOBJ"), lambda m, a: m.call(*m.top(2))),
    "NEWOBJ_EX": lambda m, a: m.call(*m.top(3)),
    "OBJ": lambda m, a: m.instance(None),
    "INST": lambda m, a: m.instance(a),
    "BUILD": lambda m, a: m.build(*m.top()),
}
