"""Benchmark results as a document: the JSON lines of benchmarks/*.py become tables in Markdown.

    python benchmarks/tables.py benchmarks/results/2026-01-31-*.json --title="One machine" --output=docs/results/cpu.md

Each file is a section: what was measured, the command, the table, and below it the device, the versions, the commit,
the date and the load of the machine. Files come in the order of the command; without --output the text is printed.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from rich.console import Console
from rich.table import Table

from benchmarks import measure
from jrobust.errors import InputError

# Columns of tables: heading, key of the row, format. A table has those that some row of it has.
COLUMNS = (
    ("program", "name", "{}"),
    ("part", "part", "{}"),
    ("model", "model", "{}"),
    ("dtype", "dtype", "{}"),
    ("batch", "batch", "{:,}"),
    ("images/s", "images_per_second", "{:.4g}"),
    ("attack steps/s", "attack_steps_per_second", "{:.4g}"),
    ("attacked", "attacked", "{:,}"),
    ("broken", "broken", "{:,}"),
    ("s (median)", "seconds_median", "{:.4g}"),
    ("quartiles", "seconds_quartiles", "{:.4g}"),
    ("s / 1,000", "seconds_per_1000", "{:.4g}"),
    ("compile s", "compile_seconds", "{:.1f}"),
    ("forward", "forward", "{:,.0f}"),
    ("backward", "backward", "{:,.0f}"),
    ("slots used %", "slots_used", "{:.0f}"),
    ("GFLOP by hand", "flops_by_hand", "{:.4g}"),
    ("GFLOP", "flops", "{:.4g}"),
    ("GB", "bytes", "{:.3g}"),
    ("FLOP/byte", "intensity", "{:.3g}"),
    ("passes", "passes", "{:.1f}"),
    ("floor s", "floor_seconds", "{:.3g}"),
    ("bound by", "bound_by", "{}"),
    ("% of floor", "reached", "{:.0f}"),
    ("% of matmul", "share", "{:.0f}"),
    ("MiB", "program_bytes", "{:.3g}"),
    ("difference", "difference", "{:.1e}"),
    ("in float64", "difference_float64", "{:.1e}"),
    ("moved", "moved", "{:.1e}"),
    ("equal", "equal", "{}"),
    ("collectives", "collectives", "{:,}"),
    ("KiB sent", "bytes_sent", "{:,.1f}"),
    ("over parameters", "sent_over_parameters", "{:.2f}"),
)
# Quartile, median, quartile, paired by turn: lines below the table on a terminal, columns in a document.
RATIOS = (
    ("jrobust's speed over this", "speed_of_jrobust_over_this", "{:.2f}"),
    ("seconds over natural", "seconds_over_natural", "{:.2f}"),
    ("seconds over ft", "seconds_over_ft", "{:.2f}"),
    ("same strength", "same_strength", "{}"),
    ("same loss", "same_loss", "{}"),
    ("kinds", "kinds", "{}"),
)
_TEXTS = ("name", "part", "model", "dtype", "kinds")
_SHARED = ("model", "dtype", "batch")  # which are said below the table where all rows have the same
_UNITS = {
    "flops": 1e-9,
    "flops_by_hand": 1e-9,
    "bytes": 1e-9,
    "share": 100,
    "reached": 100,
    "slots_used": 100,
    "program_bytes": 2**-20,
    "bytes_sent": 2**-10,
}


def main(arguments: Sequence[str] | None = None) -> str:
    """Write or print the document; return it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=pathlib.Path, help="JSON lines that benchmarks have written")
    parser.add_argument("--title", default="Results", help="of the document")
    parser.add_argument("--output", default="", help="the file; without it, to the terminal")
    chosen = parser.parse_args(arguments)
    text = markdown(chosen.files, chosen.title)
    if chosen.output:
        path = pathlib.Path(chosen.output)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    else:
        sys.stdout.write(text)
    return text


def markdown(paths: Sequence[pathlib.Path], title: str) -> str:
    """Return a document with a section for each file of JSON lines.

    Raises:
      InputError: a file that is not there, or is not of a benchmark.
    """
    return "\n".join([f"# {title}\n", *(section(read(path)) for path in paths)])


