"""Studies: runs that differ in a row of a config or in one field, each with several seeds, as means over the seeds."""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from scipy import special

from jrobust.errors import unknown
from jrobust.reporting import curves, tables
from jrobust.reporting.page import write_text
from jrobust.reporting.run_files import Row, Run, number

FORMAT = 1
NOTE = (
    "Mean and standard deviation (divided by n, ddof = 0) over n runs that differ in their seed alone. The interval is"
    " that of the mean, by Student's t with n - 1 degrees of freedom, and takes runs to be normally distributed."
)


@dataclasses.dataclass(frozen=True)
class Group:
    """Runs that differ in their seed alone: how the tables call them, and their folders below the study's."""

    label: str
    folders: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Sweep:
    """A field of a row's config that takes several values, the others staying as they are.

    Attributes:
      row: label of the group with the row's own config.
      field: path of the field in the config.
      points: each value, as text, with the label of its group.
    """

    row: str
    field: str
    points: tuple[tuple[str, str], ...]


@dataclasses.dataclass(frozen=True)
class Study:
    """What is compared, and what was measured so far.

    Attributes:
      title: the config and its words.
      overrides: what the command line changed in every run.
      measures: names of metrics, in the order of the tables.
      seeds: one a run of each group.
      groups: rows first, then the points of sweeps that are not a row's own config.
      sweeps: what figures are drawn of.
      baseline: label of the group that is drawn as a dashed line, "" for none.
      results: of each folder whose run is done, the measures; NaN where there was nothing to measure.
      notes: of each folder whose run came to no end, why.
      between: of each folder whose run is done, what each suite measured between the original and the fine-tuned model:
        points of `curves.BETWEEN`.
    """

    title: str
    overrides: tuple[str, ...]
    measures: tuple[str, ...]
    seeds: tuple[int, ...]
    groups: tuple[Group, ...]
    sweeps: tuple[Sweep, ...] = ()
    baseline: str = ""
    results: dict[str, dict[str, float]] = dataclasses.field(default_factory=dict)
    notes: dict[str, str] = dataclasses.field(default_factory=dict)
    between: dict[str, dict[str, list[Row]]] = dataclasses.field(default_factory=dict)

    def values(self, label: str, measure: str) -> list[float]:
        """Return a measure of a group's runs, those that are done, in the order of the seeds."""
        (group,) = [group for group in self.groups if group.label == label]
        return [self.results[folder][measure] for folder in group.folders if folder in self.results]

    def suites_between(self) -> list[str]:
        """Return the suites that measured some run between the original and the fine-tuned model."""
        return [suite for suite in curves.BETWEEN if any(found.get(suite) for found in self.between.values())]

    def curve(self, label: str, suite: str) -> dict[float, dict[str, Spread]]:
        """Return by share what a suite measured between the models, over a group's runs that are done.

        Only shares that all of them have.
        """
        (group,) = [group for group in self.groups if group.label == label]
        runs = [points for folder in group.folders if (points := self.between.get(folder, {}).get(suite))]
        each = [{point["x"]: point for point in points} for points in runs]
        shared = [share for share in (each[0] if each else ()) if all(share in points for points in each)]
        words = curves.BETWEEN[suite].words
        return {
            share: {word: spread(number(points[share][word]["value"]) for points in each) for word in words}
            for share in shared
        }


@dataclasses.dataclass(frozen=True)
class Spread:
    """The mean of n values, their standard deviation (ddof = 0) and the 95 % interval of the mean; NaN for nothing."""

    mean: float
    std: float
    low: float
    high: float
    count: int


def spread(values: Iterable[float]) -> Spread:
    """Return the mean over seeds with its standard deviation and the 95 % interval of Student's t; NaN is dropped.

        m = mean(v),   std = sqrt(mean((v - m)^2)),   m +- t_{0.975, n-1} s / sqrt(n),   s^2 = sum((v - m)^2) / (n - 1)

    >>> s = spread([0.2, 0.3, 0.4])
    >>> round(s.mean, 4), round(s.std, 4), round(s.low, 4), round(s.high, 4), s.count
    (0.3, 0.0816, 0.0516, 0.5484, 3)
    """
    found = np.array([value for value in values if not math.isnan(value)], np.float64)
    n = len(found)
    if n == 0:
        return Spread(math.nan, math.nan, math.nan, math.nan, 0)
    mean, std = float(found.mean()), float(found.std())
    half = float(special.stdtrit(n - 1, 0.975) * found.std(ddof=1) / math.sqrt(n)) if n > 1 else math.nan
    return Spread(mean, std, mean - half, mean + half, n)


