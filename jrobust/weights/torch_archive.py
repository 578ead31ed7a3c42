"""The tensors in files of `torch.save` and `torch.jit.save`, read without PyTorch and without running what is in them.

Such a file is a pickle, which only says how tensors lie in storages, and the storages, which are plain bytes: a zip
since PyTorch 1.6, all in one stream before. The pickle is read by `jrobust.pickled`, which calls nothing.

The arrays are read-only views of the storages: a tensor that is claimed to be huge takes no memory.
"""

from __future__ import annotations

import pathlib
import struct
import zipfile
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO

import jax.numpy as jnp
import numpy as np

from jrobust import pickled
from jrobust.errors import InputError
from jrobust.pickled import Call, Persistent, Symbol

# A file of several dicts of tensors is a checkpoint of these.
ENTRIES = ("state_dict", "model_state_dict", "model", "net")
STORAGES = {
    "FloatStorage": np.float32,
    "DoubleStorage": np.float64,
    "HalfStorage": np.float16,
    "BFloat16Storage": jnp.bfloat16,
    "ByteStorage": np.uint8,
    "CharStorage": np.int8,
    "ShortStorage": np.int16,
    "IntStorage": np.int32,
    "LongStorage": np.int64,
    "BoolStorage": np.bool_,
}
# The types that have no class of storages of their own.
DTYPES = {"uint16": np.uint16, "uint32": np.uint32, "uint64": np.uint64}
REBUILD = ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_tensor_v3")
# Tensors may overlap in their storages, and be stretched by strides of 0: this much, and no more.
MAX_OVERLAP, MAX_STRETCHED = 4, 64 * 2**20

Storage = Callable[[str, np.dtype, int], np.ndarray]


def read(path: str | pathlib.Path, entry: str | None = None) -> dict[str, np.ndarray]:
    """Return the tensors of a file by name: of a state_dict, of a checkpoint that has one, or of a TorchScript module.

    Args:
      path: the file.
      entry: the entry of a checkpoint whose tensors are wanted; None takes the only one, or the first of `ENTRIES`.

    Returns:
      Read-only arrays in native byte order, bfloat16 included; they may be no contiguous ones.

    Raises:
      InputError: no such file; it is cut off, damaged or of another kind; a tensor is sparse, quantised, complex, does
        not lie within its storage, or is no tensor but a call; or the file holds no tensors, or no such entry.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise InputError(f"there is no file {path}: expected a file of torch.save")
    if pickled.is_zip(path):
        data = pickled.read_torch(path)
        with pickled.zip_errors(path), zipfile.ZipFile(path) as archive:
            return _tensors(data, entry, _zip_storage(archive, path), path)
    try:
        with open(path, "rb") as file:
            if file.read(4) == b"PK\x03\x04":
                raise InputError(f"{path} is a zip without an end: it is cut off; fetch it again")
            data, keys, position = pickled.read_torch_stream(path)
            file.seek(position)
            return _tensors(data, entry, _stream_storage(file, data, keys, path), path)
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error}): expected a file of torch.save") from error


def entries(path: str | pathlib.Path) -> list[str]:
    """Return the names of a checkpoint's entries that are dicts with tensors, of which `read` gives one; often none.

    Raises:
      InputError: no such file; it is cut off, damaged or of another kind.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise InputError(f"there is no file {path}: expected a file of torch.save")
    return [str(name) for name in _nested(pickled.read_torch(path))]


def _nested(data: Any) -> list[Any]:
    """Return the keys under which there are dicts with tensors."""
    pairs = data.items() if isinstance(data, dict) else ()
    return [name for name, value in pairs if isinstance(value, dict) and any(map(_is_tensor, value.values()))]


def _tensors(data: Any, entry: str | None, storage: Storage, path: pathlib.Path) -> dict[str, np.ndarray]:
    """Return the arrays of what a file holds."""
    calls = _script(data) if _is_script(data) else _state_dict(data, entry, path)
    arrays, size = {}, 0
    limit = MAX_OVERLAP * path.stat().st_size + MAX_STRETCHED
    for name, call in calls.items():
        arrays[name] = _array(call, storage, f"{path}: {_shown(name)}")
        size += arrays[name].nbytes
        if size > limit:
            shape = arrays[name].shape
            raise InputError(f"{path}: {_shown(name)} has the shape {shape}: the tensors are far larger than the file")
    if not arrays:
        raise InputError(f"{path} holds no tensors: expected a state_dict or a TorchScript module")
    return arrays


