"""What a command prints of evaluation records at its end."""

from __future__ import annotations

import pathlib
import sys
from collections.abc import Sequence

from rich.console import Console

from jrobust.evaluation.record import Record
from jrobust.reporting import run_files, tables


def tables_of(workdir: pathlib.Path, records: Sequence[Record]) -> None:
    """Print the numbers of these records of a run as tables, and on stderr what is doubtful about them."""
    console = Console(width=None if sys.stdout.isatty() else 160)
    written = run_files.read(workdir).records
    fresh = {record.suite: written[record.suite] for record in records}
    console.print(tables.rich_table(str(workdir), tables.SUMMARY_COLUMNS, tables.summary(fresh)))
    for extra in tables.extras(fresh):
        console.print(tables.rich_table(extra.title, extra.columns, extra.rows))
        console.print(extra.note, highlight=False, markup=False)
    for record in records:
        for text in record.warnings:
            print(f"warning: {record.suite}: {text}", file=sys.stderr)
