"""Train a model as a config says, or go on where it was interrupted; then evaluate, report and export it.

    python launch/run.py --config=configs/art_digits.py:variant=art [--workdir=RUN] [--config.train.epochs=2]

The same command resumes: a run that was killed goes on from its newest whole checkpoint, with the same numbers as if
it had not been. SIGTERM and Ctrl-C save a checkpoint and end with status 143 and 130. Suites that have a record of this
model are not run again. A config with a section `study` is many runs and one table: see launch/study.py.

What it leaves in the folder: config.json, environment.json, metrics.jsonl, throughput.jsonl, TensorBoard's event files,
checkpoints/, evaluation/, export/model.safetensors, report/index.html and finished.json. JTT is two runs: the first is
in identification/, and what it gets wrong in error_set.npz and error_set.json. With a section `pretrain` a CLIP is
trained first, in a folder beside this one that runs with the same section share. Status 1 after all of it means that a
check of suite sanity failed: the model's robustness is not to be believed.

Many processes and hosts train one model: under Slurm and on TPU pods with --distributed, by hand with --coordinator,
--num_processes and --process_id; see launch/distributed.py.

--dry_run builds all of it, compiles the step, prints parameters, memory, FLOPs and the least time of a step and of the
run, and stops; it writes nothing. With --devices=8 it does so for eight devices, also where there are fewer.
"""

from __future__ import annotations

import pathlib
import sys

# isort: off
import command  # first: it makes the rest importable

# isort: on
import assembly
import distributed
import dry_run
import grid
import session
from absl import flags

DRY_RUN = flags.DEFINE_bool("dry_run", False, "compile the step, print what the run would cost, and stop")
DEVICES = flags.DEFINE_integer("devices", 0, "with --dry_run: for so many devices, also for more than there are")
WORKDIR = flags.DEFINE_string("workdir", "", "folder of the run; by default runs/<config>-<variant>-<seed>")


def main() -> int:
    """Run the command; return its status."""
    config = command.FLAGS.config
    dry_run.prepare(DRY_RUN.value, DEVICES.value)
    if section := config.get("study"):
        _, overrides = command.split_overrides(sys.argv[1:])
        study = command.config_argument(), overrides, section.to_dict(), WORKDIR.value
        return dry_run.start_study(*study, DEVICES.value) if DRY_RUN.value else grid.start(*study)
    workdir = pathlib.Path(WORKDIR.value or pathlib.Path("runs", assembly.run_name(command.config_argument(), config)))
    if DRY_RUN.value:
        return dry_run.start(config, workdir, DEVICES.value)
    outcome = session.run_one(config, workdir)
    return command.conclude(outcome.failures) if outcome.signal is None else 128 + outcome.signal


if __name__ == "__main__":
    command.define_config()
    flags.declare_key_flag("config")
    command.run(distributed.joined(main))