def _is_script(data: Any) -> bool:
    return isinstance(data, Call) and isinstance(data.function, Symbol) and data.function.module.startswith("__torch__")


def _script(module: Call, prefix: str = "") -> dict[str, Call]:
    """Return the tensors of a TorchScript module and of those in it: parameters, buffers and attributes."""
    found: dict[str, Call] = {}
    for name, value in (module.state if isinstance(module.state, dict) else {}).items():
        if _is_script(value):
            found |= _script(value, f"{prefix}{name}.")
        elif _is_tensor(value):
            found[f"{prefix}{name}"] = value
    return found


def _state_dict(data: Any, entry: str | None, path: pathlib.Path) -> dict[str, Call]:
    """Return the tensors of a state_dict, or of the entry of a checkpoint; whatever else would be called is refused."""
    if not isinstance(data, dict):
        what = f"an object of {_name(data.function)}" if isinstance(data, Call) else f"a {type(data).__name__}"
        raise InputError(f"{path} holds {what}: expected a state_dict or a TorchScript module")
    nested = _nested(data)
    if entry is None and nested:
        # Beside a network's, a checkpoint may have tensors of its own, such as an accuracy.
        alone = any(map(_is_tensor, data.values()))
        entry = next((name for name in ENTRIES if name in nested), None)
        entry = entry or (None if alone else nested[0] if len(nested) == 1 else "")
    if entry is not None:
        if entry not in nested:
            listed = ", ".join(map(_shown, nested)) or "none"
            raise InputError(f"{path} has tensors in the entries: {listed}; expected {entry or 'one of them'}")
        data = data[entry]
    found = {}
    for name, value in data.items():
        if _is_tensor(value):
            found[str(name)] = value
        elif isinstance(value, Call | Symbol | Persistent):
            made = _name(value.function if isinstance(value, Call) else value)
            raise InputError(f"{path}: {_shown(name)} is no tensor but what {made} would make: expected a state_dict")
    return found


def _is_tensor(value: Any) -> bool:
    return isinstance(value, Call) and value.function in [
        Symbol("torch._utils", name) for name in (*REBUILD, "_rebuild_parameter")
    ]


def _name(function: Any) -> str:
    return _shown(f"{function.module}.{function.name}") if isinstance(function, Symbol) else type(function).__name__


