"""Evaluate a trained run, or a model that is not trained yet.

    python launch/evaluate.py --workdir=RUN --suite=robustness,attribution [--suite.eps=4/255 --suite.num_steps=5]
    python launch/evaluate.py --config=FILE --config.model.weights=WEIGHTS --suite=zero_shot [--workdir=FOLDER]

Takes the model from RUN's newest checkpoint (--step=best, or --step=2000) or from --weights=FILE (.safetensors or
.pth), and the test split from where RUN's config says (--data.dir=DATA if it has moved). The suites are accuracy,
robustness, bias, autoattack, sanity, attribution, transfer (with --against=RUN,RUN), localization, masking, zero_shot
and interpolation, which need a CLIP, and natural_shift. Those that take hours, autoattack, zero_shot and interpolation,
go on where they were if they are killed. Their settings are those of config.evaluation; --suite.FIELD=VALUE changes one
in every named suite that has it. Computes in float32 unless --dtype says otherwise.

With --config, the model is that with which training would begin: the weights of a file, such as a published CLIP's, or
those of the config's section `pretrain`. --weights=FILE then replaces the network: of a CLIP the image tower, and the
texts are those of model.weights. Records go to FOLDER, by default runs/<config>-<variant>-<seed>-untrained.

Writes RUN/evaluation/<suite>.json, .csv (a line an image) and .npz, and RUN/report/index.html anew. Status 1 after all
of it means that a check of suite sanity failed. (Suite sanity takes images from the models of --against
too, and suite bias shows them beside this one.)
"""

from __future__ import annotations

import dataclasses
import pathlib
import re
import sys
from typing import Any

# isort: off
import command  # first: it makes the rest importable

# isort: on
import assembly
import jax
import printing
import untrained
from absl import flags

from jrobust import evaluation
from jrobust.errors import InputError
from jrobust.evaluation import Record, Subject, sanity, suites
from jrobust.reporting import page
from jrobust.training import checkpoint, parallel

WORKDIR = flags.DEFINE_string("workdir", "", "folder of the run")
SUITE = flags.DEFINE_list("suite", [], f"suites: {', '.join(suites.SUITES)}")
STEP = flags.DEFINE_string("step", "latest", "checkpoint: latest, best, or a step")
WEIGHTS = flags.DEFINE_string("weights", "", "take the weights from this file instead of a checkpoint")
AGAINST = flags.DEFINE_list("against", [], "other runs, for suites transfer, sanity and bias; latest or best step")
DATA_DIR = flags.DEFINE_string("data.dir", None, "the data folder, if it is not where the run found it")
DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "compute type of the network's body")
SEED = flags.DEFINE_integer("seed", None, "of random starts and of the choice of images; by default the run's")


def main(overrides: dict[str, str]) -> int:
    """Run the command; return its status."""
    config: Any = command.FLAGS["config"].value if "config" in command.FLAGS else None
    if not (WORKDIR.value or config) or not SUITE.value:
        missing = "workdir" if SUITE.value else "suite"
        raise InputError(f"--{missing} is missing: expected --workdir=RUN --suite={','.join(suites.SUITES)}")
    workdir = pathlib.Path(WORKDIR.value or pathlib.Path("runs", f"{name_of(config)}-untrained"))
    settings = (config or assembly.read_config(workdir)).evaluation.to_dict()
    settings = suites.overridden(SUITE.value, settings, overrides)
    for name in SUITE.value:  # a wrong setting is found now, not after the model is restored
        suites.settings_of(name, settings[name])
    parts, subject = begin(config, workdir) if config else load(workdir, STEP.value, WEIGHTS.value)
    step = STEP.value if STEP.value == "best" else "latest"
    against = [load(pathlib.Path(folder), step)[1] for folder in AGAINST.value]
    subject, *against = distinct([subject, *against], [workdir, *map(pathlib.Path, AGAINST.value)])
    announce(parts, subject, SUITE.value)
    devices = parallel.make_mesh()
    records = evaluation.run_suites(
        SUITE.value,
        subject,
        parts.test,
        settings,
        workdir,
        against=against,
        seed=parts.config.seed if SEED.value is None else SEED.value,
        mesh=devices if devices.size > 1 else None,
        crop_size=parts.config.data.augment.crop_size,
        sets=assembly.sets(parts),
    )
    show(workdir, records, page.write(workdir))
    return command.conclude(sanity.failures(records))


