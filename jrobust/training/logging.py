"""What a run writes down as it goes: metrics.jsonl, throughput.jsonl and TensorBoard's event files.

metrics.jsonl holds only what the config and the seed determine, never a time; so the file of a run that was killed and
resumed is, byte for byte, that of a run that was not. Times are in throughput.jsonl.
"""

from __future__ import annotations

import json
import math
import os
import pathlib
import warnings
from collections.abc import Mapping
from typing import Any, TextIO

import jax
import numpy as np

from jrobust.errors import InputError

# What must stay finite; a method's own metrics may be NaN (a mean over no examples) and are written as null.
VITAL = ("loss", "gradient_norm")


class DivergedError(InputError):
    """Training has left the finite numbers."""


class Window:
    """The metrics of the steps since the last record, kept on the device until they are asked for.

    A window that is not full yet goes into the checkpoint (`rows`) and comes back from it, so records do not depend on
    where a run was interrupted.
    """

    def __init__(self, rows: list | None = None):
        self._rows: list[tuple[int, dict[str, float]]] = [(int(step), dict(values)) for step, values in rows or []]
        self._pending: list[tuple[int, Mapping[str, jax.Array]]] = []

    def add(self, step: int, metrics: Mapping[str, jax.Array]) -> None:
        """Take the metrics of one step; does not wait for them."""
        self._pending.append((step, metrics))

    def rows(self) -> list[tuple[int, dict[str, float]]]:
        """Fetch, check and return the metrics of each step since the last record.

        Raises:
          DivergedError: a loss or a gradient is not finite; names the step.
        """
        fetched = jax.device_get([metrics for _, metrics in self._pending])
        steps = [step for step, _ in self._pending]
        self._pending = []
        for step, values in zip(steps, fetched, strict=True):
            row = {name: shortest(value) for name, value in sorted(values.items())}
            self._rows.append((step, row))
            for name in VITAL:
                if not math.isfinite(row.get(name, 0.0)):
                    raise DivergedError(
                        f"training diverged: {name} is {row[name]} at step {step}, in the window of steps {steps[0]} to"
                        f" {steps[-1]}"
                    )
        return list(self._rows)

    def close(self) -> dict[str, float]:
        """Return the mean of each metric over the window and start the next one."""
        rows, self._rows = self.rows(), []
        names = rows[-1][1] if rows else ()
        return {name: shortest(math.fsum(np.float32(row[name]) for _, row in rows) / len(rows)) for name in names}


def shortest(value: Any) -> float:
    """Return a float32 as the shortest decimal that reads back as the same float32.

    >>> shortest(np.float32(0.1))
    0.1
    """
    return float(str(np.float32(value)))


class RunLog:
    """The files that a run appends to.

    Args:
      workdir: the run's folder; None to write nothing, as all processes but the primary one do.
      step: where the run starts or resumes; records beyond it are removed, for these steps are done again.
    """

    def __init__(self, workdir: str | os.PathLike | None, *, step: int = 0):
        self._files: dict[str, TextIO] = {}
        self._board: Any = None
        if workdir is None:
            return
        for name in ("metrics", "throughput"):
            path = pathlib.Path(workdir) / f"{name}.jsonl"
            truncate(path, step)
            self._files[name] = path.open("a", encoding="utf-8")
        self._board = _tensorboard(pathlib.Path(workdir), step)

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Append one record of numbers that depend on nothing but the config and the seed."""
        self._append("metrics", step, values)
        self._to_board(step, values)

    def throughput(self, step: int, values: Mapping[str, Any]) -> None:
        """Append one record of times and rates."""
        self._append("throughput", step, values)
        self._to_board(step, {f"throughput/{name}": value for name, value in values.items()})

    def sync(self) -> None:
        """Bring the records to the disk; a checkpoint must not be ahead of them."""
        for file in self._files.values():
            file.flush()
            os.fsync(file.fileno())

    def close(self) -> None:
        """Close the files."""
        for file in self._files.values():
            file.close()
        if self._board is not None:
            self._board.close()

    def _append(self, name: str, step: int, values: Mapping[str, Any]) -> None:
        if name not in self._files:
            return
        finite = {
            key: None if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in values.items()
        }
        self._files[name].write(json.dumps({"step": step} | finite, allow_nan=False) + "\n")
        self._files[name].flush()

    def _to_board(self, step: int, values: Mapping[str, Any]) -> None:
        if self._board is not None:
            for name, value in values.items():
                if isinstance(value, int | float):
                    self._board.add_scalar(name, value, step)


def truncate(path: pathlib.Path, step: int) -> None:
    """Remove the records beyond `step` and a last line that was cut off; the file is replaced whole or not at all."""
    if not path.exists():
        return
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    kept = [line for line in lines if line.endswith("\n") and _step(line) <= step]
    if kept != lines:
        aside = path.with_name(path.name + ".tmp")
        with aside.open("w", encoding="utf-8") as file:
            file.writelines(kept)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)


def read(path: str | os.PathLike) -> list[dict[str, Any]]:
    """Return the records of a JSON-lines file; a last line that was cut off is left out."""
    lines = pathlib.Path(path).read_text(encoding="utf-8").splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


def _step(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, TypeError, KeyError):
        return -math.inf  # not ours: leave it where it is


def _tensorboard(workdir: pathlib.Path, step: int) -> Any:
    try:
        import tensorboardX
    except ImportError:
        warnings.warn("tensorboardX is not installed: no TensorBoard files are written", stacklevel=3)
        return None
    # On resuming, TensorBoard hides what an earlier file has beyond this step.
    return tensorboardX.SummaryWriter(str(workdir), purge_step=step + 1 if step else None)
