"""Checkpoints that survive: written aside and renamed, signed, verified on reading. The only importer of Orbax.

A checkpoint is the folder WORKDIR/checkpoints/<step>: the arrays by path, in the items params, state and opt_state, and
a JSON record (manifest with SHA-256, position of the input pipeline, metrics). Its layout does not depend on the number
of devices or on the classes that made up the tree, nor on the number of processes: each writes and reads its own part
of an array that is split, and all agree on which checkpoint is whole.
"""

from __future__ import annotations

import functools
import json
import os
import pathlib
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from orbax.checkpoint import v1 as orbax

from jrobust.errors import InputError
from jrobust.training import manifest, processes
from jrobust.training.method import Variables
from jrobust.training.state import TrainState

FORMAT = 1
PARTS = ("params", "state", "opt_state")
BEST = ("test_accuracy", "validation_accuracy")  # by which the best checkpoint is kept; a run measures one of them


class DamagedError(Exception):
    """A checkpoint that cannot be read, or whose arrays are not those that were saved."""


class Restored(NamedTuple):
    """A verified checkpoint: the state, where the input pipeline stood, the metrics and the caller's own record."""

    train_state: TrainState
    pipeline: dict[str, Any]
    metrics: dict[str, float]
    extra: Any


class Checkpoints:
    """The checkpoints of a run, for writing and resuming.

    Args:
      workdir: the run's folder.
      keep_latest: how many of the newest are kept, at least 1.
      keep_best: how many of the best by the accuracy during training are kept besides; see `score`.
    """

    def __init__(self, workdir: str | os.PathLike, *, keep_latest: int = 2, keep_best: int = 1):
        if keep_latest < 1 or keep_best < 0:
            raise InputError(
                f"checkpoint.keep_latest is {keep_latest} and keep_best {keep_best}: expected at least 1 and at least 0"
            )
        self.directory = _directory(workdir)
        policies = orbax.training.preservation_policies
        kept: list[Any] = [policies.LatestN(keep_latest)]
        if keep_best:
            # Without metrics a checkpoint is not among the best; by default Orbax would keep it for ever.
            kept.append(policies.BestN(get_metric_fn=score, n=keep_best, keep_checkpoints_without_metrics=False))
        self._orbax = orbax.training.Checkpointer(
            self.directory,
            preservation_policy=policies.AnyPreservationPolicy(kept),
            cleanup_tmp_directories=True,
        )

    @property
    def steps(self) -> list[int]:
        """The steps that are saved, ascending."""
        return sorted(checkpoint.step for checkpoint in self._orbax.checkpoints)

    def save(
        self,
        train_state: TrainState,
        pipeline: Mapping[str, Any],
        metrics: Mapping[str, float] | None = None,
        extra: Any = None,
    ) -> None:
        """Save in the background, as the step that the state says; the state may be donated as soon as this returns.

        Waits for the save before this one. `pipeline` and `extra` are JSON. The folder gets its name when it is whole.

        Raises:
          FileExistsError: the step is saved already; it is left as it is.
        """
        step = int(train_state.step)
        self.wait()
        if step in self.steps:
            raise FileExistsError(f"{self.directory / str(step)} is saved already")
        items, arrays = _items(train_state)
        record: dict[str, Any] = {
            "format": FORMAT,
            "step": step,
            "arrays": manifest.sign(arrays),
            "pipeline": pipeline,
            "metrics": metrics or {},
            "extra": extra,
        }
        record = json.loads(json.dumps(record))  # a copy: it is written while the caller goes on
        self._orbax.save_checkpointables_async(
            step,
            items,
            force=True,  # else a save is dropped without a word when Orbax finds it too soon
            metrics=dict(metrics) if metrics and score(metrics) is not None else None,
            custom_metadata=record | {"digest": manifest.digest(record)},
        )

    def restore(self, abstract: TrainState) -> Restored | None:
        """Return the newest checkpoint that is whole, or None if nothing was ever saved.

        Damaged ones above it are moved to WORKDIR/checkpoints_damaged with a warning, and training goes on from the
        one below: the steps in between are done again.

        Args:
          abstract: the state's shapes and types, `jax.ShapeDtypeStruct`s with the sharding to restore to.

        Raises:
          InputError: the checkpoint is of another model or method (says how it differs); or none is whole.
        """
        steps = processes.from_primary(lambda: self.steps)
        for step in reversed(steps):
            restored = _load_alike(self.directory / str(step), abstract)
            if isinstance(restored, Restored):
                return restored
            if step == steps[0]:
                raise _none_whole(self.directory, restored) from restored
            aside = processes.from_primary(functools.partial(self._set_aside, step))
            self._orbax.reload()
            warnings.warn(f"{restored}; moved to {aside}, resuming from the checkpoint before it", stacklevel=2)
        return None

    def wait(self) -> None:
        """Block until the save under way is complete; raises what went wrong in it."""
        self._orbax.wait()

    def close(self) -> None:
        """Wait, and release the files."""
        self._orbax.close()

    def _set_aside(self, step: int) -> str:
        folder = self.directory.parent / "checkpoints_damaged"
        folder.mkdir(exist_ok=True)
        names = (f"{step}" if attempt == 0 else f"{step}-{attempt}" for attempt in range(1_000_000))
        target = next(folder / name for name in names if not (folder / name).exists())
        (self.directory / str(step)).rename(target)
        return str(target)


