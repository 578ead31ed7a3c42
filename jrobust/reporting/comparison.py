"""One table over several runs, in which only numbers of equal protocols share a column."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import statistics
import tempfile
from collections.abc import Sequence

from jrobust.errors import InputError
from jrobust.reporting import curves, tables
from jrobust.reporting.figures import embedded
from jrobust.reporting.page import environment, write_text
from jrobust.reporting.run_files import SUITES, Row, Run, number, read

# What is compared, in the order of the columns; accuracy comes from the first suite that has it.
COMPARED = tuple(suite for suite in SUITES if suite not in ("transfer", "sanity", "interpolation"))
LEFT_OUT = ("IN_logit", "K_logit", "unbiased")


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A table over runs.

    Attributes:
      columns: headings, the first "run".
      protocols: how the column was measured, "" where there is nothing to say.
      rows: one a run, cells as text, "-" where the run has no such number.
      warnings: sentences on settings that differ.
      extras: tables of their own: a measure on many data sets, a line a run.
      trade_offs: how it was measured -> run -> the curve `interpolation`.
    """

    columns: list[str]
    protocols: list[str]
    rows: list[list[str]]
    warnings: list[str]
    extras: list[tables.Extra] = dataclasses.field(default_factory=list)
    trade_offs: dict[str, dict[str, list[Row]]] = dataclasses.field(default_factory=dict)


def compare(workdirs: Sequence[str | os.PathLike]) -> Comparison:
    """Return the table over runs: accuracies, those of a bias, IN, K, cost.

    Where C&W was measured the worst case has a column too: with AutoAttack these are the columns of FSR's tables.

    A column holds numbers of one protocol (attack, radius, steps, map, data set) only; where runs were evaluated
    differently there are several columns and a warning.

    Raises:
      InputError: a folder holds no run.
    """
    runs = [read(workdir) for workdir in workdirs]
    if not runs:
        raise InputError("no runs to compare: name at least one run folder")
    found = [_numbers(run) for run in runs]
    keys = sorted({key for numbers in found for key in numbers}, key=_order)
    warnings = _warnings(runs, keys)
    several = {name for name in {key[1] for key in keys} if sum(key[1] == name for key in keys) > 1}
    headings, protocols = ["run"], [""]
    for _, name, dataset, protocol in keys:
        tag = f" [{1 + sum(k[1] == name for k in keys[: keys.index((_, name, dataset, protocol))])}]"
        headings.append(f"{tables.metric_name(name)} %{tag if name in several else ''}")
        protocols.append(f"{protocol}; {dataset}")
    rows = []
    for label, run, numbers in zip(_labels(runs), runs, found, strict=True):
        cells = [tables.percent(numbers[key].get("value")) if key in numbers else "-" for key in keys]
        rows.append([label, *cells, tables.count(_rate(run)), tables.count(_parameters(run))])
    return Comparison(
        [*headings, "images/s", "parameters"],
        [*protocols, "training, median", "trained"],
        rows,
        warnings,
        on_data_sets(runs),
        _trade_offs(runs),
    )


def on_data_sets(runs: Sequence[Run]) -> list[tables.Extra]:
    """Return the lines of the tables `zero_shot` under each other: a table for each measure, its protocol and its sets.

    A mean without the set that was trained on is left out where that is not the same set for all lines.
    """
    found: dict[tuple[str, str, tuple[str, ...]], list[tuple[str, Row, list]]] = {}
    for label, run in zip(_labels(list(runs)), runs, strict=True):
        record = run.records.get("zero_shot", {})
        table = record.get("tables", {}).get("zero_shot", {"columns": [""], "rows": []})
        titles = tuple(title for title in table["columns"][1:] if title not in tables.MEANS)
        for name, *cells in table["rows"]:
            found.setdefault((name, tables.how_on_sets(record, name), titles), []).append((label, record, cells))
    extras = []
    for (name, how, titles), lines in found.items():
        sources = {record["settings"].get("source") for _, record, _ in lines}
        means = tables.MEANS if len(sources) == 1 and sources != {""} else tables.MEANS[:1]
        rows = [[label, *map(tables.percent, cells[: len(titles) + len(means)])] for label, _, cells in lines]
        note = f"{how}." + (f" {means[1]}: without {sources.pop()}." if len(means) > 1 else "")
        extras.append(
            tables.Extra("zero_shot", f"{name}, accuracy (%) on each data set", note, ["run", *titles, *means], rows)
        )
    return extras


