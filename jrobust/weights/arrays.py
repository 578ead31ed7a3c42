"""Named arrays from a .safetensors, .npz or PyTorch file, and the file's own metadata."""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
import zipfile
import zlib
from collections.abc import Mapping

import numpy as np
import safetensors
import safetensors.numpy

from jrobust.errors import InputError
from jrobust.weights import torch_archive

PICKLES = (".pth", ".pt", ".bin", ".ckpt", ".tar", ".pkl", ".pickle")
CONVERT = (
    'python -c "import torch, safetensors.torch as s; '
    "d = torch.load('{source}', map_location='cpu', weights_only=True); d = d.get('state_dict', d); "
    "s.save_file({{k: v.contiguous() for k, v in d.items()}}, '{target}')\""
)


def read(path: str | pathlib.Path, entry: str | None = None) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Return the arrays of a file by name, and its metadata (text by name; empty for .npz and PyTorch's files).

    Nothing is unpickled: PyTorch's files are read by `jrobust.weights.torch_archive`.

    Args:
      path: the file.
      entry: of a checkpoint of PyTorch, the entry whose tensors are wanted; None takes the one of a network.

    Raises:
      InputError: no such file, an unknown ending, or a damaged file; or one of PyTorch that is not only tensors.
    """
    path = pathlib.Path(path)
    if path.suffix not in (".safetensors", ".npz", *PICKLES):
        raise InputError(
            f"{path} has the ending {path.suffix!r}: expected a .safetensors, .npz, .pt or .pth file of weights"
        )
    if not path.is_file():
        raise InputError(f"there is no file {path}: expected a .safetensors, .npz, .pt or .pth file of weights")
    if path.suffix in PICKLES:
        try:
            return torch_archive.read(path, entry), {}
        except InputError as error:
            command = CONVERT.format(source=path, target=path.with_suffix(".safetensors"))
            raise InputError(f"{error}; if PyTorch can read it, convert it where that is, by {command}") from error
    try:
        return _safetensors(path) if path.suffix == ".safetensors" else _npz(path)
    except (safetensors.SafetensorError, zipfile.BadZipFile, zlib.error, ValueError, EOFError, KeyError) as error:
        raise InputError(
            f"{path} cannot be read ({_line(error)}): expected a whole {path.suffix} file; copy or download it again"
        ) from error


def metadata(path: str | pathlib.Path) -> dict[str, str]:
    """Return the metadata of a .safetensors file, its arrays unread; {} of any other file.

    Raises:
      InputError: there is no such file, or it is damaged.
    """
    path = pathlib.Path(path)
    try:
        with path.open("rb"):  # whose errors have a name
            pass
        if path.suffix != ".safetensors":
            return {}
        with safetensors.safe_open(path, framework="numpy") as file:
            return dict(file.metadata() or {})
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}): expected a file of weights") from error
    except safetensors.SafetensorError as error:
        raise InputError(f"{path} cannot be read ({_line(error)}): copy or download it again") from error


def entries(path: str | pathlib.Path) -> list[str]:
    """Return the names of the entries of a checkpoint of PyTorch that `read` can give; [] for any other file."""
    path = pathlib.Path(path)
    if path.suffix not in PICKLES or not path.is_file():
        return []
    return torch_archive.entries(path)


def source(path: str | pathlib.Path) -> dict[str, str]:
    """Return what says which weights a run began with: {"file": the name without folders, "sha256": `file_digest`}."""
    return {"file": pathlib.Path(path).name, "sha256": file_digest(path)}


def file_digest(path: str | pathlib.Path) -> str:
    """Return the SHA-256 of a file, 64 hexadecimal digits.

    Raises:
      InputError: it cannot be read.
    """
    try:
        with open(pathlib.Path(path).expanduser(), "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}): expected a file of weights") from error


def write(path: pathlib.Path, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> None:
    """Write a .safetensors file, whole or not at all; the same arrays give the same bytes.

    Raises:
      InputError: another ending, or a folder that cannot be written.
    """
    if path.suffix != ".safetensors":
        raise InputError(f"the output {path} has the ending {path.suffix!r}: expected a name such as model.safetensors")
    write_bytes(path, _ordered(safetensors.numpy.save(dict(arrays), metadata=dict(metadata))))


def _ordered(content: bytes) -> bytes:
    """Return a .safetensors file with its metadata in the order of their names; safetensors writes them in any."""
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # arrays begin at multiples of 8 bytes
    return b"".join((len(text).to_bytes(8, "little"), text, memoryview(content)[end:]))


def write_bytes(path: pathlib.Path, content: bytes) -> None:
    """Write a file so that a reader sees the old or the new one, never a part; makes its folder.

    Raises:
      InputError: it cannot be written.
    """
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(content)
        partial.replace(path)
    except OSError as error:
        raise InputError(f"cannot write {path} ({error.strerror}): choose another output") from error


def read_json(text: str, source: str) -> dict:
    """Return the JSON object in `text`; `source` names it in the InputError for anything else."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"{source} is not JSON ({_line(error)}): write the file again") from error
    if not isinstance(value, dict):
        raise InputError(f"{source} is not a JSON object: write the file again")
    return value


def some(names: list[str], limit: int = 3) -> str:
    """Return the first few names and how many more there are.

    >>> some(["a", "b", "c", "d", "e"])
    'a, b, c and 2 more'
    """
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")


def _safetensors(path: pathlib.Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    with safetensors.safe_open(path, framework="numpy") as file:
        metadata = dict(file.metadata() or {})
    return safetensors.numpy.load_file(path), metadata


def _npz(path: pathlib.Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}, {}


def _line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
