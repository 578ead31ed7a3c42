"""Numbers as text, and the tables of a run for the terminal and for HTML."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import Any

from rich.table import Table

from jrobust.reporting.run_files import Row, number

NAMES = {
    "accuracy": "accuracy",
    "clean": "clean",
    "average": "average",
    "conflicting": "conflicting",
    "aligned": "aligned",
    "worst_group": "worst group",
    "unbiased": "mean of the groups",
    "fgsm": "FGSM",
    "worst_case": "worst case (Ensemble)",
    "robust_accuracy": "AutoAttack",
    "autoattack": "AutoAttack",
    "shortened_autoattack": "shortened AutoAttack",
    "unbounded": "PGD, radius 1",
    "square": "Square",
    "nattack": "N Attack",
    "IN": "IN",
    "K": "K",
    "IN_logit": "IN, maps of the logit",
    "K_logit": "K, maps of the logit",
    "failed": "attacks that failed",
    "gt_known": "localisation, class known",
    "top1_localization": "localisation, top-1",
    "image_masking_rate": "masked of the image",
    "object_masking_rate": "masked of the object",
    "iou": "IoU of mask and object",
    "imagenet": "ImageNet",
    "imagenet_v2": "ImageNet-V2",
    "imagenet_r": "ImageNet-R",
    "imagenet_sketch": "ImageNet-Sketch",
    "objectnet": "ObjectNet",
    "imagenet_a": "ImageNet-A",
    "average_shift": "mean of the shifts",
}
PARTIAL = "after "  # begins the metrics of AutoAttack before its last part
UNDER = " under "  # before the corruption in a metric of the bias suite
RADIUS = ".linf_"  # before the radius of a point of a curve, in metrics of the zero_shot suite
AT = " at "  # before the share in a metric of the interpolation suite
# Before the measure in metrics of the zero_shot suite; there the name of a data set stands before all others.
AVERAGES = {"average.": "mean of the sets", "zero_shot_average.": "mean of the zero-shot sets"}
MEANS = ("Avg", "zero-shot Avg")  # the last columns of the table of the zero_shot suite
WISE_FT = "Accuracy (%) between the original and the fine-tuned model"
INTERVALS = {"wilson": "Wilson", "normal": "normal approximation"}


def metric_name(name: str) -> str:
    """Return how a metric is called in tables.

    >>> [metric_name(name) for name in ("pgd_20", "cw_30", "IN", "di_fgsm from net", "average.pgd_10")]
    ['PGD-20', 'C&W-30', 'IN', 'DI-FGSM from net', 'PGD-10, mean of the sets']
    """
    for prefix, over in AVERAGES.items():
        if name.startswith(prefix):
            return f"{metric_name(name.removeprefix(prefix))}, {over}"
    attack, found, model = name.partition(" from ")
    if found:
        return f"{attack.upper().replace('_', '-')} from {model}"
    for prefix, title in (("pgd_", "PGD-"), ("cw_", "C&W-"), ("linf_", "PGD at Linf ")):
        if name.startswith(prefix):
            return f"{title}{name.removeprefix(prefix)}"
    return NAMES.get(name, name)


def percent(value: Any) -> str:
    """Return a share as percent: "44.07", or "-" for nothing."""
    share = number(value)
    return "-" if math.isnan(share) else f"{100 * share:.2f}"


def interval(estimate: Row | None) -> str:
    """Return the 95 % interval of an estimate in percent, or "" if it has none."""
    low, high = (number((estimate or {}).get(key)) for key in ("low", "high"))
    return "" if math.isnan(low) or math.isnan(high) else f"{100 * low:.2f} to {100 * high:.2f}"


def count(value: Any) -> str:
    """Return a number with thousands separated, "-" for nothing."""
    n = number(value)
    return "-" if math.isnan(n) else f"{n:,.0f}" if abs(n) >= 100 else f"{n:.3g}"


def summary(records: dict[str, Row]) -> list[list[str]]:
    """Return the rows of the table of a run: suite, metric, percent, interval, examples, protocol.

    An accuracy that the accuracy suite has too, on as many images, is not repeated; the matrix of the transfer suite,
    the parts of AutoAttack and the corruptions of the bias suite are tables of their own.
    """
    rows = []
    known = records.get("accuracy", {}).get("metrics", {}).get("accuracy")
    for suite, record in records.items():
        for name, estimate in record["metrics"].items():
            if suite == "transfer" or (suite != "accuracy" and name == "accuracy" and estimate == known):
                continue
            if tabulated(name):
                continue
            rows.append(
                [
                    suite,
                    metric_name(name),
                    percent(estimate.get("value")),
                    interval(estimate),
                    count(estimate.get("count")),
                    # In full it repeats the rows above; the record and the comparison of runs have it.
                    "right on the image and under every attack above"
                    if name == "worst_case"
                    else record.get("protocols", {}).get(name, ""),
                ]
            )
    return rows


def tabulated(name: str) -> bool:
    """Return whether a metric is one of many of a table of its own.

    >>> [tabulated(name) for name in ("average.pgd_10", "dtd.pgd_10", "average.clean at 0.5", "pgd_10 from a.b")]
    [False, True, True, False]
    """
    of_a_set = "." in name and " " not in name and not name.startswith(tuple(AVERAGES))
    return name.startswith(PARTIAL) or UNDER in name or AT in name or RADIUS in name or of_a_set


@dataclasses.dataclass(frozen=True)
class Extra:
    """A table of one suite beside the summary: its title, a sentence on it, and cells as text."""

    suite: str
    title: str
    note: str
    columns: list[str]
    rows: list[list[str]]


def extras(records: dict[str, Row]) -> list[Extra]:
    """Return the tables that a run has beside the summary, each where its suite was run."""
    found = [
        _extra(records, "zero_shot", "zero_shot", "Accuracy (%) on each data set", _means(records)),
        _extra(
            records, "zero_shot", "sets", "What was taken of each data set", "Images/s: under all attacks together."
        ),
        _extra(
            *(records, "interpolation", "interpolation", WISE_FT),
            "Share 0: the original; 1: the fine-tuned one. Means over the data sets.",
        ),
        _extra(
            *(records, "natural_shift", "natural_shift", "Accuracy (%) under natural shifts"),
            "Each among the classes of its set. Avg shifts: the unweighted mean without ImageNet.",
        ),
        _extra(records, "natural_shift", "sets", "What was taken of each data set", ""),
        _extra(records, "natural_shift", "wise_ft", WISE_FT, "Share 0: the original; 1: the fine-tuned one."),
        groups(records),
        _extra(records, "bias", "wise_ft", WISE_FT, "Share 0: the original; 1: the fine-tuned one."),
        _extra(records, "bias", "corruptions", "Accuracy (%) of corrupted images", "Every model on the same images."),
        protocol(records),
        _extra(records, "autoattack", "parts", "Parts of AutoAttack", "Each attacks what the ones before left."),
        _extra(
            records, "sanity", "checks", "Checks against obfuscated gradients", "On a small sample, see the curves."
        ),
        _extra(records, "transfer", "matrix", "Transfer", "Accuracy (%) of the row's model on images of the column."),
    ]
    return [extra for extra in found if extra is not None]


def _extra(records: dict[str, Row], suite: str, name: str, title: str, note: str) -> Extra | None:
    """Return a table of a record as it is, numbers as text; None where there is none."""
    table = records.get(suite, {}).get("tables", {}).get(name)
    if not table:
        return None
    if suite == "transfer":
        note = f"{note} {_crafted(records[suite])}".strip()
    shares = suite in ("bias", "transfer", "interpolation") or name in ("zero_shot", "natural_shift", "wise_ft")
    rows = [[_cell(c, v, shares) for c, v in zip(table["columns"], row, strict=True)] for row in table["rows"]]
    return Extra(suite, title, note, list(map(str, table["columns"])), rows)


def numeric_column(extra: Extra, column: int) -> bool:
    """Return whether a column of a table holds numbers only."""
    return all(_numeric(row[column]) for row in extra.rows)


def groups(records: dict[str, Row]) -> Extra | None:
    """Return the accuracies of the groups of class and bias as a matrix; None where they were not measured."""
    record = records.get("bias", {})
    cells = cells_of(record)
    if not cells:
        return None
    biases = list(dict.fromkeys(bias for _, bias in cells))
    body = [
        [name, *(percent(cells[name, bias]["accuracy"]) for bias in biases)]
        for name in dict.fromkeys(name for name, _ in cells)
    ]
    worst = record.get("checks", {}).get("worst_group")
    note = f"Rows: classes; columns: the bias, in the order of the classes it goes with. Worst group: {worst}."
    return Extra("bias", "Accuracy (%) of the groups of class and bias", note, ["class", *biases], body)


def cells_of(record: Row) -> dict[tuple[str, str], Row]:
    """Return the groups of the bias suite by class and bias, as rows of accuracy, low, high and count."""
    table = record.get("tables", {}).get("groups", {"columns": [], "rows": []})
    rows = [dict(zip(table["columns"], row, strict=True)) for row in table["rows"]]
    return {(str(row["class"]), str(row["bias"])): row for row in rows}


def protocol(records: dict[str, Row]) -> Extra | None:
    """Return a run's line of the tables of FSR (Kim et al. 2023); None where C&W was not measured.

    Ensemble is the worst case over the others but AutoAttack, which comes from its own suite.
    """
    record = records.get("robustness", {})
    metrics = record.get("metrics", {})
    if not any(name.startswith("cw_") for name in metrics):
        return None
    cells = {("Natural" if name == "accuracy" else metric_name(name)): metrics[name].get("value") for name in metrics}
    cells["Ensemble"] = cells.pop(metric_name("worst_case"), None)
    notes = [f"{record.get('threat')}, {count(record.get('examples'))} images of {record.get('dataset')}."]
    if autoattack := records.get("autoattack", {}).get("metrics", {}).get("robust_accuracy"):
        cells["AutoAttack"] = autoattack.get("value")
        if (images := autoattack.get("count")) != record.get("examples"):
            notes.append(f"AutoAttack on {count(images)} images.")
    title = "Accuracy (%) under the attacks of FSR's tables"
    return Extra("robustness", title, " ".join(notes), list(cells), [[percent(value) for value in cells.values()]])


def how_on_sets(record: Row, title: str) -> str:
    """Return how a line of the table of the zero_shot suite was measured, on which sample of the sets."""
    rows = [row[0] for row in record["tables"]["zero_shot"]["rows"]]
    own = [name.removeprefix("average.") for name in record["metrics"] if name.startswith("average.")]
    protocol = record.get("protocols", {}).get(f"average.{own[rows.index(title)]}", "") if title in rows else ""
    return f"{protocol.partition('; mean over')[0]}; {_sample(record)}"


def _means(records: dict[str, Row]) -> str:
    record = records.get("zero_shot", {})
    source = record.get("settings", {}).get("source")
    without = f"; zero-shot Avg: without {source}, which was trained on" if source else ""
    return f"{record.get('threat')}; {_sample(record)}. Avg: unweighted mean of the sets{without}."


def _sample(record: Row) -> str:
    """Return which images of the sets were taken: a limit on their number is told by what there is."""
    return f"sample {record.get('settings', {}).get('sample')}, {count(record.get('examples') or 0)} images in all"


def _crafted(record: Row) -> str:
    text = next((text for text in record.get("protocols", {}).values() if "crafted" in text), "")
    return text[:1].upper() + text[1:]


def _cell(column: Any, value: Any, shares: bool) -> str:
    """Return a cell as text; a fraction of 1 in a column called an accuracy (or where all are) as percent."""
    if isinstance(value, float) and (shares or "accuracy" in str(column)):
        return percent(value)
    return "-" if value is None else count(value) if isinstance(value, int | float) else str(value)


SUMMARY_COLUMNS = ("suite", "measure", "%", "95 % interval", "examples", "how it was measured")


def rich_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """Return a table for the terminal; columns of numbers are aligned to the right."""
    table = Table(title=title, title_justify="left", title_style="bold")
    body = [list(row) for row in rows]
    for i, column in enumerate(columns):
        numeric = all(_numeric(row[i]) for row in body)
        table.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for row in body:
        table.add_row(*row)
    return table


def _numeric(cell: str) -> bool:
    return cell in ("", "-") or cell.replace(",", "").replace(" to ", "").replace(".", "").replace("-", "").isdigit()
