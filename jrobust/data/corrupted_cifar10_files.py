"""A built part of Corrupted CIFAR-10 on disk: an .npz of arrays and a manifest, a .json, with their checksum."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pathlib
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np

from jrobust.data.source import Arrays
from jrobust.errors import InputError

FIELDS = ("images", "label", "bias", "index")


def checksum(arrays: Arrays) -> str:
    """Return the SHA-256 of the arrays: names, types, shapes and bytes."""
    digest = hashlib.sha256()
    for field in FIELDS:
        array = np.ascontiguousarray(arrays[field])
        digest.update(f"{field} {array.dtype.str} {array.shape}".encode())
        digest.update(array.data)
    return digest.hexdigest()


def write(path: pathlib.Path, arrays: Arrays, manifest: Mapping[str, Any]) -> None:
    """Write the arrays and then the manifest, each whole or not at all.

    Raises:
      InputError: they cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            np.savez(file, allow_pickle=False, **arrays)
        os.replace(temporary, path)
        temporary.write_text(json.dumps({**manifest, "sha256": checksum(arrays)}, indent=1) + "\n")
        os.replace(temporary, path.with_suffix(".json"))
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise InputError(
            f"cannot write {path} ({error.strerror}): the set is built in the data folder once; make it writable, or "
            "build it elsewhere and copy it there"
        ) from error


def read(path: pathlib.Path, version: int) -> Arrays | None:
    """Return the arrays of a file of `write`, or None if it is not there, unfinished, or of another version.

    Raises:
      InputError: the file or its manifest is damaged, or they do not belong together.
    """
    manifest = path.with_suffix(".json")
    if not (path.is_file() and manifest.is_file()):
        return None
    again = f"remove {path} and {manifest.name}, and load the set again to have them built again"
    try:
        written = json.loads(manifest.read_text())
        expected, found = written["sha256"], written["version"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{manifest} is no manifest of a built data set ({error}): {again}") from error
    if found != version:
        return None
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {field: file[field] for field in FIELDS}
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise InputError(f"{path} cannot be read ({error}): it is cut off or damaged; {again}") from error
    if checksum(arrays) != expected:
        raise InputError(f"{path} does not have the checksum of {manifest.name}: one of them is damaged; {again}")
    return arrays
