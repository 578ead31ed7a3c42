"""The record of a suite: what was measured, how, on what, and by which code."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import io
import json
import math
import os
import pathlib
import time
from typing import Any

import numpy as np

from jrobust import provenance
from jrobust.errors import InputError
from jrobust.evaluation.estimates import Estimate
from jrobust.evaluation.subject import Subject

FORMAT = 1


@dataclasses.dataclass
class Record:
    """One suite's result on one subject and one data set.

    Shares and correlations are fractions (0.44, not 44); radii are text ("8/255"), in pixel units of [0, 1].

    Attributes:
      suite: name of the suite.
      model: name of the subject; `parameters` its size, `dtype` its compute dtype, `step` the training step or None.
      dataset: name and split, `examples` how many of its images were used, `class_names` the names of its labels.
      threat: the threat model as text, e.g. "Linf 8/255"; "none" where nothing is perturbed.
      settings: every setting of the suite.
      metrics: name -> estimate with its 95 % interval.
      protocols: name of a metric -> how exactly it was measured. Only numbers of equal protocols may be compared.
      curves: name -> points in increasing x, each {"label": text, "x": float, metric: Estimate, ...}; x is a radius, a
        number of steps or a threshold.
      tables: name -> {"columns": [...], "rows": [[...], ...]}.
      checks: name -> what the suite verified about itself (largest perturbation, range of values, NaN, ...).
      warnings: sentences on what makes the numbers doubtful.
      seconds: wall clock of the suite; `attack_steps` gradient steps times images; `attack_steps_per_second` their rate
        without the first batch, which compiles (None if there was no second batch or nothing was attacked).
      columns: the per-example table, name -> array of length `examples`; written as CSV.
      arrays: arrays for pictures; written as NPZ.
    """

    suite: str
    model: str
    dataset: str
    examples: int
    class_names: list[str] = dataclasses.field(default_factory=list)
    threat: str = "none"
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    metrics: dict[str, Estimate] = dataclasses.field(default_factory=dict)
    protocols: dict[str, str] = dataclasses.field(default_factory=dict)
    curves: dict[str, list[dict[str, Any]]] = dataclasses.field(default_factory=dict)
    tables: dict[str, dict[str, list]] = dataclasses.field(default_factory=dict)
    checks: dict[str, Any] = dataclasses.field(default_factory=dict)
    warnings: list[str] = dataclasses.field(default_factory=list)
    seconds: float = 0.0
    attack_steps: int = 0
    attack_steps_per_second: float | None = None
    parameters: int = 0
    dtype: str = "float32"
    step: int | None = None
    seed: int = 0
    device: str = ""
    commit: str = ""
    config_hash: str = ""
    versions: dict[str, str] = dataclasses.field(default_factory=dict)
    created: str = ""
    columns: dict[str, np.ndarray] = dataclasses.field(default_factory=dict, repr=False)
    arrays: dict[str, np.ndarray] = dataclasses.field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, suite: str, subject: Subject, source: Any, **fields: Any) -> Record:
        """Return a record with everything filled in that the subject, the source and the machine tell."""
        return cls(
            suite=suite,
            model=subject.name,
            dataset=f"{source.name} {source.split}",
            class_names=[str(name) for name in subject.class_names],
            parameters=subject.parameters,
            dtype=subject.dtype,
            step=subject.step,
            device=provenance.devices(),
            commit=provenance.commit(),
            versions=provenance.versions(),
            created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            **fields,
        )

    def write(self, folder: str | os.PathLike) -> list[pathlib.Path]:
        """Write <suite>.csv, <suite>.<table>.csv, <suite>.npz and, last, <suite>.json; return the paths.

        Each file appears at once or not at all, and an earlier record stays until the new one is there.
        """
        folder = pathlib.Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        paths: list[pathlib.Path] = []
        if self.columns:
            rows = zip(*(np.asarray(column).tolist() for column in self.columns.values()), strict=True)
            paths.append(_replace(folder / f"{self.suite}.csv", _csv(self.columns, rows)))
        for name, table in self.tables.items():
            paths.append(_replace(folder / f"{self.suite}.{name}.csv", _csv(table["columns"], table["rows"])))
        if self.arrays:
            buffer = io.BytesIO()
            np.savez_compressed(buffer, allow_pickle=False, **self.arrays)
            paths.append(_replace(folder / f"{self.suite}.npz", buffer.getvalue()))
        text = json.dumps(_plain({"format": FORMAT} | self._fields()), indent=1, allow_nan=False)
        paths.insert(0, _replace(folder / f"{self.suite}.json", text.encode() + b"\n"))
        # What an earlier run of the same suite left must not be taken for a part of this one.
        for old in {*folder.glob(f"{self.suite}*.csv"), *folder.glob(f"{self.suite}.npz")} - set(paths):
            old.unlink()
        return paths

    @classmethod
    def read(cls, path: str | os.PathLike) -> Record:
        """Read a record back from its JSON file and the files beside it.

        Raises:
          InputError: there is no such file, or it is not a record.
        """
        path = pathlib.Path(path)
        try:
            fields = json.loads(path.read_text())
            if fields.pop("format") != FORMAT:
                raise ValueError("another format")
            fields["metrics"] = {name: Estimate.from_json(entry) for name, entry in fields["metrics"].items()}
            fields["curves"] = {name: [_point(p) for p in points] for name, points in fields["curves"].items()}
            record = cls(**fields)
        except FileNotFoundError as error:
            raise InputError(f"{path} does not exist: expected a record that launch/evaluate.py wrote") from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{path} is not an evaluation record: run launch/evaluate.py again ({error})") from error
        if (table := path.with_suffix(".csv")).exists():
            record.columns = read_columns(table)
        if (arrays := path.with_suffix(".npz")).exists():
            with np.load(arrays, allow_pickle=False) as archive:
                record.arrays = dict(archive)
        return record

    def _fields(self) -> dict[str, Any]:
        names = [field.name for field in dataclasses.fields(self) if field.name not in ("columns", "arrays")]
        return {name: getattr(self, name) for name in names}


def read_columns(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Read a per-example table: integers, booleans and floats (an empty cell is NaN) get their dtype back."""
    with open(path, newline="") as file:
        header, *rows = list(csv.reader(file))
    return {name: _column([row[i] for row in rows]) for i, name in enumerate(header)}