def _array(call: Call, storage: Storage, what: str) -> np.ndarray:
    """Return the view of a storage that a tensor is."""
    args = call.args
    if call.function.name == "_rebuild_parameter":
        if not args or not _is_tensor(args[0]) or args[0].function.name == "_rebuild_parameter":
            raise InputError(f"{what} is a parameter without a tensor: the file is damaged")
        return _array(args[0], storage, what)
    if len(args) < 4 or not isinstance(args[0], Persistent):
        raise InputError(f"{what} is a tensor without a storage: the file is damaged")
    place, offset, shape, strides = args[0].id, args[1], args[2], args[3]
    if not isinstance(place, tuple) or len(place) not in (5, 6) or place[0] != "storage" or any(place[5:]):
        raise InputError(f"{what} has the storage {place!r:.80}: expected one inside of the file")
    _, kind, key, _, count = place[:5]
    dtype = _dtype(kind, args, what)
    if call.function.name == "_rebuild_tensor_v2" and any(args[6:]):
        raise InputError(f"{what} is a view with {args[6]!r:.80}: save its .clone()")
    both = isinstance(shape, tuple) and isinstance(strides, tuple) and len(shape) == len(strides)
    numbers = [offset, count, *shape, *strides] if both else [None]
    if not isinstance(key, str) or not all(isinstance(number, int) and 0 <= number < 2**62 for number in numbers):
        raise InputError(f"{what} has the shape {shape!r:.80} and strides {strides!r:.80}: the file is damaged")
    content = storage(key, dtype, count if kind.name != "UntypedStorage" else count // dtype.itemsize)
    last = offset + sum((length - 1) * stride for length, stride in zip(shape, strides, strict=True))
    if last >= len(content) and 0 not in shape:
        raise InputError(f"{what} of shape {shape} needs {last + 1} numbers, its storage has {len(content)}")
    try:
        if 0 in shape:
            return np.zeros(shape, dtype)
        steps = tuple(stride * dtype.itemsize for stride in strides)
        return np.ndarray(shape, dtype, content, offset * dtype.itemsize, steps)
    except ValueError as error:  # more dimensions or bytes than an array can have
        raise InputError(f"{what} has the shape {shape!r:.80}: {error}") from error


def _dtype(kind: Any, args: tuple, what: str) -> np.dtype:
    """Return the type of a tensor's numbers, by the class of its storage, or as version 3 says it."""
    if isinstance(kind, Symbol):
        named = args[6] if kind.name == "UntypedStorage" and len(args) > 6 else kind
        allowed: Mapping[str, Any] = STORAGES if named is kind else DTYPES
        if isinstance(named, Symbol) and named.module == "torch" and named.name in allowed:
            return np.dtype(allowed[named.name])
        kind = named
    names = ", ".join(np.dtype(dtype).name for dtype in (*STORAGES.values(), *DTYPES.values()))
    raise InputError(f"{what} has numbers of {_name(kind)}: expected one of {names}")


def _zip_storage(archive: zipfile.ZipFile, path: pathlib.Path) -> Storage:
    """Return the storages of a zip by key: beside data.pkl, in the folder data, not compressed."""
    (pickle,) = (name for name in archive.namelist() if name.rpartition("/")[2] == "data.pkl")
    folder = pickle.removesuffix("data.pkl")
    order = b"little"
    if f"{folder}byteorder" in archive.namelist():
        with archive.open(f"{folder}byteorder") as file:
            order = file.read(len(order))
    if order != b"little":
        raise InputError(f"{path} was not written in little-endian order: save it again on another machine")
    contents: dict[str, bytes] = {}
    left = path.stat().st_size

    def storage(key: str, dtype: np.dtype, count: int) -> np.ndarray:
        nonlocal left
        if key not in contents:
            name = f"{folder}data/{key}"
            shown = f"{path}: the storage {_shown(name)}"
            if name not in archive.NameToInfo:
                raise InputError(f"{shown} is not in the zip: it is damaged; fetch it again")
            member = archive.getinfo(name)
            left -= member.file_size
            if member.compress_type != zipfile.ZIP_STORED or left < 0:
                raise InputError(f"{shown} is compressed or larger than the file: expected one of torch.save")
            contents[key] = archive.read(member)
        return _checked(contents[key], dtype, count, f"{path}: the storage {_shown(key)}")

    return storage


def _stream_storage(file: BinaryIO, data: Any, keys: Any, path: pathlib.Path) -> Storage:
    """Return the storages of a stream by key: behind the pickles in the order of `keys`, each after its length."""
    kinds: dict[Any, Any] = {}
    seen: set[int] = set()
    todo = [data]
    while todo:
        node = todo.pop()
        match node:
            case Persistent(id=(_, kind, str(key), *_)):
                kinds[key] = kind
        if id(node) not in seen:
            seen.add(id(node))
            todo.extend(pickled.parts(node))
    places: dict[str, tuple[int, int]] = {}
    for key in keys if isinstance(keys, list) else []:
        head = file.read(8)
        if not isinstance(key, str) or len(head) < 8:
            raise InputError(f"{path} ends before its storage {key!r:.80}: it is cut off; fetch it again")
        size = struct.unpack("<q", head)[0] * _dtype(kinds.get(key), (), f"{path}: the storage {_shown(key)}").itemsize
        places[key] = file.tell(), size
        if not 0 <= size <= path.stat().st_size - file.tell():
            raise InputError(f"{path}: the storage {_shown(key)} has {size} bytes, more than the file: it is cut off")
        file.seek(size, 1)
    contents: dict[str, bytes] = {}

    def storage(key: str, dtype: np.dtype, count: int) -> np.ndarray:
        if key not in places:
            raise InputError(f"{path} lacks the storage {_shown(key)}: it is damaged; fetch it again")
        if key not in contents:
            file.seek(places[key][0])
            contents[key] = file.read(places[key][1])
        return _checked(contents[key], dtype, count, f"{path}: the storage {_shown(key)}")

    return storage


def _shown(name: Any) -> str:
    """Return a name from a file for a message of one line."""
    text = str(name)
    return text if text.isprintable() and len(text) <= 80 else f"{ascii(text)[:80]}"


def _checked(content: bytes, dtype: np.dtype, count: int, what: str) -> np.ndarray:
    if len(content) != count * dtype.itemsize:
        raise InputError(
            f"{what} has {len(content)} bytes, expected {count * dtype.itemsize} for {count} numbers of {dtype}: "
            "the file is damaged; fetch it again"
        )
    return np.frombuffer(content, dtype)
