"""The page of a study: tables, a measure over the values of each swept field, and rows side by side."""

from __future__ import annotations

import os
import pathlib
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from jrobust import units
from jrobust.errors import InputError
from jrobust.reporting import curves, tables
from jrobust.reporting.figures import COLORS, embedded, figure
from jrobust.reporting.page import environment, write_text
from jrobust.reporting.study import NOTE, Study, Sweep, between_table, spread, table, write_json

BETWEEN = (
    "From the original weights (0) to the fine-tuned ones (1), as in WiSE-FT: means over seeds. Numbers: the share of"
    " the fine-tuned weights."
)


def write(study: Study, workdir: str | os.PathLike) -> list[pathlib.Path]:
    """Write study.json, the figures as PNG and study.html, which holds them; return the paths.

    Every file appears at once or not at all. The page links to those of the runs.
    """
    folder = pathlib.Path(workdir)
    paths = [write_json(study, folder)]
    for old in (*folder.glob("sweep*.png"), *folder.glob("rows.png"), *folder.glob("between-*.png")):
        old.unlink()
    figures = []
    for path, caption in draw(study, folder):
        paths.append(path)
        figures.append({"caption": caption} | embedded(path))
    found = [table(study, measure) for measure in study.measures]
    found += [between_table(study, suite) for suite in study.suites_between()]
    html = (
        environment()
        .get_template("study.html")
        .render(
            study=study,
            tables=found,
            note=NOTE,
            figures=figures,
            written=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        )
    )
    return [*paths, write_text(folder / "study.html", html)]


def draw(study: Study, folder: pathlib.Path) -> Iterator[tuple[pathlib.Path, str]]:
    """Draw what there is to draw; yield path and caption.

    A sweep.png for each swept row, rows.png, and between-SUITE.png where a suite measured models between the original
    and the fine-tuned one.
    """
    swept = list(dict.fromkeys(sweep.row for sweep in study.sweeps))
    for i, row in enumerate(swept):
        path = folder / ("sweep.png" if len(swept) == 1 else f"sweep-{i + 1}.png")
        fields = [sweep for sweep in study.sweeps if sweep.row == row]
        if _sweep(study, fields, path):
            dashed = f" Dashed: {study.baseline}." if study.baseline else ""
            text = f"{row}, one field at a time: means over seeds with their standard deviation (ddof = 0)."
            yield path, text + dashed
    path = folder / "rows.png"
    if _rows(study, path):
        yield path, "Means over seeds with their standard deviation (ddof = 0); dots: the runs."
    for suite in study.suites_between():
        path = folder / f"between-{suite}.png"
        if _between(study, suite, path):
            yield path, BETWEEN


def positions(values: list[str]) -> tuple[list[float], bool]:
    """Return where the values of a field lie on its axis, and whether these are the values themselves.

    >>> positions(["0.1", "8/255"])[1], positions(["eval", "train"])
    (True, ([0.0, 1.0], False))
    """
    try:
        return [units.number(value) for value in values], True
    except InputError:
        return [float(i) for i in range(len(values))], False


def _sweep(study: Study, fields: list[Sweep], path: pathlib.Path) -> bool:
    """Draw one panel a field, one line a measure."""
    if not any(study.values(label, name) for s in fields for _, label in s.points for name in study.measures):
        return False
    with figure(path, 2.9 * len(fields) + 0.5, 3.2) as canvas:
        panels = canvas.subplots(1, len(fields), squeeze=False, sharey=True)[0]
        for axis, sweep in zip(panels, fields, strict=True):
            xs, numeric = positions([value for value, _ in sweep.points])
            order = np.argsort(xs)
            for color, name in zip(_colors(study), study.measures, strict=True):
                means, stds = (np.array(part)[order] for part in _spreads(study, [s for _, s in sweep.points], name))
                style = "o-" if numeric else "o"
                label = tables.metric_name(name)
                axis.errorbar(np.array(xs)[order], means, stds, fmt=style, color=color, capsize=3, label=label)
                if study.baseline:
                    level = _spreads(study, [study.baseline], name)[0][0]
                    axis.axhline(level, color=color, linestyle="--", linewidth=1.2)
            axis.set_xticks(xs, [value for value, _ in sweep.points])
            axis.set_xlabel(sweep.field.rpartition(".")[2].replace("_", " "))
            if not numeric:
                axis.margins(x=0.2)
        panels[0].set_ylabel("% (mean over seeds)")
        canvas.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return True


def _rows(study: Study, path: pathlib.Path) -> bool:
    """Draw the groups below each other, one panel a measure; the points of sweeps have figures of their own."""
    points = {label for sweep in study.sweeps for _, label in sweep.points} - {sweep.row for sweep in study.sweeps}
    groups = [group.label for group in study.groups if group.label not in points]
    if len(groups) < 2 or not study.results:
        return False
    longest = max(len(label) for label in groups)
    with figure(path, 2.6 * len(study.measures) + 0.07 * longest, 0.34 * len(groups) + 1.0) as canvas:
        panels = canvas.subplots(1, len(study.measures), squeeze=False, sharey=True)[0]
        for axis, color, name in zip(panels, _colors(study), study.measures, strict=True):
            means, stds = _spreads(study, groups, name)
            for y, label in enumerate(groups):
                values = [100 * value for value in study.values(label, name)]
                axis.plot(values, [y] * len(values), ".", color=color, alpha=0.45)
            axis.errorbar(means, range(len(groups)), xerr=stds, fmt="o", color=color, capsize=3)
            axis.set_title(tables.metric_name(name))
            axis.set_xlabel("%")
        panels[0].set_yticks(range(len(groups)), groups)
        panels[0].invert_yaxis()
    return True


def _between(study: Study, suite: str, path: pathlib.Path) -> bool:
    """Draw one line a group."""
    lines = {group.label: study.curve(group.label, suite) for group in study.groups}
    points = {
        label: [
            {"label": f"{share:g}", "x": share} | {word: {"value": found.mean} for word, found in point.items()}
            for share, point in line.items()
        ]
        for label, line in lines.items()
    }
    return curves.trade_off(points, path, suite)


def _spreads(study: Study, labels: list[str], measure: str) -> tuple[list[float], list[float]]:
    """Return means and standard deviations in percent, NaN for a group without a run."""
    found = [spread(study.values(label, measure)) for label in labels]
    return [100 * group.mean for group in found], [100 * group.std for group in found]


def _colors(study: Study) -> list[Any]:
    return [COLORS[i % len(COLORS)] for i in range(len(study.measures))]
