"""The data in pickle files, read without unpickling: nothing is imported, called or constructed but plain data.

A pickle is a program for a small stack machine whose instructions may call any function. Here the machine is run with
the calls left out: what would be a function or class becomes a `Symbol`, what would be made by calling one a `Call`
that records the arguments, and what a program would look up outside the file a `Persistent`. So a file with which
`pickle.load` would run a command is harmless: it only is not the data that were expected.
"""

from __future__ import annotations

import contextlib
import io
import pathlib
import struct
import zipfile
import zlib
from collections.abc import Iterator
from typing import Any

from jrobust import pickle_machine
from jrobust.errors import InputError
from jrobust.pickle_machine import MAX_DEPTH, MAX_ITEMS, TOO_LARGE, Bad, Call, Persistent, Symbol

__all__ = [
    "MAX_BYTES",
    "MAX_DEPTH",
    "MAX_ITEMS",
    "Call",
    "Persistent",
    "Symbol",
    "is_zip",
    "loads",
    "parts",
    "read",
    "read_torch",
    "read_torch_stream",
    "zip_errors",
]

MAX_BYTES = 256 * 2**20  # of the pickle alone: the numbers of a torch file are outside of it
_TORCH_MAGIC, _TORCH_PROTOCOL = 0x1950A86A20F9469CFC6C, 1001


def read(path: str | pathlib.Path) -> Any:
    """Return the data of a pickle file.

    They consist of None, bool, int, float, str, bytes, list, tuple, dict, set and frozenset, and, for whatever is not
    plain data, of `Symbol`, `Call` and `Persistent`. OrderedDict and defaultdict become dict, bytearray bytes.

    Raises:
      InputError: it cannot be read, is damaged, cut off, or no pickle of protocols 0 to 5; is larger than `MAX_BYTES`
        or `MAX_ITEMS`, nested deeper than `MAX_DEPTH`, or contains itself.
    """
    return loads(_bytes(pathlib.Path(path)), str(path))


def loads(content: bytes, place: str = "pickle") -> Any:
    """Return the data of a pickle in memory; as `read`."""
    return _next(io.BytesIO(content), place)


def read_torch(path: str | pathlib.Path) -> Any:
    """Return the data of a file of `torch.save`, in its zip or its older format.

    What is plain in it is as in `read`. A tensor is a `Call` of `torch._utils._rebuild_tensor_v2` whose first argument
    is a `Persistent`; its numbers are not read.

    Raises:
      InputError: as `read`; or it is no such file.
    """
    path = pathlib.Path(path)
    if is_zip(path):
        return loads(_member(path), f"{path} (data.pkl)")
    return read_torch_stream(path)[0]


def read_torch_stream(path: str | pathlib.Path) -> tuple[Any, Any, int]:
    """Return the data of a file of `torch.save` in its older format, the keys of its storages and where these begin.

    Raises:
      InputError: as `read_torch`.
    """
    path = pathlib.Path(path)
    stream = io.BytesIO(_bytes(path))
    if _next(stream, str(path)) != _TORCH_MAGIC or _next(stream, str(path)) != _TORCH_PROTOCOL:
        raise InputError(f"{path} is no file of torch.save: expected a zip with data.pkl, or torch's magic number")
    _next(stream, str(path))  # byte order and sizes of integers
    data = _next(stream, str(path))
    return data, _next(stream, str(path)), stream.tell()


def _bytes(path: pathlib.Path) -> bytes:
    try:
        with open(path, "rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror or error}): expected a pickle file") from error
    return content[:MAX_BYTES]  # if this cuts it off, that is noticed


def _member(path: pathlib.Path) -> bytes:
    with zip_errors(path), zipfile.ZipFile(path) as archive:
        names = [name for name in archive.namelist() if name.rpartition("/")[2] == "data.pkl"]
        if len(names) != 1:
            raise InputError(f"{path} is a zip with {len(names)} data.pkl: expected a file of torch.save with one")
        with archive.open(names[0]) as member:
            return member.read(MAX_BYTES)


def is_zip(path: pathlib.Path) -> bool:
    """Return whether a file has the end of a zip; InputError where that end is damaged."""
    with zip_errors(path):
        return zipfile.is_zipfile(path)


@contextlib.contextmanager
def zip_errors(path: pathlib.Path) -> Iterator[None]:
    """Turn what a damaged zip leads to into an InputError."""
    try:
        yield
    except InputError:
        raise
    except (OSError, zipfile.BadZipFile, zlib.error, EOFError, struct.error, RuntimeError, ValueError) as error:
        # of compression and encryption: NotImplementedError and RuntimeError; of names and places: ValueError
        text = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(
            f"{path} cannot be read as a zip ({text}): it is cut off or damaged; fetch it again"
        ) from error


def _next(stream: io.BytesIO, place: str) -> Any:
    try:
        return _bounded(pickle_machine.run(stream))
    except Bad as error:
        raise InputError(
            f"{place} cannot be read as a pickle ({error}): it is damaged, cut off or no pickle"
        ) from error


def _bounded(value: Any) -> Any:
    """Return a value; raise if it contains itself, is nested too deeply or, its shared parts copied, too large."""
    measured: dict[int, tuple[int, int]] = {}  # depth and size; (0, 0) while it is being measured
    todo: list[tuple[Any, bool]] = [(value, False)]
    while todo:
        node, parts_known = todo.pop()
        held = parts(node)
        if parts_known:
            below = [measured.get(id(part), (0, 1)) for part in held]
            depth = 1 + max((d for d, _ in below), default=0)
            size = 1 + sum(s for _, s in below)
            if depth > MAX_DEPTH or size > MAX_ITEMS:
                raise Bad(TOO_LARGE)
            measured[id(node)] = depth, size
        elif id(node) in measured:
            if measured[id(node)] == (0, 0):
                raise Bad("it contains itself")
        elif held:
            measured[id(node)] = 0, 0
            todo.append((node, True))
            todo.extend((part, False) for part in held)
    return value


def parts(node: Any) -> list[Any]:
    """Return what a value holds, itself such values; [] for one that holds nothing."""
    if isinstance(node, list | tuple | set | frozenset):
        return list(node)
    if isinstance(node, dict):
        return [*node.keys(), *node.values()]
    if isinstance(node, Call):
        return [node.function, node.args, node.kwargs, node.state, node.entries, node.items]
    return [node.id] if isinstance(node, Persistent) else []
