"""The folder of a run: its config, its environment, and that one process at a time writes to it."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pathlib
import platform
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax

from jrobust import provenance
from jrobust.errors import InputError
from jrobust.training import optimizers

LENGTH = ("train.steps", "train.examples", "train.epochs")
# Where and how a run computes, what is kept and measured: nothing of it changes what is trained.
WITHOUT_EFFECT = ("train.parallelism", "train.shard_state", "data.dir", "data.resident", "checkpoint", "evaluation")
# What may change between the sessions of a run; `pretrain` is the config of a first one.
FREE = (*LENGTH, *WITHOUT_EFFECT, *(f"pretrain.{name}" for name in WITHOUT_EFFECT))
# Keys that the runs of earlier versions do not have, also where a config is part of a record.
ADDED = {f"optimizer.{name}": value for name, value in optimizers.ADDED.items()} | {
    "data.held_out": 0,
    "data.held_out_seed": -1,
    "data.augment.resize": 0,
    "data.augment.center_crop": False,
    "train.microbatches": 1,
    "train.norm_over": "batch",
    "train.shard_state": "none",
}


@contextlib.contextmanager
def opened(workdir: str | os.PathLike, config: Mapping[str, Any]) -> Iterator[pathlib.Path]:
    """Create the folder or check that it belongs to this config, and hold it for this process.

    Raises:
      InputError: the folder holds a run with another config (names the keys), another process is training in it, or it
        cannot be written.
    """
    path = pathlib.Path(workdir).absolute()
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock = (path / ".lock").open("w")
    except OSError as error:
        raise InputError(f"cannot write to {path}: {error.strerror}; choose another --workdir") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(
                f"another process is training in {path}: wait for it or choose another --workdir"
            ) from error
        except OSError:  # a file system without locks
            pass
        check_config(path, config)
        yield path


def check_shared(workdir: pathlib.Path) -> None:
    """Raise the error for a folder that another process has opened and this one does not see."""
    if not (workdir / ".lock").exists():
        raise InputError(f"{workdir} is not there for every process: expected a --workdir on a disk that all share")


def check_config(workdir: pathlib.Path, config: Mapping[str, Any]) -> None:
    """Raise the error for a folder that holds a run with another config.

    Raises:
      InputError: names the first keys that differ, with both values.
    """
    file = workdir / "config.json"
    if not file.exists():
        return
    try:
        saved = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{file} is not JSON: choose another --workdir") from error
    # The rates of other schedules depend on how many steps there are to be.
    longer = config.get("optimizer", {}).get("schedule", "steps") == "steps"
    free = FREE if longer else [name for name in FREE if name not in LENGTH]
    if differing := differences(saved, config, free):
        more = f" and {len(differing) - 3} more" if len(differing) > 3 else ""
        raise InputError(
            f"{workdir} holds a run with another config: {'; '.join(differing[:3])}{more}; choose another --workdir"
        )


def differences(saved: Mapping[str, Any], asked: Mapping[str, Any], free: Sequence[str] = FREE) -> list[str]:
    """Return in words what differs between a config read from its file and another one, but for keys that are free.

    >>> differences({"train": {"steps": 3}, "seed": 0}, {"train": {"steps": 4}, "seed": 1})
    ['seed is 0 there and 1 here']
    """
    there, here = flat(saved), flat(json.loads(json.dumps(asked)))
    found = []
    for key in sorted(there.keys() | here.keys()):
        missing = next((ADDED[name] for name in ADDED if f".{key}".endswith(f".{name}")), "not set")
        values = there.get(key, missing), here.get(key, missing)
        if values[0] != values[1] and not any(key == name or key.startswith(f"{name}.") for name in free):
            found.append(f"{key} is {values[0]!r} there and {values[1]!r} here")
    return found


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested dicts as one, keys joined by dots.

    >>> flat({"train": {"steps": 3}, "seed": 0})
    {'train.steps': 3, 'seed': 0}
    """
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        leaves |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return leaves


def environment(seed: int) -> dict[str, Any]:
    """Return what besides the config makes the numbers: commit, versions, devices, seed."""
    devices = jax.devices()
    return {
        "commit": provenance.commit(),
        "versions": provenance.versions(),
        "machine": platform.machine(),
        "devices": {"platform": devices[0].platform, "kind": devices[0].device_kind, "count": len(devices)},
        "processes": jax.process_count(),
        "seed": seed,
    }


def record_environment(workdir: pathlib.Path, seed: int, *, step: int) -> None:
    """Write environment.json; a resumed run adds to `resumed` what its session ran in, from which step."""
    file, here = workdir / "environment.json", environment(seed)
    if step and file.exists():
        saved = json.loads(file.read_text(encoding="utf-8"))
        write_json(file, saved | {"resumed": [*saved.get("resumed", []), {"step": step} | here]})
    else:
        write_json(file, here)


def write_json(path: pathlib.Path, content: Any) -> None:
    """Write a file whole or not at all."""
    aside = path.with_name(path.name + ".tmp")
    aside.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    aside.replace(path)
