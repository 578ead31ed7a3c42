"""Train a model as a config says, or go on where it was interrupted; then evaluate, report and export it.

    python launch/run.py --config=configs/art_digits.py:variant=art [--workdir=RUN] [--config.train.epochs=2]

The same command resumes: a run that was killed goes on from its newest whole checkpoint, with the same numbers as if
it had not been. SIGTERM and Ctrl-C save a checkpoint and end with status 143 and 130. Suites that have a record of this
model are not run again.

What it leaves in the folder: config.json, environment.json, metrics.jsonl, throughput.jsonl, TensorBoard's event files,
checkpoints/, evaluation/, export/model.safetensors and report/index.html.
"""

from __future__ import annotations

import pathlib
import sys
import time

# isort: off
import command  # first: it makes the rest importable

# isort: on
import assembly
import jax
from absl import flags
from rich.console import Console
from rich.table import Table

from jrobust import data, evaluation
from jrobust.errors import InputError
from jrobust.evaluation import suites
from jrobust.evaluation.record import Record, config_hash
from jrobust.reporting import page
from jrobust.training import durations, loop, parallel, run_folder
from jrobust.training.progress import duration
from jrobust.training.state import count_parameters
from jrobust.weights import safetensors_file

WORKDIR = flags.DEFINE_string("workdir", "", "folder of the run; by default runs/<config>-<variant>-<seed>")


def main() -> int:
    """Run the command; return its status."""
    start = time.perf_counter()
    config = command.FLAGS.config
    workdir = pathlib.Path(WORKDIR.value or pathlib.Path("runs", assembly.run_name(command.config_argument(), config)))
    for suite in config.evaluation.after_training:  # a wrong setting is found now, not after the training
        suites.settings_of(suite, config.evaluation.get(suite) or {})
    parts = assembly.build(config)
    run_folder.check_config(workdir, config.to_dict())
    mesh = parallel.make_mesh()
    batches = data.TrainBatches(parts.train, config.train.batch_size, config.seed, resident=config.data.resident)
    announce(parts, batches.steps_per_epoch, mesh, workdir)
    summary = loop.train(
        parts.method,
        config,
        workdir,
        batches=batches,
        prepare=data.make_prepare(config.data.augment),
        test_batches=lambda: data.evaluation_batches(
            parts.test,
            config.evaluation.batch_size,
            config.train.evaluate_examples or None,
            crop_size=config.data.augment.crop_size,
        ),
        mesh=mesh,
        initialize=assembly.first_variables(parts),
    )
    batches.close()
    if summary.signal is not None:
        print(f"stopped and saved at step {summary.step} of {summary.total_steps}; the same command goes on from there")
        return 128 + summary.signal
    records = evaluate(parts, summary, workdir, mesh)
    exported = export(parts, summary, workdir)
    report = page.write(workdir)
    show(summary, records, [workdir, exported, report], time.perf_counter() - start)
    return 0


def announce(parts: assembly.Parts, steps_per_epoch: int, mesh: jax.sharding.Mesh, workdir: pathlib.Path) -> None:
    """Say what is about to be done."""
    config = parts.config
    shapes = jax.eval_shape(parts.method.init, jax.random.key(0), {})
    steps = durations.total_steps(config.train, steps_per_epoch=steps_per_epoch, batch_size=config.train.batch_size)
    size = "x".join(map(str, parts.classifier.input_shape))
    devices = f"{mesh.size} x {mesh.devices.flat[0].device_kind}"
    print(
        f"method   {config.method.name}\n"
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


def export(parts: assembly.Parts, summary: loop.Summary, workdir: pathlib.Path) -> pathlib.Path:
    """Write the weights of the last state, with what one must know to use them."""
    path = workdir / "export" / "model.safetensors"
    method = parts.config.method
    params, batch_stats = summary.train_state.variables
    safetensors_file.write(
        path,
        parts.classifier.with_axis(None),
        params,
        batch_stats,
        model=parts.config.model.to_dict(),
        class_names=parts.train.class_names,
        data_set=parts.config.data.name,
        threat_model=f"Linf {method.eps}" if "eps" in method else "",
        extra={"method": method.to_dict(), "step": summary.step, "seed": parts.config.seed} | summary.metrics,
    )
    return path


def show(summary: loop.Summary, records: list[Record], paths: list[pathlib.Path], seconds: float) -> None:
    """Print the numbers and where everything is."""
    table = Table("suite", "metric", "value", "95 % interval", "examples")
    for record in records:
        for name, estimate in record.metrics.items():
            table.add_row(
                record.suite,
                name,
                f"{estimate.value:.4f}",
                f"{estimate.low:.4f} to {estimate.high:.4f}",
                str(estimate.count),
            )
    Console(width=None if sys.stdout.isatty() else 160).print(table)
    trained = summary.step - summary.resumed_from
    print(f"{trained:,} steps in {duration(summary.seconds)}, everything in {duration(seconds)}")
    print("wrote " + "\n      ".join(str(path) for path in paths))


if __name__ == "__main__":
    command.define_config()
    command.run(main)