def config_hash(workdir: str | os.PathLike | None) -> str:
    """Return the first 12 hex digits of the SHA-256 of WORKDIR/config.json, or "" if there is none."""
    path = pathlib.Path(workdir or "") / "config.json"
    if workdir is None or not path.exists():
        return ""
    canonical = json.dumps(json.loads(path.read_text()), sort_keys=True)
    return hashlib.sha256(canonical.encode()).hexdigest()[:12]


def _plain(value: Any) -> Any:
    """Turn estimates, arrays, tuples and NaN into what JSON has."""
    if isinstance(value, Estimate):
        return value.to_json()
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, np.ndarray | list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, np.generic):
        return _plain(value.item())
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _point(fields: dict[str, Any]) -> dict[str, Any]:
    return {k: Estimate.from_json(v) if isinstance(v, dict) else v for k, v in fields.items()}


def _csv(header: Any, rows: Any) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    for row in rows:
        writer.writerow(["" if v is None or (isinstance(v, float) and math.isnan(v)) else v for v in row])
    return text.getvalue().encode()


def _column(cells: list[str]) -> np.ndarray:
    if cells and set(cells) <= {"True", "False"}:
        return np.array([cell == "True" for cell in cells])
    try:
        return np.array([int(cell) for cell in cells])
    except ValueError:
        pass
    try:
        return np.array([float(cell) if cell else math.nan for cell in cells])
    except ValueError:
        return np.array(cells)


def _replace(path: pathlib.Path, content: bytes) -> pathlib.Path:
    """Write a file under another name first, so that no reader ever sees half of it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_bytes(content)
    os.replace(temporary, path)
    return path
