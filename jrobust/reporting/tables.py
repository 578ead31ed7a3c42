"""Numbers as text, and the tables of a run for the terminal and for HTML."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from rich.table import Table

from jrobust.reporting.run_files import Row, number

NAMES = {
    "accuracy": "accuracy",
    "fgsm": "FGSM",
    "worst_case": "worst case of the attacks",
    "IN": "IN",
    "K": "K",
    "IN_logit": "IN, maps of the logit",
    "K_logit": "K, maps of the logit",
    "failed": "attacks that failed",
    "gt_known": "localisation, class known",
    "top1_localization": "localisation, top-1",
}
INTERVALS = {"wilson": "Wilson", "normal": "normal approximation"}


def metric_name(name: str) -> str:
    """Return how a metric is called in tables.

    >>> metric_name("pgd_20"), metric_name("IN")
    ('PGD-20', 'IN')
    """
    if name.startswith("pgd_"):
        return f"PGD-{name[4:]}"
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

    An accuracy that the accuracy suite has too, on as many images, is not repeated; the matrix of the transfer suite is
    a table of its own.
    """
    rows = []
    known = records.get("accuracy", {}).get("metrics", {}).get("accuracy")
    for suite, record in records.items():
        for name, estimate in record["metrics"].items():
            if suite == "transfer" or (suite != "accuracy" and name == "accuracy" and estimate == known):
                continue
            rows.append(
                [
                    suite,
                    metric_name(name),
                    percent(estimate.get("value")),
                    interval(estimate),
                    count(estimate.get("count")),
                    record.get("protocols", {}).get(name, ""),
                ]
            )
    return rows


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