def score(metrics: Mapping[str, float]) -> float | None:
    """Return the accuracy on held-out images by which checkpoints are compared, None if it was not measured.

    >>> score({"epoch": 2.0, "validation_accuracy": 0.75})
    0.75
    """
    return next((metrics[name] for name in BEST if name in metrics), None)


def saved_steps(workdir: str | os.PathLike) -> list[int]:
    """Return the steps of a run that are saved, ascending; a save that was cut off does not count."""
    directory = _directory(workdir)
    if not directory.is_dir():
        return []
    return sorted(int(path.name) for path in directory.iterdir() if path.name.isdecimal() and path.is_dir())


def restore_variables(
    workdir: str | os.PathLike, step: int | str = "latest", abstract: Variables | None = None
) -> tuple[Variables, int]:
    """Return the variables of a trained model and their step; reads nothing of the optimizer and changes no file.

    Args:
      workdir: the run's folder.
      step: a saved step, "latest", or "best" by the accuracy during training.
      abstract: shapes and types (`jax.eval_shape` of the method's `init`) that the variables must have; the result has
        its structure. Without it the result is nested dicts.

    A damaged "latest" or "best" is passed over with a warning for the one before it; a step given as a number is not.
    Of several processes all call it, and each has the variables on its own device: Orbax counts what it does.

    Raises:
      InputError: there is no such checkpoint, none is whole, or it is of another model.
    """
    directory, steps = _directory(workdir), saved_steps(workdir)
    if not steps:
        raise InputError(f"no checkpoint in {directory}: expected the folder of a run that has saved one")
    candidates = _candidates(directory, steps, step)
    for candidate in candidates:
        try:
            record = _read_record(directory / str(candidate))
            if abstract is not None:
                wanted = manifest.describe(manifest.flatten(TrainState(None, *abstract, None)))
                found = {name: entry for name, entry in record["arrays"].items() if _part(name) != "opt_state"}
                _check_same(directory / str(candidate), found, wanted)
            arrays = _load_arrays(directory / str(candidate), record, ("params", "state"), {})
        except DamagedError as error:
            if candidate == candidates[-1]:
                raise _none_whole(directory, error) from error
            warnings.warn(f"{error}; taking the checkpoint before it", stacklevel=2)
        else:
            if abstract is None:
                tree = _nested(arrays)
                return Variables(tree.get("params", {}), tree.get("state", {})), candidate
            state = _unflatten(TrainState(None, *abstract, None), arrays)
            return state.variables, candidate
    raise AssertionError("unreachable: the last candidate returns or raises")


def _candidates(directory: pathlib.Path, steps: Sequence[int], step: int | str) -> list[int]:
    """Return the steps to try, in order."""
    if step == "latest":
        return list(reversed(steps))
    if step == "best":
        scores = {}
        for saved in steps:
            try:
                scores[saved] = score(_read_record(directory / str(saved))["metrics"])
            except DamagedError as error:
                warnings.warn(f"{error}; it cannot be the best", stacklevel=3)
        scored = [saved for saved in scores if scores[saved] is not None]
        if not scored:
            raise InputError(f"no checkpoint in {directory} has an accuracy: ask for step=latest")
        return sorted(scored, key=lambda saved: (scores[saved], saved), reverse=True)
    if isinstance(step, str) and step.isdecimal():
        step = int(step)
    if step not in steps:
        raise InputError(
            f"no checkpoint of step {step} in {directory}: expected latest, best or one of {', '.join(map(str, steps))}"
        )
    return [int(step)]


def _load_alike(path: pathlib.Path, abstract: TrainState) -> Restored | DamagedError:
    """Read and verify one checkpoint; what is damaged for one process is damaged for all."""
    found: Restored | DamagedError
    try:
        found = _load(path, abstract)
    except DamagedError as error:
        found = error
    damages = [text for text in processes.gather(str(found) if isinstance(found, DamagedError) else "") if text]
    return DamagedError(damages[0]) if damages else found