def read(path: pathlib.Path) -> list[dict[str, Any]]:
    """Return the rows of a file.

    Raises:
      InputError: it is not there, or is not of a benchmark.
    """
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise InputError(f"{path} is not JSON lines: expected a file that a benchmark has written") from error
    if not rows or not all(isinstance(row, dict) and "command" in row for row in rows):
        raise InputError(f"{path} holds no rows of a benchmark, each with its command: run the benchmark again")
    return rows


def section(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the heading, the command, the table and what it was measured on."""
    headings, cells = columns(rows, (*COLUMNS, *RATIOS))
    rules = [":---" if is_text else "---:" for _, is_text in headings]
    table = [[heading for heading, _ in headings], rules, *cells]
    lines = [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in table]
    below = "  \n".join(conditions(rows))
    title = rows[0]["title"]
    return f"## {title[:1].upper()}{title[1:]}\n\n    {rows[0]['command']}\n\n{chr(10).join(lines)}\n\n{below}\n"


def console() -> Console:
    """Return a console that is wide enough for the table, also where the output is no terminal."""
    return Console(width=max(Console().width, 160))


def report(rows: Sequence[Mapping[str, Any]], title: str, console: Console, notes: Sequence[str] = ()) -> None:
    """Print the rows as a table, and below it where and when they were measured."""
    headings, cells = columns(rows, COLUMNS)
    table = Table(title=title)
    for heading, is_text in headings:
        table.add_column(heading, justify="left" if is_text else "right", no_wrap=True)
    for row, texts in zip(rows, cells, strict=True):
        table.add_row(*texts, end_section=row.get("part") == "all")
    console.print(table)
    for line in (*conditions(rows), *notes):
        console.print(line, highlight=False, soft_wrap=True)


def columns(
    rows: Sequence[Mapping[str, Any]], chosen: Sequence[tuple[str, str, str]]
) -> tuple[list[tuple[str, bool]], list[list[str]]]:
    """Return the headings of a table, each with whether it is of texts, and the cells of its rows.

    Of the chosen columns those are left out that no row has, and those that `conditions` says. A CPU that was busy
    compares nobody with anybody.
    """
    if measure.is_busy(rows[0]):
        chosen = [column for column in chosen if column[1] != "speed_of_jrobust_over_this"]
    found = [c for c in chosen if any(row.get(c[1]) is not None for row in rows)]
    found = [c for c in found if c[1] not in _SHARED or _differs(rows, c[1])]
    cells = [[cell(row.get(key), form, _UNITS.get(key, 1)) for _, key, form in found] for row in rows]
    return [(heading, key in _TEXTS) for heading, key, _ in found], cells


def conditions(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return lines that say on what, where and when the rows were measured."""
    first, last = rows[0], rows[-1]
    versions = ", ".join(f"{name} {version}" for name, version in first["versions"].items() if version)
    said = [key for key in _SHARED if first.get(key) is not None and not _differs(rows, key)]
    measured = [", ".join(f"batch {first[key]:,}" if key == "batch" else first[key] for key in said)] if said else []
    where = f"{first['devices']} x {first['device']}, {first['cpu_cores']} CPU cores"
    lines = ["; ".join([*measured, where, versions, f"commit {first['commit'] or 'unknown'}, {first['date'][:10]}"])]
    rate = {row["dtype"]: row["matrix_flops_per_second"] for row in rows if row.get("matrix_flops_per_second")}
    if rate:
        rates = ", ".join(f"{value / 1e9:.4g} GFLOP/s in {dtype}" for dtype, value in rate.items())
        lines.append(f"matrix product in this process: {rates}")
    if any(bandwidth := [row["bytes_per_second"] for row in rows if row.get("bytes_per_second")]):
        lines.append(f"memory in this process: {max(bandwidth) / 1e9:.4g} GB/s read and written")
    before, after = (cell(load, "{:.2f}") for load in (first["load_before"], last["load_after"]))
    lines.append(f"load average before {before}, after {after}")
    if measure.is_busy(first):
        lines.append("THE MACHINE WAS BUSY before this began: these numbers say that it runs, not how fast")
    return lines


def _differs(rows: Sequence[Mapping[str, Any]], key: str) -> bool:
    return any(row.get(key) != rows[0].get(key) for row in rows)


def cell(value: Any, form: str, unit: float = 1) -> str:
    """Return a value as text, "-" for None."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "NO"
    if isinstance(value, tuple | list):
        return " .. ".join(form.format(v) for v in value)
    return form.format(value if isinstance(value, str) else value * unit)


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        sys.exit(f"error: {error}")
