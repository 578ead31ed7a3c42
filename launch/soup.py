"""Average the weights of models into one: soups of many fine-tuned models, and WiSE-FT between two.

    python launch/soup.py --runs=RUN,RUN,... --kind=greedy --output=soup.safetensors
    python launch/soup.py --runs=RUN --kind=wise --share=0.5 --output=wise.safetensors
    python launch/evaluate.py --workdir=RUN --weights=soup.safetensors --suite=accuracy

The ingredients are checkpoints of runs (--step=latest or best) and files (--files=FILE,...: exported by
launch/export.py, or whatever --weights of launch/evaluate.py reads), all of one model, for the same classes. Data and
texts are those of --workdir, by default the first of --runs.

--kind=uniform: the mean of all. --kind=greedy: from the most to the least accurate on held-out images, those that make
the mean more accurate. --kind=wise: original + share (fine-tuned - original), of one fine-tuned model; the original is
the first of --files or, without files, the weights with which the training of --workdir began.

Accuracy is measured on --split=validation: with data.held_out the images that the training of --workdir held out, so
runs of a greedy soup need one data.held_out_seed. A data set that has no such split leaves --split=test, on which the
choice is an oracle, or, but for greedy soups, --split=none: nothing is measured. All parameters are averaged, heads
included; batch statistics are not, and have to be equal. FILE.json says what went in, by SHA-256.
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

# isort: off
import command  # first: it makes the rest importable

# isort: on
import assembly
import beginning
import exporting
import ingredients
import sources
import untrained
from absl import flags
from rich.console import Console

from jrobust import data
from jrobust.errors import InputError, unknown
from jrobust.evaluation import accuracy
from jrobust.evaluation.batches import Cropped
from jrobust.reporting import tables
from jrobust.training.method import Variables
from jrobust.weights import averaging

KINDS, SPLITS = ("uniform", "greedy", "wise"), ("validation", "test", "none")
ORIGINAL = "the weights before training"


@dataclasses.dataclass(frozen=True)
class Options:
    """The flags; see `define_flags`.

    Raises:
      InputError: flags that cannot be, before anything is read.
    """

    output: str
    runs: Sequence[str] = ()
    files: Sequence[str] = ()
    kind: str = "uniform"
    share: float = 0.5
    step: str = "latest"
    split: str = "validation"
    examples: int = 0
    workdir: str = ""
    data_dir: str | None = None

    def __post_init__(self) -> None:
        for name, words in (("kind", KINDS), ("split", SPLITS)):
            if getattr(self, name) not in words:
                raise unknown(f"--{name}", getattr(self, name), words)
        names = [*self.runs, *self.files]
        if not (self.runs or (self.files and self.workdir)):
            raise InputError("there is no run: expected --runs=RUN,RUN,..., or --files=FILE,... and --workdir=RUN")
        if twice := [name for name in names if names.count(name) > 1]:
            raise InputError(f"{twice[0]} is named twice: expected every model once")
        if not self.output.endswith(".safetensors"):
            raise InputError(f"--output is {self.output!r}: expected a name that ends in .safetensors")
        if self.kind == "greedy" and self.split == "none":
            raise InputError("--split=none measures nothing: a greedy soup is chosen by accuracy on validation or test")
        if self.kind == "wise" and len(names) - bool(self.files) != 1:
            raise InputError(
                "--kind=wise is between an original, the first of --files, and one fine-tuned model:"
                f" {len(self.runs)} runs and {len(self.files)} files are not that"
            )
        if not 0 <= self.share <= 1:
            raise InputError(f"--share is {self.share:g}: expected a number from 0, the original, to 1")

    @property
    def at(self) -> str:
        """The run whose data and texts are used."""
        return self.workdir or self.runs[0]


@dataclasses.dataclass
class Pot:
    """What is averaged, what is measured of it, and what has been found.

    Attributes:
      options: of the command.
      parts: of the run whose data and texts are used.
      source: held-out images; None measures nothing.
      state: what is not trained, of the first model that was read.
      found: of each ingredient by name, for the manifest.
    """

    options: Options
    parts: assembly.Parts
    source: Any
    state: Any = None
    found: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)

    def params(self, of: ingredients.Ingredient) -> Any:
        """Return the parameters of an ingredient."""
        variables, origin = of.load()
        if self.state is None:
            self.state = variables.state
        ingredients.check_state(of.name, variables.state, self.state)
        if of.name not in self.found:
            self.found[of.name] = (
                {"name": of.name} | origin | {"parameters_sha256": ingredients.digest(variables.params)}
            )
        return variables.params

    def measured(self, of: ingredients.Ingredient) -> Any:
        """Return the parameters of an ingredient whose accuracy has been noted."""
        params = self.params(of)
        self.found[of.name] |= {"accuracy": self.accuracy(params)}
        return params

    def accuracy(self, params: Any) -> float | None:
        """Return the accuracy on the held-out images."""
        if self.source is None:
            return None
        subject = assembly.subject(self.parts, Variables(params, self.state), "soup")
        size = self.parts.config.evaluation.batch_size
        record = accuracy.run(subject, self.source, batch_size=size, examples=self.options.examples, progress=False)
        return record.metrics["accuracy"].value


def main(options: Options) -> None:
    """Run the command."""
    parts, _ = assembly.reopen(options.at, options.data_dir)
    warnings = trained_on_the_split(options)
    models = opened(options, parts)
    pot = Pot(options, parts, held_out(options))
    where = "" if pot.source is None else f", {options.split} split of {parts.test.name}: {len(pot.source):,} images"
    print(f"{options.kind} of {len(models)} models{where}", flush=True)
    params = {"uniform": uniform, "greedy": greedy, "wise": wise}[options.kind](pot, models)
    final = pot.accuracy(params)
    how: dict[str, Any] = {"kind": options.kind} | ({"share": options.share} if options.kind == "wise" else {})
    measured = {"split": options.split, "examples": options.examples, "accuracy": final}
    soup = how | measured | {"ingredients": list(pot.found.values())}
    output = pathlib.Path(options.output).expanduser()
    notes = oracles(pot)
    exporting.weights(parts, Variables(params, pot.state), None, output, chosen="; ".join(notes), soup=soup)
    show(pot, final)
    for note in [*notes, *warnings]:
        print(f"warning: {note}", file=sys.stderr)
    print(f"wrote {output}\n      {output}.json")


def opened(options: Options, parts: assembly.Parts) -> list[ingredients.Ingredient]:
    """Return the models, unread; of --kind=wise the original first.

    Raises:
      InputError: one of them is not there, or is of another model.
    """
    runs = [ingredients.of_run(run, options.step, options.data_dir, parts) for run in options.runs]
    files = [ingredients.of_file(file, parts) for file in options.files]
    if options.kind != "wise":
        return [*runs, *files]
    if not files:
        if parts.config.model.get("prompts") or beginning.first_variables(parts) is None:
            raise InputError("this run began at random: nothing is between its model and another; name two models")
        files = [ingredients.Ingredient(ORIGINAL, lambda: (untrained.original(parts), {}))]
    return [files[0], *runs, *files[1:]]


def trained_on_the_split(options: Options) -> list[str]:
    """Return a line for each run that was trained on images by which accuracy is measured.

    Raises:
      InputError: a greedy soup would choose among such runs.
    """
    drawn = sources.held_out_draw(assembly.read_config(options.at)) if options.split == "validation" else None
    if drawn is None:
        return []
    seen = [run for run in options.runs if sources.held_out_draw(assembly.read_config(run)) != drawn]
    said = "was trained on images of the validation split, for it holds out others than"
    if seen and options.kind == "greedy":
        raise InputError(f"{seen[0]} {said} {options.at}: train all runs of a greedy soup with one data.held_out_seed")
    return [f"{run} {said} {options.at}: its accuracy is not that on new images" for run in seen]


def held_out(options: Options) -> Any:
    """Return the images on which accuracy is measured, as the run evaluates them; None for none."""
    if options.split == "none":
        return None
    config = assembly.read_config(options.at).copy_and_resolve_references().unlock()
    if options.data_dir is not None:
        config.data.dir = options.data_dir
    try:
        source = sources.source(config, options.split)
    except InputError as error:
        if options.split == "test":
            raise
        raise InputError(f"{error}; with --split=test the choice is an oracle") from error
    source, crop = data.for_evaluation(source, config.data.augment), config.data.augment.crop_size
    return Cropped(source, crop) if crop else source


def uniform(pot: Pot, models: list[ingredients.Ingredient]) -> Any:
    """Return the mean of all models."""

    mean = averaging.uniform(map(pot.measured, models))
    for model in models:
        pot.found[model.name] |= {"taken": True}
    return mean


def wise(pot: Pot, models: list[ingredients.Ingredient]) -> Any:
    """Return what lies between two models."""
    original, fine_tuned = map(pot.measured, models)
    for model, share in zip(models, (1 - pot.options.share, pot.options.share), strict=True):
        pot.found[model.name] |= {"taken": share > 0}
    return averaging.interpolate(original, fine_tuned, pot.options.share)


def greedy(pot: Pot, models: list[ingredients.Ingredient]) -> Any:
    """Return the greedy soup."""

    def accuracy_of(params: Any) -> float:
        found = pot.accuracy(params)
        assert found is not None  # `Options` sees to it
        return found

    soup = averaging.greedy([functools.partial(pot.params, model) for model in models], accuracy_of)
    order = {}
    for tried in soup.tried:
        name = models[tried.position].name
        order[name] = pot.found[name] | {"accuracy": tried.alone, "together": tried.together, "taken": tried.taken}
    pot.found = order
    return soup.tree


def oracles(pot: Pot) -> list[str]:
    """Return in what way the test labels have been seen."""
    notes = sorted({found["chosen"] for found in pot.found.values() if "oracle" in found.get("chosen", "")})
    if pot.options.kind == "greedy" and pot.options.split == "test":
        notes.append("a greedy soup by accuracy on the test split: an oracle, for its choice has seen the test labels")
    return notes


def show(pot: Pot, final: float | None) -> None:
    """Print the table."""

    def cell(value: float | None) -> str:
        return "-" if value is None else f"{100 * value:.2f}"

    rows = [
        [found["name"], cell(found["accuracy"]), cell(found.get("together")), "yes" if found["taken"] else "no"]
        for found in pot.found.values()
    ]
    columns = ["ingredient", f"{pot.options.split} accuracy %", "mean with it %", "taken"]
    console = Console(width=None if sys.stdout.isatty() else 160)
    console.print(tables.rich_table(f"{pot.options.kind}", columns, [*rows, ["the average", cell(final), "-", "-"]]))


def define_flags() -> None:
    """Define the flags, named as the fields of `Options`."""
    flags.DEFINE_list("runs", [], "folders of runs")
    flags.DEFINE_list("files", [], "files of weights; for --kind=wise the first is the original")
    flags.DEFINE_string("kind", "uniform", f"one of {', '.join(KINDS)}")
    flags.DEFINE_float("share", 0.5, "of the fine-tuned model, for --kind=wise")
    flags.DEFINE_string("step", "latest", "checkpoint of each run: latest, best, or a step")
    flags.DEFINE_string("split", "validation", f"held-out images: one of {', '.join(SPLITS)}")
    flags.DEFINE_integer("examples", 0, "only so many held-out images; 0 for all")
    flags.DEFINE_string("output", "", "the file to write, ending in .safetensors")
    flags.DEFINE_string("workdir", "", "the run whose data and texts are used; by default the first of --runs")
    flags.DEFINE_string("data.dir", None, "the data folder, if it is not where the run found it")


def given() -> Options:
    """Return the flags of the command line."""
    names = {field.name: field.name.replace("data_dir", "data.dir") for field in dataclasses.fields(Options)}
    values: dict[str, Any] = {field: command.FLAGS[name].value for field, name in names.items()}
    return Options(**values)


if __name__ == "__main__":
    define_flags()
    command.run(lambda: main(given()))
