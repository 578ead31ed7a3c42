"""Parts of a long evaluation that are done, kept in files so that a killed run goes on after them."""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
import re
import shutil
import zipfile
from typing import Any

import jax
import numpy as np

Columns = dict[str, np.ndarray]


class Kept:
    """The parts of one suite in WORKDIR/evaluation/<suite>.kept, a file each; without a workdir nothing is kept.

    A part is found again by what it is about: whatever its numbers depend on. Parts of other settings or another model
    lie beside it and are never taken for it.
    """

    def __init__(self, workdir: str | os.PathLike | None, suite: str, about: Any = None):
        self._folder = folder_of(workdir, suite) if workdir is not None else None
        self._about = about

    def path(self, name: str, about: Any, ending: str = ".npz") -> pathlib.Path | None:
        """Return where a part is kept, its folder made; None if nothing is."""
        if self._folder is None:
            return None
        self._folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps([name, self._about, about], sort_keys=True)
        return self._folder / f"{re.sub(r'[^A-Za-z0-9_.-]', '_', name)}-{_sha(text.encode())[:16]}{ending}"

    def get(self, name: str, about: Any) -> Columns | None:
        """Return a part, None if it is not there, or damaged."""
        path = self.path(name, about)
        if path is None or not path.exists():
            return None
        try:
            with np.load(path, allow_pickle=False) as archive:
                return dict(archive)
        except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile):
            return None

    def put(self, name: str, about: Any, columns: Columns) -> None:
        """Keep a part; its file appears at once or not at all."""
        path = self.path(name, about)
        if path is None:
            return
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        with open(temporary, "wb") as file:
            np.savez(file, allow_pickle=False, **columns)
        os.replace(temporary, path)


def folder_of(workdir: str | os.PathLike, suite: str) -> pathlib.Path:
    """Return where the parts of a suite are kept."""
    return pathlib.Path(workdir) / "evaluation" / f"{suite}.kept"


def forget(workdir: str | os.PathLike, suite: str) -> None:
    """Remove the parts of a suite whose record is written."""
    shutil.rmtree(folder_of(workdir, suite), ignore_errors=True)


def fingerprint(tree: Any) -> str:
    """Return what tells the arrays of a pytree from all others."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        array = np.ascontiguousarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def _sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
