"""Check what each paper claims, small: every method against its own baseline over several seeds, as one table.

    python launch/claims.py [--papers=art,fsr] [--workdir=DIR] [--output=FILE.md]

The claims, their settings and their seeds are in launch/papers.py; data is made here or ships with a dependency. Each
paper is an ordinary study in WORKDIR/<paper>, as launch/study.py runs it: what is done is not repeated, and a command
that was killed goes on. It prints how long it is to take, by the minutes of launch/papers.py and then by its own pace.

Writes WORKDIR/claims.md, or --output, after each paper: for every claim the difference paired by seed with its 95 %
interval, and whether it holds; for every row the values of each seed; device, versions, commit and duration. Status 1
after all of it means that a claim which is expected to hold does not, or that a run diverged; SIGTERM and Ctrl-C save a
checkpoint and end with status 143 and 130.
"""

from __future__ import annotations

import pathlib

# isort: off
import command  # first: it makes the rest importable

# isort: on
import claimed
from absl import flags
from papers import PAPERS

CHOSEN = flags.DEFINE_list("papers", None, "names of papers; by default all of them")
WORKDIR = flags.DEFINE_string("workdir", "runs/claims", "folder of the studies")
OUTPUT = flags.DEFINE_string("output", "", "where the document is written; by default WORKDIR/claims.md")


def main() -> int:
    """Run the command; return its status."""
    workdir = pathlib.Path(WORKDIR.value)
    papers = claimed.choose(PAPERS, CHOSEN.value)
    words = f" --papers={','.join(paper.name for paper in papers)}" if CHOSEN.value else ""
    output = pathlib.Path(OUTPUT.value or workdir / "claims.md")
    return claimed.conduct(papers, workdir, output, f"python launch/claims.py{words}")


if __name__ == "__main__":
    command.run(main)