def name_of(config: Any) -> str:
    """Return how a run of the config would be called."""
    return assembly.run_name(command.config_argument(), config)


def begin(config: Any, workdir: pathlib.Path) -> tuple[assembly.Parts, Subject]:
    """Return a config's parts and the model that its training would begin with; the folder becomes that of the config.

    Raises:
      InputError: there are no such weights, or the folder holds something else.
    """
    if STEP.value != "latest":
        raise InputError(f"--step={STEP.value} is of a trained run: leave it out with --config")
    if DATA_DIR.value is not None:
        config.data.dir = DATA_DIR.value
    parts, network = untrained.build(config, workdir, WEIGHTS.value)
    untrained.record(parts.config, workdir)
    note = untrained.note(WEIGHTS.value) if WEIGHTS.value else ""
    return parts, assembly.subject(parts, network, workdir.resolve().name, None, DTYPE.value, note)


def load(workdir: pathlib.Path, step: str, weights_file: str = "") -> tuple[assembly.Parts, Subject]:
    """Return a run's parts and its model, in the compute type asked for.

    Raises:
      InputError: there is no such run, checkpoint or file, or it is of another model.
    """
    parts, shapes = assembly.reopen(workdir, DATA_DIR.value)
    if weights_file:
        network, note = untrained.of_file(parts, weights_file), untrained.note(weights_file)
        return parts, assembly.subject(parts, network, workdir.resolve().name, None, DTYPE.value, note)
    variables, found = checkpoint.restore_variables(workdir, step, shapes)
    network, note = parts.method.deployed(variables), assembly.oracle(parts.config, step)
    return parts, assembly.subject(parts, network, workdir.resolve().name, found, DTYPE.value, note)


def distinct(subjects: list[Subject], folders: list[pathlib.Path]) -> list[Subject]:
    """Name models whose folders have the same name by the parent folder too."""
    names = [subject.name for subject in subjects]
    return [
        dataclasses.replace(subject, name=f"{folder.resolve().parent.name}/{subject.name}")
        if names.count(subject.name) > 1
        else subject
        for subject, folder in zip(subjects, folders, strict=True)
    ]


def announce(parts: assembly.Parts, subject: Subject, names: list[str]) -> None:
    """Say what is about to be done."""
    where = f"step {subject.step}" if subject.step is not None else WEIGHTS.value or "not trained"
    devices = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
    print(
        f"model    {subject.name}, {where}, {subject.parameters:,} parameters, {subject.dtype}\n"
        f"data     {parts.test.name} {parts.test.split}, {len(parts.test):,} images\n"
        f"suites   {', '.join(names)}\n"
        f"devices  {devices}",
        flush=True,
    )


def show(workdir: pathlib.Path, records: list[Record], report: pathlib.Path) -> None:
    """Print the numbers of these records, what is doubtful about them, and where everything is."""
    printing.tables_of(workdir, records)
    for record in records:
        print(f"wrote {workdir / 'evaluation' / record.suite}.json")
    print(f"wrote {report}")


def split_overrides(arguments: list[str]) -> tuple[list[str], dict[str, str]]:
    """Take --suite.FIELD=VALUE out of the arguments, which absl would refuse.

    >>> split_overrides(["--suite=accuracy", "--suite.eps=4/255"])
    (['--suite=accuracy'], {'eps': '4/255'})
    """
    rest, found = [], {}
    for argument in arguments:
        if match := re.fullmatch(r"--?suite\.(\w+)(?:=(.*))?", argument):
            if match[2] is None:
                raise InputError(f"{argument} has no value: write {argument}=VALUE")
            found[match[1]] = match[2]
        else:
            rest.append(argument)
    return rest, found


if __name__ == "__main__":
    try:
        sys.argv[1:], overrides = split_overrides(sys.argv[1:])
    except InputError as error:
        sys.exit(f"error: {error}")
    command.define_config(required=False)
    flags.declare_key_flag("config")
    command.run(lambda: main(overrides))