def _trade_offs(runs: list[Run]) -> dict[str, dict[str, list[Row]]]:
    """Return the curves of the interpolation suite, those of equal protocols together."""
    found: dict[str, dict[str, list[Row]]] = {}
    for label, run in zip(_labels(runs), runs, strict=True):
        record = run.records.get("interpolation", {})
        protocols = [text for name, text in record.get("protocols", {}).items() if name.startswith("average.pgd")]
        if points := record.get("curves", {}).get("interpolation"):
            found.setdefault(f"{protocols[0]}; {record['dataset']}", {})[label] = points
    return found


def write(comparison: Comparison, output: str | os.PathLike) -> pathlib.Path:
    """Write the table as a self-contained HTML page; return its path.

    Raises:
      InputError: the file cannot be written.
    """
    path = pathlib.Path(output)
    figures = []
    with tempfile.TemporaryDirectory() as folder:
        picture = pathlib.Path(folder) / "interpolation.png"
        for how, lines in comparison.trade_offs.items():
            if curves.trade_off(lines, picture):
                caption = f"From the original model (0) to the fine-tuned one (1), robust over clean accuracy: {how}."
                figures.append({"caption": caption} | embedded(picture))
    template = environment().get_template("compare.html")
    html = template.render(comparison=comparison, extras=comparison.extras, figures=figures)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return write_text(path, html)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}; choose another --output") from error


Key = tuple[str, str, str, str]  # suite, metric, data set, protocol


def _numbers(run: Run) -> dict[Key, Row]:
    found: dict[Key, Row] = {}
    seen = set()
    for suite in COMPARED:
        record = run.records.get(suite, {"metrics": {}})
        fsr = any(name.startswith("cw_") for name in record["metrics"])
        for name, estimate in record["metrics"].items():
            if name in LEFT_OUT or tables.tabulated(name):
                continue
            if (name == "accuracy" and name in seen) or (name == "worst_case" and not fsr):
                continue
            seen.add(name)
            where = "accuracy" if name == "accuracy" else suite
            found[where, name, record["dataset"], record.get("protocols", {}).get(name, "")] = estimate
    return found


def _order(key: Key) -> tuple:
    suite, whole, dataset, protocol = key
    average, dot, rest = whole.partition(".")
    name = rest if dot else whole
    digits = "".join(c for c in name if c.isdigit())
    of_bias = ("average", "conflicting", "aligned", "worst_group")
    of_attributions = ("IN", "K", "failed", "gt_known", "top1_localization")
    first = ("accuracy", "clean", *of_bias, "fgsm", "pgd", "cw", "worst_case", *of_attributions)
    kind = name.split("_")[0] if name.startswith(("pgd_", "cw_")) else name
    return (
        COMPARED.index(suite),
        average != "average",
        first.index(kind) if kind in first else len(first),
        int(digits or 0),
        dataset,
        protocol,
    )


def _warnings(runs: list[Run], keys: list[Key]) -> list[str]:
    warnings = []
    labels = _labels(runs)
    for name in dict.fromkeys(key[1] for key in keys):
        ways = [key for key in keys if key[1] == name]
        if len(ways) > 1:
            texts = "; ".join(f"[{i}] {protocol}, {dataset}" for i, (_, _, dataset, protocol) in enumerate(ways, 1))
            warnings.append(f"{tables.metric_name(name)} was measured in {len(ways)} ways, not to be compared: {texts}")
    for suite in COMPARED:
        having = [(label, run.records[suite]) for label, run in zip(labels, runs, strict=True) if suite in run.records]
        for field, word in (("examples", "images"), ("dtype", "compute type"), ("seed", "seed")):
            values = {str(record.get(field)) for _, record in having}
            # How many images the attack on attributions finds correct differs from model to model.
            if len(values) > 1 and (suite, field) != ("attribution", "examples"):
                texts = ", ".join(f"{label} {record.get(field)}" for label, record in having)
                warnings.append(f"{suite}: {word} differ: {texts}")
        if 0 < len(having) < len(runs) and suite in {key[0] for key in keys}:
            missing = ", ".join(label for label, run in zip(labels, runs, strict=True) if suite not in run.records)
            warnings.append(f"{suite} was not evaluated for {missing}")
    devices = {str(run.environment.get("devices")) for run in runs if run.throughput}
    if len(devices) > 1:
        warnings.append("images/s were measured on different devices")
    return warnings


def _labels(runs: list[Run]) -> list[str]:
    """Return the folders' names, with the parent where two are the same."""
    names = [run.name for run in runs]
    return [run.name if names.count(run.name) == 1 else f"{run.path.parent.name}/{run.name}" for run in runs]


def _rate(run: Run) -> float | None:
    rates = [number(row["images_per_second"]) for row in run.throughput if row.get("images_per_second")]
    return statistics.median(rates) if rates else None


def _parameters(run: Run) -> float | None:
    return next((record["parameters"] for record in run.records.values() if record.get("parameters")), None)
