"""Train a model as a config says, or go on where it was interrupted; then evaluate, report and export it.

    python launch/run.py --config=configs/art_digits.py:variant=art [--workdir=RUN] [--config.train.epochs=2]

The same command resumes: a run that was killed goes on from its newest whole checkpoint, with the same numbers as if
it had not been. SIGTERM and Ctrl-C save a checkpoint and end with status 143 and 130. Suites that have a record of this
model are not run again.

What it leaves in the folder: config.json, environment.json, metrics.jsonl, throughput.jsonl, TensorBoard's event files,
checkpoints/, evaluation/, export/model.safetensors and report/index.html. Status 1 after all of it means that a check
of suite sanity failed: the model's robustness is not to be believed.
"""

from __future__ import annotations

import pathlib
import sys
import time
from collections.abc import Iterable
from typing import Any

# isort: off
import command  # first: it makes the rest importable

# isort: on
import assembly
import jax
from absl import flags
from rich.console import Console

from jrobust import data, evaluation
from jrobust.errors import InputError
from jrobust.evaluation import sanity, suites
from jrobust.evaluation.record import Record, config_hash
from jrobust.reporting import page, run_files, tables
from jrobust.training import durations, loop, parallel, run_folder
from jrobust.training.method import Variables
from jrobust.training.progress import duration
from jrobust.training.state import count_parameters

WORKDIR = flags.DEFINE_string("workdir", "", "folder of the run; by default runs/<config>-<variant>-<seed>")
EXPORTED = "export/model.safetensors"


def main() -> int:
    """Run the command; return its status."""
    start = time.perf_counter()
    config = command.FLAGS.config
    workdir = pathlib.Path(WORKDIR.value or pathlib.Path("runs", assembly.run_name(command.config_argument(), config)))
    parts = assembly.build(config)
    run_folder.check_config(workdir, config.to_dict())
    mesh = parallel.make_mesh()

    def test_batches() -> Iterable[Any]:
        limit = config.train.evaluate_examples or None
        crop = config.data.augment.crop_size
        return data.evaluation_batches(parts.test, config.evaluation.batch_size, limit, crop_size=crop)

    check_evaluation(parts)
    test_batches()
    batches = data.TrainBatches(parts.train, config.train.batch_size, config.seed, resident=config.data.resident)
    announce(parts, batches.steps_per_epoch, mesh, workdir)
    summary = loop.train(
        parts.method,
        config,
        workdir,
        batches=batches,
        prepare=data.make_prepare(config.data.augment),
        test_batches=test_batches,
        mesh=mesh,
        initialize=assembly.first_variables(parts),
    )
    batches.close()
    if summary.signal is not None:
        print(f"stopped and saved at step {summary.step} of {summary.total_steps}; the same command goes on from there")
        return 128 + summary.signal
    records = evaluate(parts, summary, workdir, mesh)
    assembly.export(parts, summary.train_state.variables, summary.step, workdir / EXPORTED, **summary.metrics)
    page.write(workdir)
    show(summary, records, workdir, time.perf_counter() - start)
    return command.conclude(sanity.failures(records))


def check_evaluation(parts: assembly.Parts) -> None:
    """Raise now what would stop the evaluation after the training: an unknown suite, a setting that cannot be."""
    settings, subject = parts.config.evaluation.to_dict(), assembly.subject(parts, Variables({}, {}), "model")
    crop_size = parts.config.data.augment.crop_size
    suites.check(settings["after_training"], subject, parts.test, settings, crop_size=crop_size)


def announce(parts: assembly.Parts, steps_per_epoch: int, mesh: jax.sharding.Mesh, workdir: pathlib.Path) -> None:
    """Say what is about to be done."""
    config = parts.config
    shapes = jax.eval_shape(parts.method.init, jax.random.key(0), {})
    steps = durations.total_steps(config.train, steps_per_epoch=steps_per_epoch, batch_size=config.train.batch_size)
    size = "x".join(map(str, parts.classifier.input_shape))
    devices = f"{mesh.size} x {mesh.devices.flat[0].device_kind}"
    print(
        f"method   {config.method.name}{' with FSR' if config.method.get('fsr') else ''}\n"
        f"model    {config.model.name}, {count_parameters(shapes.params):,} parameters, {config.model.dtype}\n"
        f"data     {config.data.name}: {len(parts.train):,} training and {len(parts.test):,} test images {size},"
        f" {len(parts.train.class_names)} classes\n"
        f"steps    {steps:,} of {config.train.batch_size} images ({steps / steps_per_epoch:.4g} epochs of"
        f" {steps_per_epoch:,})\n"
        f"devices  {devices}, {config.train.parallelism}\n"
        f"folder   {workdir}",
        flush=True,
    )


def evaluate(
    parts: assembly.Parts, summary: loop.Summary, workdir: pathlib.Path, mesh: jax.sharding.Mesh
) -> list[Record]:
    """Run the suites of config.evaluation.after_training on the last state; a record that is there already is kept."""
    records = {name: previous(workdir, name, summary.step) for name in parts.config.evaluation.after_training}
    subject = assembly.subject(parts, summary.train_state.variables, workdir.name, summary.step)
    missing = [name for name in records if records[name] is None]
    if missing:
        measured = evaluation.run_suites(
            missing,
            subject,
            parts.test,
            parts.config.evaluation.to_dict(),
            workdir,
            seed=parts.config.seed,
            mesh=mesh if mesh.size > 1 else None,
            crop_size=parts.config.data.augment.crop_size,
        )
        records |= {record.suite: record for record in measured}
    return [record for record in records.values() if record is not None]


def previous(workdir: pathlib.Path, suite: str, step: int) -> Record | None:
    """Return the record of a suite on this very model, or None."""
    try:
        record = Record.read(workdir / "evaluation" / f"{suite}.json")
    except InputError:
        return None
    return record if record.step == step and record.config_hash == config_hash(workdir) else None


def show(summary: loop.Summary, records: list[Record], workdir: pathlib.Path, seconds: float) -> None:
    """Print the numbers and where everything is."""
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
    trained = summary.step - summary.resumed_from
    print(f"{trained:,} steps in {duration(summary.seconds)}, everything in {duration(seconds)}")
    names = ("checkpoints", "metrics.jsonl", "evaluation", EXPORTED, "report/index.html")
    print("wrote " + "\n      ".join(str(workdir / name) for name in names if (workdir / name).exists()))


if __name__ == "__main__":
    command.define_config()
    flags.declare_key_flag("config")
    command.run(main)