def measured(run: Run, names: Sequence[str], config_hash: str) -> dict[str, float]:
    """Return metrics of a run by name, whichever suite has them; `suite.metric` where several do.

    Records of another state of the config are not looked at.

    Raises:
      InputError: no suite has measured it; names the nearest.
    """
    found: dict[str, Any] = {}
    for suite, record in run.records.items():
        if record.get("config_hash") == config_hash:
            for name, estimate in record["metrics"].items():
                found.setdefault(name, estimate)
                found[f"{suite}.{name}"] = estimate
    for name in names:
        if name not in found:
            advice = f"{run.path} was evaluated by {', '.join(run.records) or 'no suite'}"
            raise unknown(
                "measure",
                name,
                [key for key in found if "." not in key or key.startswith(tuple(tables.AVERAGES))],
                advice,
            )
    return {name: number(found[name].get("value")) for name in names}


def table(study: Study, measure: str) -> tables.Extra:
    """Return the table of a measure: a line a group."""
    rows = []
    for group in study.groups:
        values = study.values(group.label, measure)
        found = spread(values)
        each = ", ".join(tables.percent(value) for value in values)
        interval = tables.interval({"low": found.low, "high": found.high})
        rows.append([group.label, _mean(found), interval, str(found.count), each])
    seeds = ", ".join(map(str, study.seeds))
    title = f"{tables.metric_name(measure)} (%), mean +- standard deviation (ddof = 0) over seeds {seeds}"
    columns = ["", "mean +- std", "95 % interval (t)", "n", "each run"]
    return tables.Extra("", title, NOTE, columns, rows)


def between_table(study: Study, suite: str) -> tables.Extra:
    """Return the table of what a suite measured between the original and the fine-tuned models: a line a share."""
    words, found = curves.BETWEEN[suite].words, {group.label: study.curve(group.label, suite) for group in study.groups}
    found = {label: curve for label, curve in found.items() if curve}
    shares = sorted({share for curve in found.values() for share in curve})
    rows = [
        [f"{share:g}", *(_mean(curve.get(share, {}).get(word)) for curve in found.values() for word in words)]
        for share in shares
    ]
    names = [f"{label}: {tables.metric_name(word)}" for label in found for word in words]
    seeds = ", ".join(map(str, study.seeds))
    title = f"{tables.WISE_FT}, mean +- standard deviation (ddof = 0) over seeds {seeds}"
    return tables.Extra(suite, title, "Share 0: the original; 1: the fine-tuned one.", ["share", *names], rows)


def write_json(study: Study, folder: pathlib.Path) -> pathlib.Path:
    """Write study.json; return its path."""
    groups = []
    for group in study.groups:
        found = {name: dataclasses.asdict(spread(study.values(group.label, name))) for name in study.measures}
        runs = [
            {"seed": seed, "folder": name, "values": study.results.get(name), "note": study.notes.get(name, "")}
            for seed, name in zip(study.seeds, group.folders, strict=True)
        ]
        between = {suite: _points(study.curve(group.label, suite)) for suite in study.suites_between()}
        groups.append({"label": group.label, "measures": found, "between": between, "runs": runs})
    content: Row = {
        "format": FORMAT,
        "title": study.title,
        "overrides": study.overrides,
        "measures": study.measures,
        "seeds": study.seeds,
        "std": "divided by n (ddof = 0)",
        "interval": "95 %, Student's t over seeds",
        "baseline": study.baseline,
        "groups": groups,
        "sweeps": [dataclasses.asdict(sweep) for sweep in study.sweeps],
    }
    return write_text(folder / "study.json", json.dumps(_plain(content), indent=1, allow_nan=False) + "\n")


def _mean(found: Spread | None) -> str:
    """Return a mean with its standard deviation as a cell."""
    if found is None:
        return "-"
    return tables.percent(found.mean) + (f" +- {tables.percent(found.std)}" if found.count > 1 else "")


def _points(curve: dict[float, dict[str, Spread]]) -> list[Row]:
    return [
        {"share": share} | {word: dataclasses.asdict(found) for word, found in point.items()}
        for share, point in curve.items()
    ]


def _plain(value: Any) -> Any:
    """Turn NaN into what JSON has."""
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return None if isinstance(value, float) and math.isnan(value) else value