def _load(path: pathlib.Path, abstract: TrainState) -> Restored:
    """Read and verify one checkpoint."""
    record = _read_record(path)
    expected = manifest.flatten(TrainState(None, abstract.params, abstract.state, abstract.opt_state))
    _check_same(path, record["arrays"], manifest.describe(expected))
    shardings = {name: getattr(leaf, "sharding", None) for name, leaf in expected.items()}
    arrays = _load_arrays(path, record, PARTS, shardings)
    state = _unflatten(TrainState(None, abstract.params, abstract.state, abstract.opt_state), arrays)
    step = jnp.asarray(record["step"], jnp.int32)
    if getattr(abstract.step, "sharding", None) is not None:
        step = jax.device_put(step, abstract.step.sharding)
    return Restored(
        TrainState(step, state.params, state.state, state.opt_state),
        record["pipeline"],
        record["metrics"],
        record["extra"],
    )


def _read_record(path: pathlib.Path) -> dict[str, Any]:
    """Return the JSON record of a checkpoint, verified."""
    try:
        # The file itself: Orbax's own reading of it also opens the arrays and fills the log if they are damaged.
        record = dict(json.loads((path / "_CHECKPOINT_METADATA").read_text(encoding="utf-8"))["custom_metadata"])
        claimed = record.pop("digest")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedError(f"checkpoint {path} is damaged: its record cannot be read") from error
    if manifest.digest(record) != claimed:
        raise DamagedError(f"checkpoint {path} is damaged: its record does not have its checksum")
    if record["format"] != FORMAT:
        raise InputError(f"checkpoint {path} has format {record['format']}: this version reads format {FORMAT}")
    return record


def _load_arrays(
    path: pathlib.Path, record: Mapping[str, Any], parts: Sequence[str], shardings: Mapping[str, Any]
) -> dict[str, jax.Array]:
    """Return the arrays of some parts by path, with their checksums verified."""
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    targets: dict[str, dict[str, Any]] = {}
    for name, entry in record["arrays"].items():
        if (part := _part(name)) in parts:
            # Named shardings always: without, Orbax restores to the devices of the machine that saved.
            targets.setdefault(part, {})[name] = jax.ShapeDtypeStruct(
                entry["shape"], manifest.dtype(entry["dtype"]), sharding=shardings.get(name) or here
            )
    try:
        arrays: dict[str, jax.Array] = {}
        for part, target in targets.items():  # one by one: when one fails, Orbax leaves the others' coroutines behind
            arrays |= orbax.load_checkpointables(path, {part: target})[part]
        wrong = manifest.damaged(arrays, record["arrays"])
    except Exception as error:  # whatever Orbax makes of a file that is cut short
        raise DamagedError(f"checkpoint {path} is damaged: its arrays cannot be read") from error
    if wrong:
        raise DamagedError(f"checkpoint {path} is damaged: {wrong[0]} does not have its checksum")
    return arrays


def _check_same(path: pathlib.Path, found: manifest.Manifest, expected: manifest.Manifest) -> None:
    differing = list(manifest.differences(found, expected))
    if differing:
        more = f" and {len(differing) - 3} more" if len(differing) > 3 else ""
        raise InputError(
            f"checkpoint {path} is of another model or method: {'; '.join(differing[:3])}{more}; use the config that it"
            " was trained with, or another --workdir"
        )


def _items(train_state: TrainState) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """Return the arrays by path, by item and all together. Orbax knows no empty items, so there are none."""
    arrays = manifest.flatten(TrainState(None, train_state.params, train_state.state, train_state.opt_state))
    items: dict[str, dict[str, Any]] = {}
    for name, array in arrays.items():
        items.setdefault(_part(name), {})[name] = array
    return items, arrays


def _unflatten(abstract: TrainState, arrays: Mapping[str, Any]) -> TrainState:
    return jax.tree.unflatten(jax.tree.structure(abstract), [arrays[name] for name in manifest.flatten(abstract)])


def _nested(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested dicts of arrays from their paths."""
    tree: dict[str, Any] = {}
    for name, array in arrays.items():
        *parents, last = name.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = array
    return tree


def _part(name: str) -> str:
    return name.partition("/")[0]


def _directory(workdir: str | os.PathLike) -> pathlib.Path:
    return pathlib.Path(workdir).absolute() / "checkpoints"


def _none_whole(directory: pathlib.Path, error: DamagedError) -> InputError:
    return InputError(
        f"no checkpoint in {directory} is whole: {error}; restore the folder from a copy, or start in a new one"
    )
