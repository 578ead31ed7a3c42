"""What devices send each other in a compiled program."""

from __future__ import annotations

import re
from typing import NamedTuple

import jax

# Of the asynchronous form the end is counted, whose result is that of the whole.
_OPERATION = re.compile(
    r" = (?P<result>.+?) (?P<kind>all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute|ragged-all-to-all"
    r"|collective-broadcast)(-done)?\("
)
_ARRAY = re.compile(r"\b(?P<type>pred|[suf]\d+|bf16|c\d+|f8\w+)\[(?P<shape>[\d,]*)\]")
_BITS = {"pred": 8, "bf16": 16}


class Traffic(NamedTuple):
    """The operations of one kind in a program.

    Attributes:
      operations: how many.
      bytes: of their results on one device, all together. How often a byte crosses a link depends on the links: twice
        for an all-reduce in a ring of many devices.
    """

    operations: int
    bytes: int


def of(compiled: jax.stages.Compiled) -> dict[str, Traffic]:
    """Return the collective operations of a program by kind, such as all-reduce; those in a rolled loop count once."""
    return of_text(compiled.as_text() or "")


def of_text(text: str) -> dict[str, Traffic]:
    """Return `of` for the text of a program in HLO.

    >>> of_text("  %r = (f32[8,2]{1,0}, s32[]) all-reduce(%a, %b), to_apply=%add")
    {'all-reduce': Traffic(operations=1, bytes=68)}
    """
    found: dict[str, Traffic] = {}
    for match in _OPERATION.finditer(text):
        before = found.get(match["kind"], Traffic(0, 0))
        size = sum(_size(array["type"], array["shape"]) for array in _ARRAY.finditer(match["result"]))
        found[match["kind"]] = Traffic(before.operations + 1, before.bytes + size)
    return found


def _size(kind: str, shape: str) -> int:
    bits = _BITS.get(kind) or int(re.findall(r"\d+", kind)[0])
    count = 1
    for side in filter(None, shape.split(",")):
        count *= int(side)
    return count * bits // 8
