"""Reading what a run left behind."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
import os
import pathlib
from typing import Any

import numpy as np

from jrobust.errors import InputError

Row = dict[str, Any]

# The order in which suites are shown; others follow.
SUITES = (
    *("accuracy", "zero_shot", "interpolation", "natural_shift", "bias", "robustness", "autoattack", "sanity"),
    *("attribution", "transfer", "localization", "masking"),
)


@dataclasses.dataclass(frozen=True)
class Run:
    """The files of a run, read; what is missing is empty.

    Attributes:
      path: the run's folder, absolute; `name` is its last part.
      config: config.json.
      environment: environment.json.
      metrics, throughput: the lines of metrics.jsonl and throughput.jsonl.
      records: evaluation/<suite>.json by suite, as JSON.
    """

    path: pathlib.Path
    config: Row
    environment: Row
    metrics: list[Row]
    throughput: list[Row]
    records: dict[str, Row]

    @property
    def name(self) -> str:
        """Return the name of the run's folder."""
        return self.path.name

    def columns(self, suite: str) -> dict[str, list[str]]:
        """Return the per-example table of a suite, cells as text; empty if there is none."""
        path = self.path / "evaluation" / f"{suite}.csv"
        if not path.exists():
            return {}
        with path.open(newline="") as file:
            header, *rows = list(csv.reader(file))
        return {name: [row[i] for row in rows] for i, name in enumerate(header)}

    def arrays(self, suite: str) -> dict[str, np.ndarray]:
        """Return the gallery arrays of a suite; empty if there are none."""
        path = self.path / "evaluation" / f"{suite}.npz"
        if not path.exists():
            return {}
        with np.load(path, allow_pickle=False) as archive:
            return dict(archive)


def read(workdir: str | os.PathLike) -> Run:
    """Read a run.

    Raises:
      InputError: the folder does not exist, holds no result, or one of its files is damaged.
    """
    path = pathlib.Path(workdir).expanduser().resolve()
    if not path.is_dir():
        raise InputError(f"{workdir} is no folder: expected the folder of a run (--workdir of launch/run.py)")
    files = sorted((path / "evaluation").glob("*.json"), key=lambda file: (_rank(file.stem), file.stem))
    records = {file.stem: _json(file) for file in files}
    for suite, record in records.items():
        if not isinstance(record.get("metrics"), dict) or record.get("suite") != suite:
            raise InputError(f"{path}/evaluation/{suite}.json is not an evaluation record: evaluate the run again")
    run = Run(
        path,
        _json(path / "config.json"),
        _json(path / "environment.json"),
        _lines(path / "metrics.jsonl"),
        _lines(path / "throughput.jsonl"),
        records,
    )
    if not (run.config or run.metrics or run.records):
        raise InputError(f"{path} holds no run: expected config.json, metrics.jsonl or evaluation/*.json in it")
    return run


def number(value: Any) -> float:
    """Return a JSON number, NaN for null and for what is none."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan


def _rank(suite: str) -> int:
    return SUITES.index(suite) if suite in SUITES else len(SUITES)


def _json(path: pathlib.Path) -> Row:
    if not path.exists():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is not JSON ({error}): restore it, or remove it and make it again") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} holds a {type(content).__name__}: expected an object")
    return content


def _lines(path: pathlib.Path) -> list[Row]:
    """Read JSON lines; a last line that is cut off (a run that is writing) is left out."""
    if not path.exists():
        return []
    rows = []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    for number_of_line, line in enumerate(lines, 1):
        try:
            rows.append(json.loads(line))
        except ValueError as error:
            if number_of_line == len(lines):
                break
            raise InputError(f"{path}, line {number_of_line} is not JSON: remove the line") from error
    return [row for row in rows if isinstance(row, dict)]
