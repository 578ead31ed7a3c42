"""Suite `transfer`: perturbations crafted on one model, tried on another (as Table 2 of the ART supplementary)."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from jrobust import units
from jrobust.errors import InputError, unknown
from jrobust.evaluation import programs
from jrobust.evaluation.accuracy import joined, keep_valid
from jrobust.evaluation.attack import NORMS, WITH_MEMORY, Attack, ascent, craft, threat_text, with_memory
from jrobust.evaluation.batches import batches, choose
from jrobust.evaluation.estimates import proportion
from jrobust.evaluation.progress import track
from jrobust.evaluation.rate import Rate
from jrobust.evaluation.record import Record
from jrobust.evaluation.subject import Subject

METHODS = ("pgd", *WITH_MEMORY)
STEPS = {"pgd": 40} | dict.fromkeys(WITH_MEMORY, 10)


@dataclasses.dataclass(frozen=True)
class Settings:
    """The one attack that crafts; radii and step sizes are text in pixel units of [0, 1].

    The published budgets of images that are transferred are unverified.

    Attributes:
      attack: "pgd", or one made to transfer: "mi_fgsm", "ni_fgsm", "di_fgsm", "ti_fgsm", with the numbers that are the
        defaults of `jrobust.attacks.momentum`.
      norm, eps, step_size: as in the robustness suite.
      num_steps: 0 for 40 of PGD (ART's) and 10 of the others.
      random_start: of PGD; the others start at the image.
    """

    attack: str = "pgd"
    norm: str = "linf"
    eps: str = "8/255"
    step_size: str = "2/255"
    num_steps: int = 0
    random_start: bool = True

    def __post_init__(self):
        if self.attack not in METHODS:
            raise unknown("attack", self.attack, METHODS)
        if self.norm not in NORMS:
            raise unknown("norm", self.norm, NORMS)
        if self.num_steps < 0:
            raise InputError(f"num_steps={self.num_steps}: expected at least 1, or 0 for the attack's own number")
        units.parse(self.eps), units.parse(self.step_size)

    def crafting(self) -> Attack:
        """Return the attack; PGD is in every number that of the robustness suite."""
        steps = self.num_steps or STEPS[self.attack]
        if self.attack == "pgd":
            return ascent(f"pgd_{steps}", self.norm, self.eps, self.step_size, steps, self.random_start)
        return with_memory(self.attack, self.attack, self.norm, self.eps, self.step_size, steps)


def run(
    subject: Subject,
    source: Any,
    settings: Settings | None = None,
    *,
    against: Sequence[Subject] = (),
    batch_size: int = 256,
    examples: int = 0,
    seed: int = 0,
    progress: bool = True,
    mesh: jax.sharding.Mesh | None = None,
) -> Record:
    """Return the accuracy of every model (rows) on images crafted on every model (columns), and on clean images.

    All images count, whether or not a model is right on them. With the same seed the diagonal is the white-box accuracy
    of the robustness suite. Metrics are named `<evaluated> on <crafted>`, the clean ones `<evaluated> on clean`.

    Args:
      subject: the first model.
      source: the images.
      settings: the attack.
      against: the other models, at least one; they take the same images and have the same classes.
      batch_size, examples, seed, progress, mesh: as in the robustness suite.

    Raises:
      InputError: there is no second model, two have the same name, or their classes differ.
    """
    settings = settings or Settings()
    subjects = checked([subject, *against])
    attack, key = settings.crafting(), jax.random.key(seed)
    begin, rate = time.perf_counter(), Rate()
    order = choose(source, examples)
    rows = []
    work = len(order) * len(subjects) * (attack.num_steps + len(subjects))
    with jax.default_matmul_precision("highest"), track("transfer", work, progress) as advance:
        for batch in batches(source, batch_size, order, mesh):
            columns = {"index": batch["index"], "label": batch["label"]}
            count = int(np.sum(np.asarray(batch["valid"])))
            images = {"clean": batch["image"]}
            for crafter in subjects:
                with rate.timed(crafter.name, count * attack.num_steps):
                    images[crafter.name] = jax.block_until_ready(craft(crafter, batch, [attack], key)[0])
                advance(count * attack.num_steps)
            for evaluated in subjects:
                for name, crafted in images.items():
                    outcome = programs.predict(evaluated.logits, evaluated.variables, crafted, batch["label"])
                    columns[f"{evaluated.name} on {name}"] = outcome.correct
                advance(count * len(subjects))
            rows.append(keep_valid(batch, columns))
    columns = joined(rows)
    record = Record.of("transfer", subject, source, examples=len(order), seed=seed, columns=columns)
    record.settings, record.threat = dataclasses.asdict(settings), threat_text(settings.norm, settings.eps)
    names = [s.name for s in subjects]
    for name, column in columns.items():
        if " on " in name:
            record.metrics[name] = proportion(column)
            clean = name.endswith(" on clean")
            record.protocols[name] = (
                "images as they are" if clean else f"crafted on the second model: {attack.protocol}"
            )
    record.tables["matrix"] = {
        "columns": ["evaluated", *(f"crafted on {name}" for name in names), "clean"],
        "rows": [
            [
                row,
                *(record.metrics[f"{row} on {column}"].value for column in names),
                record.metrics[f"{row} on clean"].value,
            ]
            for row in names
        ],
    }
    record.attack_steps, record.attack_steps_per_second = rate.steps, rate.per_second
    record.seconds = time.perf_counter() - begin
    return record


def checked(subjects: list[Subject]) -> list[Subject]:
    """Return `subjects` if a matrix can be made of them; see `run` for what is raised."""
    names = [subject.name for subject in subjects]
    if len(subjects) < 2:
        raise InputError("suite transfer compares at least two models: pass the other runs with --against=RUN,RUN")
    if len(set(names)) < len(names) or "clean" in names:
        raise InputError(f"models named {', '.join(names)}: expected different names, none of them 'clean'")
    for other in subjects[1:]:
        if len(other.class_names) != len(subjects[0].class_names):
            raise InputError(
                f"{other.name!r} has {len(other.class_names)} classes and {subjects[0].name!r} has"
                f" {len(subjects[0].class_names)}: expected models of the same data set"
            )
    return subjects
