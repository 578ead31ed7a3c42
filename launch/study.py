"""Train the rows of a config with several seeds, sweep its fields, and compare: tables, figures and one page.

    python launch/study.py --config=FILE --rows="method=erm;method=lff" --seeds=0,1,2 --measures=conflicting,average

Rows are words behind the colon, added to those of --config; without them there is one. Each run is an ordinary one in
WORKDIR/<row>-seed<k>, as launch/run.py would train it, and what it prints is in its run.log. Runs that are done are not
repeated, and a study that was killed goes on: give the same command, or one with more rows or seeds.

--sweep=FIELD=VALUE,VALUE (as often as there are fields) runs every row once more for each value, in
WORKDIR/<row>-<field>=<value>-seed<k>: one field at a time, around the row as it is, which is run once. --baseline=ROW
is a row that is not swept and that the figures show as a dashed line. --config.FIELD=VALUE is of every run.

--measures are names of metrics that any suite of config.evaluation.after_training has, or SUITE.METRIC. The tables have
mean and standard deviation (ddof = 0) over the seeds and a 95 % interval of the mean (Student's t). A config with a
section `study` names rows, seeds and measures itself; launch/run.py runs it, too.

Where a suite was run with `shares`, or suite `interpolation`, figure and table of the page have the means over the
seeds of what it measured between the original and the fine-tuned model.

Writes WORKDIR/study.json, study.html, rows.png, sweep.png and between-SUITE.png. Status 1 after all of it means that a
run diverged or a check of suite sanity failed; SIGTERM and Ctrl-C save a checkpoint and end with status 143 and 130.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

# isort: off
import command  # first: it makes the rest importable

# isort: on
import grid
from absl import flags

from jrobust.errors import InputError

WORKDIR = flags.DEFINE_string("workdir", "", "folder of the study; by default runs/<config>-study")
ROWS = flags.DEFINE_string("rows", None, "words of each row, rows separated by ;")
SEEDS = flags.DEFINE_list("seeds", None, "seeds of each row")
MEASURES = flags.DEFINE_list("measures", None, "names of metrics; by default accuracy")
SWEEP = flags.DEFINE_multi_string("sweep", None, "FIELD=VALUE,VALUE")
BASELINE = flags.DEFINE_string("baseline", None, "words of the row that is drawn as a dashed line")


def main(overrides: Sequence[str]) -> int:
    """Run the command; return its status."""
    try:
        seeds = tuple(map(int, SEEDS.value or ()))
    except ValueError as error:
        raise InputError(f"--seeds: {error}: expected whole numbers such as 0,1,2") from error
    given = {
        "rows": None if ROWS.value is None else tuple(row.strip() for row in ROWS.value.split(";")),
        "seeds": None if SEEDS.value is None else seeds,
        "measures": None if MEASURES.value is None else tuple(MEASURES.value),
        "sweeps": None if SWEEP.value is None else tuple(SWEEP.value),
        "baseline": BASELINE.value,
    }
    section = dict(command.FLAGS.config.get("study") or {})
    section |= {key: value for key, value in given.items() if value is not None}
    return grid.start(command.config_argument(), overrides, section, WORKDIR.value)


if __name__ == "__main__":
    sys.argv[1:], overrides = command.split_overrides(sys.argv[1:])
    command.define_config()
    flags.declare_key_flag("config")
    command.run(lambda: main(overrides))
