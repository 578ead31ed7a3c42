"""Files of PyTorch written by hand, without PyTorch."""

from __future__ import annotations

import io
import pickle
import struct
import zipfile

import numpy as np

ROW = np.arange(6, dtype=np.float32)
KINDS = {"float32": "FloatStorage", "float16": "HalfStorage", "float64": "DoubleStorage", "int64": "LongStorage"}


class Made:
    """Pickled as the call of a function given by its name."""

    def __init__(self, function, *args, state=None):
        self.function, self.args, self.state = function, args, state

    def __reduce__(self):
        return self.function, self.args, self.state


class Reference:
    """Pickled as a persistent id."""

    def __init__(self, *place):
        self.place = place


def symbol(name):
    """Return what pickles as the global `name`, which need not exist."""
    module, _, last = name.rpartition(".")
    return type(last, (), {"__module__": module, "__qualname__": last})


class Pickler(pickle._Pickler):
    """The Python one, whose names are not looked up when they are written."""

    def persistent_id(self, value):
        return value.place if isinstance(value, Reference) else None

    def save_global(self, value, name=None):
        self.write(pickle.GLOBAL + f"{value.__module__}\n{value.__qualname__}\n".encode())
        self.memoize(value)

    dispatch = pickle._Pickler.dispatch | {type: save_global}


def dumps(value):
    stream = io.BytesIO()
    Pickler(stream, 2).dump(value)
    return stream.getvalue()


def tensor(key, count, shape, strides, offset=0, kind="FloatStorage", version=2, **more):
    place = Reference("storage", symbol(f"torch.{kind}"), key, "cpu", count)
    rest = (False, {}, *more.get("rest", ())) if version > 1 else ()
    suffix = f"_v{version}" if version > 1 else ""
    return Made(symbol(f"torch._utils._rebuild_tensor{suffix}"), place, offset, shape, strides, *rest)


def write(path, data, storages=None, compression=zipfile.ZIP_STORED, **members):
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", dumps(data))
        for name, content in members.items():
            archive.writestr(f"archive/{name}", content)
        for key, array in (storages if storages is not None else {"0": ROW}).items():
            archive.writestr(f"archive/data/{key}", array.tobytes())
    return path


def write_stream(path, data, storages, order=None):
    """Write the format of before PyTorch 1.6."""
    parts = [0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}, data, order or list(storages)]
    content = b"".join(map(dumps, parts))
    for key in order or storages:
        content += struct.pack("<q", storages[key].size) + storages[key].tobytes()
    path.write_bytes(content)
    return path


def save(path, nested):
    """Write nested dicts of arrays and plain data as a zip of torch.save."""
    storages = {}

    def tensors(value):
        if isinstance(value, dict):
            return {name: tensors(inner) for name, inner in value.items()}
        if not isinstance(value, np.ndarray):
            return value
        key, kind = str(len(storages)), KINDS[value.dtype.name]
        storages[key] = np.asarray(value, order="C")
        strides = tuple(step // value.itemsize for step in storages[key].strides)
        return tensor(key, value.size, value.shape, strides, kind=kind)

    return write(path, tensors(nested), storages)
