"""One run from its config to its report: what launch/run.py does once and launch/study.py many times."""

from __future__ import annotations

import dataclasses
import functools
import json
import pathlib
import time
from collections.abc import Callable, Iterable
from typing import Any

import assembly
import beginning
import exporting
import jax
import pretraining
import printing
import stages

from jrobust import data, evaluation, methods
from jrobust.errors import InputError
from jrobust.evaluation import sanity, suites
from jrobust.evaluation.record import Record, config_hash
from jrobust.reporting import page
from jrobust.training import checkpoint, durations, loop, parallel, processes, run_folder
from jrobust.training.method import Batch, Variables
from jrobust.training.progress import Progress, duration
from jrobust.training.state import count_parameters

EXPORTED = "export/model.safetensors"
TOWERS = "export/clip.safetensors"  # of contrastive training: both of them
FINISHED = "finished.json"  # written last: whose config and which step the results in the folder are of
# What may differ between a finished run and one that need not be done again.
WITHOUT_EFFECT = tuple(name for name in run_folder.FREE if name not in (*run_folder.LENGTH, "evaluation"))
MEASURED = ("model.mean", "model.std")  # () asks for those of the training set


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of a run.

    Attributes:
      failures: a line for each check of suite sanity that failed.
      signal: the signal that stopped it before the end, or None.
    """

    failures: list[str]
    signal: int | None = None


def run_one(config: Any, workdir: pathlib.Path, *, progress: Callable[..., Progress] = Progress) -> Outcome:
    """Train a model as a config says, or go on where it was interrupted; then evaluate, report and export it.

    A config with a section `jtt` or `pretrain` is trained in two stages; see `stages` and `pretraining`. Where nothing
    is left to do, nothing is done again, but the report and the exported file are written anew.

    Raises:
      InputError: whatever of it cannot be done.
    """
    start = time.perf_counter()
    parts, stage, before = processes.together(lambda: check(config, workdir))
    mesh = parallel.make_mesh()
    if before is not None:
        found = pretrain(before, pretraining.folder(config, workdir), mesh, progress)
        if found is not None and found.signal is not None:
            return stopped(found)
        processes.from_primary(lambda: pretraining.note(config, workdir))
    initialize = beginning.first_variables(parts)
    if stage is not None:
        errors = stages.read(stage, parts, workdir)
        if errors is None:
            print("stage 1 of 2: identification", flush=True)
            found = train(stage, workdir / stages.FOLDER, mesh, beginning.first_variables(stage), progress)
            if found.signal is not None:
                return stopped(found)
            processes.from_primary(functools.partial(stages.write, stage, parts, found, workdir))
            errors = stages.read(stage, parts, workdir)
            assert errors is not None
        print(f"{errors.text()}\nstage 2 of 2", flush=True)
        parts, initialize = stages.second(stage, parts, errors, workdir, initialize)
    summary = train(parts, workdir, mesh, initialize, progress)
    if summary.signal is not None:
        return stopped(summary)
    model = chosen(parts, summary, workdir)
    # The other processes wait: an evaluation is of the devices of one.
    return Outcome(processes.from_primary(lambda: finish(parts, summary, model, workdir, start)))


def finish(
    parts: assembly.Parts,
    summary: loop.Summary,
    model: tuple[Variables, int, dict[str, float]],
    workdir: pathlib.Path,
    start: float,
) -> list[str]:
    """Evaluate, export and report what was chosen; return a line for each check of suite sanity that failed."""
    config = parts.config
    variables, step, metrics = model
    deployed = parts.method.deployed(variables)
    records = evaluate(parts, deployed, step, workdir)
    note = assembly.choice(config, config.evaluation.get("step", "latest"))
    exporting.weights(parts, deployed, step, workdir / EXPORTED, chosen=note, **metrics)
    if isinstance(parts.method, methods.Contrastive):
        pretraining.write_weights(workdir / TOWERS, variables.params)
    page.write(workdir)
    show(summary, records, workdir, time.perf_counter() - start)
    failures = sanity.failures(records)
    of = config_hash(workdir)
    seconds = time.perf_counter() - start + seconds_of(workdir, of)
    content = {"config_hash": of, "step": step, "failures": failures, "seconds": seconds}
    run_folder.write_json(workdir / FINISHED, content)
    return failures


def seconds_of(workdir: pathlib.Path, of: str) -> float:
    """Return how long the sessions took that ended a run of this config hash; 0 for none."""
    try:
        ended = json.loads((workdir / FINISHED).read_text(encoding="utf-8"))
        return float(ended["seconds"]) if ended["config_hash"] == of else 0.0
    except (OSError, ValueError, KeyError, TypeError):
        return 0.0


def finished(config: Any, workdir: pathlib.Path) -> Outcome | None:
    """Return what became of a run of this very config if it went to its end, None if there is something left to do."""
    try:
        ended = json.loads((workdir / FINISHED).read_text(encoding="utf-8"))
        saved = json.loads((workdir / "config.json").read_text(encoding="utf-8"))
        failures, of = list(ended["failures"]), ended["config_hash"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    measured = () if config.model.mean and config.model.std else MEASURED
    same = not run_folder.differences(saved, config.to_dict(), free=(*WITHOUT_EFFECT, *measured))
    return Outcome(failures) if same and of == config_hash(workdir) else None


def check(config: Any, workdir: pathlib.Path) -> tuple[assembly.Parts, assembly.Parts | None, assembly.Parts | None]:
    """Return the parts of a run, and those of JTT's first stage and of pretraining if it has them.

    Raises:
      InputError: what would stop the run: parts that cannot be had, the folder of another run, or what would stop the
        evaluation after the training, an unknown suite or a setting that cannot be.
    """
    first = pretraining.stage(config)
    before = None if first is None else assembly.build(first)
    parts = assembly.build(config, pretraining.weights(config, workdir))
    run_folder.check_config(workdir, config.to_dict())
    settings, subject = parts.config.evaluation.to_dict(), assembly.subject(parts, Variables({}, {}), "model")
    crop_size = parts.config.data.augment.crop_size
    sets = assembly.sets(parts)
    suites.check(settings["after_training"], subject, parts.test, settings, crop_size=crop_size, sets=sets)
    return parts, stages.first(parts), before


def pretrain(
    before: assembly.Parts, folder: pathlib.Path, mesh: jax.sharding.Mesh, progress: Callable[..., Progress]
) -> loop.Summary | None:
    """Train the CLIP that a run begins with, or go on where that was interrupted; None if it is there already."""
    if processes.from_primary(lambda: pretraining.done(folder)):
        print(f"stage 1 of 2: pretrained in {folder}\nstage 2 of 2", flush=True)
        return None
    print("stage 1 of 2: pretraining", flush=True)
    summary = train(before, folder, mesh, beginning.first_variables(before), progress)
    if summary.signal is None:
        processes.from_primary(lambda: pretraining.write(folder, summary))
        print("stage 2 of 2", flush=True)
    return summary


def train(
    parts: assembly.Parts,
    workdir: pathlib.Path,
    mesh: jax.sharding.Mesh,
    initialize: Callable[[jax.Array, Batch], Variables] | None,
    progress: Callable[..., Progress],
) -> loop.Summary:
    """Train the method of `parts` on its training set, or go on where that was interrupted."""
    config = parts.config

    def held_out_batches() -> Iterable[Any]:
        limit, crop = config.train.evaluate_examples or None, config.data.augment.crop_size
        return data.evaluation_batches(parts.held_out, config.evaluation.batch_size, limit, crop_size=crop)

    held_out_batches()  # a wrong setting is an error now
    batches = data.TrainBatches(
        parts.train,
        config.train.batch_size,
        config.seed,
        resident=config.data.resident,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    announce(parts, batches.steps_per_epoch, mesh, workdir)
    summary = loop.train(
        parts.method,
        config,
        workdir,
        batches=batches,
        prepare=data.make_prepare(config.data.augment),
        test_batches=held_out_batches,
        mesh=mesh,
        initialize=initialize,
        progress=progress,
    )
    batches.close()
    return summary


def announce(parts: assembly.Parts, steps_per_epoch: int, mesh: jax.sharding.Mesh, workdir: pathlib.Path) -> None:
    """Say what is about to be done."""
    config = parts.config
    shapes = jax.eval_shape(parts.method.init, jax.random.key(0), {})
    steps = durations.total_steps(config.train, steps_per_epoch=steps_per_epoch, batch_size=config.train.batch_size)
    size = "x".join(map(str, parts.classifier.input_shape))
    devices, split = f"{mesh.size} x {mesh.devices.flat[0].device_kind}", assembly.evaluate_split(config)
    if processes.count() > 1:
        devices += f" in {processes.count()} processes"
    on_top = "".join(f" with {name}" for name in ("FSR", "BiasAdv") if config.method.get(name.lower()))
    print(
        f"method   {config.method.name}{on_top}\n"
        f"model    {config.model.name}, {count_parameters(shapes.params):,} parameters, {config.model.dtype}\n"
        f"data     {config.data.name}: {len(parts.train):,} training and {len(parts.test):,} test images {size},"
        f" {len(parts.train.class_names)} classes\n"
        f"steps    {steps:,} of {config.train.batch_size} images ({steps / steps_per_epoch:.4g} epochs of"
        f" {steps_per_epoch:,})\n"
        f"best     checkpoint by accuracy on the {split} split{', an oracle' if split == 'test' else ''}\n"
        f"devices  {devices}, {config.train.parallelism}\n"
        f"folder   {workdir}",
        flush=True,
    )


def stopped(summary: loop.Summary) -> Outcome:
    """Say where a signal stopped the training."""
    print(f"stopped and saved at step {summary.step} of {summary.total_steps}; the same command goes on from there")
    return Outcome([], summary.signal)


def chosen(
    parts: assembly.Parts, summary: loop.Summary, workdir: pathlib.Path
) -> tuple[Variables, int, dict[str, float]]:
    """Return the variables to evaluate and export, as `evaluation.step` says, their step, and what was measured."""
    if parts.config.evaluation.get("step", "latest") == "latest":
        return parallel.local(summary.train_state.variables), summary.step, summary.metrics
    shapes = jax.eval_shape(parts.method.init, jax.random.key(0), {})
    return *checkpoint.restore_variables(workdir, "best", shapes), {}


def evaluate(parts: assembly.Parts, deployed: Variables, step: int, workdir: pathlib.Path) -> list[Record]:
    """Run the suites of config.evaluation.after_training; a record of this very model that is there already is kept."""
    config, mesh = parts.config, parallel.local_mesh()
    records = {name: previous(workdir, name, step) for name in config.evaluation.after_training}
    note = assembly.oracle(config, config.evaluation.get("step", "latest"))
    subject = assembly.subject(parts, deployed, workdir.name, step, note=note)
    missing = [name for name in records if records[name] is None]
    if missing:
        measured = evaluation.run_suites(
            missing,
            subject,
            parts.test,
            config.evaluation.to_dict(),
            workdir,
            seed=config.seed,
            mesh=mesh if mesh.size > 1 else None,
            crop_size=config.data.augment.crop_size,
            sets=assembly.sets(parts),
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
    printing.tables_of(workdir, records)
    trained = summary.step - summary.resumed_from
    print(f"{trained:,} steps in {duration(summary.seconds)}, everything in {duration(seconds)}")
    names = ("checkpoints", "metrics.jsonl", "evaluation", EXPORTED, TOWERS, stages.RECORD, "report/index.html")
    print("wrote " + "\n      ".join(str(workdir / name) for name in names if (workdir / name).exists()))
