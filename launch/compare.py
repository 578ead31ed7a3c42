"""Compare runs: one table of accuracies, robustness, attributions and cost.

    python launch/compare.py RUN [RUN ...] [--output=FILE.html]

A column holds numbers of one protocol only: runs that were evaluated by different attacks, radii or data sets get a
column each, and a warning. Reads what launch/run.py and launch/evaluate.py wrote; computes nothing.
"""

from __future__ import annotations

import argparse
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from rich.console import Console

from jrobust.errors import InputError
from jrobust.reporting import comparison, tables


def main(arguments: list[str] | None = None) -> None:
    """Print the table and, if asked, write it as a page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folder of a run")
    parser.add_argument("--output", default="", help="an HTML file to write")
    options = parser.parse_args(arguments)
    table = comparison.compare(options.runs)
    console = Console(width=None if sys.stdout.isatty() else 160)
    console.print(tables.rich_table(f"{len(table.rows)} runs", table.columns, table.rows))
    for column, protocol in zip(table.columns, table.protocols, strict=True):
        if protocol:
            console.print(f"{column}: {protocol}", highlight=False, markup=False)
    for extra in table.extras:
        console.print(tables.rich_table(extra.title, extra.columns, extra.rows))
        console.print(extra.note, highlight=False, markup=False)
    for text in table.warnings:
        print(f"warning: {text}", file=sys.stderr)
    if options.output:
        print(f"wrote {comparison.write(table, options.output)}")


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        sys.exit(f"error: {error}")
