"""Suite `zero_shot`: a model whose classes are texts on many data sets, clean and under attack, and on average."""

from __future__ import annotations

import dataclasses
import math
import os
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jrobust import units
from jrobust.attacks.versions import MAX_TARGETS, Budget
from jrobust.errors import InputError, unknown
from jrobust.evaluation import kept
from jrobust.evaluation.accuracy import clean_warnings, joined
from jrobust.evaluation.attack import Attack, ascent, threat_text
from jrobust.evaluation.autoattack import SHORTENED
from jrobust.evaluation.autoattack import Settings as Judge
from jrobust.evaluation.batches import image_shape
from jrobust.evaluation.checks import attack_checks, check_warnings, rising
from jrobust.evaluation.class_runs import FLAGS, RATE, SECONDS, STEPS, Plan, Runner, kept_parts, split
from jrobust.evaluation.class_sets import ClassSet, ClassSets, Sets, averages, check, described, opened, title
from jrobust.evaluation.estimates import proportion
from jrobust.evaluation.kept import Columns
from jrobust.evaluation.record import Record
from jrobust.evaluation.robustness import without_checks
from jrobust.evaluation.subject import Subject

__all__ = ["Settings", "check", "forget", "run"]

ATTACKS = ("pgd", "cw")
HEADINGS = {"pgd": "PGD", "cw": "C&W"}
AVERAGES = {"average": "Avg", "zero_shot_average": "zero-shot Avg"}


@dataclasses.dataclass(frozen=True)
class Settings(ClassSets):
    """The data sets and PGD, see `ClassSets`, and what is done beside PGD.

    Attributes:
      attacks: "pgd", and "cw": the same updates on the loss of Carlini and Wagner of confidence `cw_confidence`.
      cw_confidence: kappa in -max(z_y - max_{k != y} z_k + kappa, 0).
      autoattack: whether AutoAttack is run: standard; on sets of fewer than 10 classes, for which that is not defined,
        APGD-CE, untargeted FAB and Square. Takes hours.
      apgd_steps, fab_steps, square_queries: as in suite autoattack.
      sweep: radii of PGD for a curve; () for none.
    """

    attacks: tuple[str, ...] = ATTACKS
    cw_confidence: float = 50.0
    autoattack: bool = False
    apgd_steps: int = Budget.apgd_steps
    fab_steps: int = Budget.fab_steps
    square_queries: int = Budget.square_queries
    sweep: tuple[str, ...] = ()

    def __post_init__(self):
        super().__post_init__()
        for name in self.attacks:
            if name not in ATTACKS:
                raise unknown("attack", name, ATTACKS)
        for radius in self.sweep:
            if not units.parse(radius):
                raise InputError(f"sweep={','.join(self.sweep)}: expected radii above 0, which is the clean accuracy")
        self.judge()

    def judge(self) -> Judge:
        """Return AutoAttack."""
        lengths = {name: getattr(self, name) for name in ("apgd_steps", "fab_steps", "square_queries")}
        return Judge(eps=self.eps, **lengths)

    def plan(self) -> dict[str, list[Attack]]:
        """Return the attacks by gradients: under "main" those at `eps`, under "sweep" the points of the curve."""

        def at(name: str, eps: str, confidence: float | None = None) -> Attack:
            numbers = self.step_size, self.num_steps, self.random_start
            return ascent(name, "linf", eps, *numbers, confidence=confidence)

        kappas = {"pgd": None, "cw": self.cw_confidence}
        main = [at(f"{name}_{self.num_steps}", self.eps, kappas[name]) for name in ATTACKS if name in self.attacks]
        points = [at(f"linf_{radius}", radius) for radius in sorted(set(self.sweep), key=units.parse)]
        # A point that is one of the main attacks is not run twice.
        same = {attack.numbers(): attack for attack in main}
        return {"main": main, "sweep": [same.get(point.numbers(), point) for point in points]}


class Measure(NamedTuple):
    """A line of the table: the name in metrics, the title, the column of hits, and how it was measured."""

    name: str
    title: str
    column: str
    protocol: str


def run(
    subject: Subject,
    source: Any,
    settings: Settings | None = None,
    *,
    sets: Sets | None = None,
    batch_size: int = 256,
    examples: int = 0,
    seed: int = 0,
    progress: bool = True,
    mesh: jax.sharding.Mesh | None = None,
    workdir: str | os.PathLike | None = None,
) -> Record:
    """Return accuracies on each data set and their unweighted means, clean and under attack (PMG-AFT, Tables 1 to 3).

        average.<measure>            = (1 / S) sum_s accuracy on set s
        zero_shot_average.<measure>  = the same without the set that was trained on, if `source` names it

    for the measures clean, pgd_<steps>, cw_<steps> and autoattack (`shortened_autoattack` where its attacks are);
    <set>.<measure> is the accuracy on one set. Every image is attacked, misclassified ones too, in the size in which
    the set gives it; what counts is the prediction on the last iterate. Intervals: Wilson for a set; for a mean, whose
    sets are fixed, normal with the variances of the sets' shares.

    With a `workdir` each data set that is done is kept in WORKDIR/evaluation/zero_shot.kept, AutoAttack every half
    minute, and a run with the same arguments goes on from there. `forget` removes it.

    The table `zero_shot` has a line a measure and a column a set, in the order of the paper's tables; `sets` says what
    was taken of each, the seconds, and the images a second under all attacks by gradients without the first batch,
    which may compile.

    Args:
      subject: what is evaluated; its `zero_shot` takes the classes of each set.
      source: its own test set, which is evaluated where the settings name it.
      settings: of this suite.
      sets: loads a data set by name: its images, and a list of texts for each class.
      batch_size, examples, seed, progress, mesh: as in the robustness suite; `examples` of each set.
      workdir: the run's folder.

    Raises:
      InputError: see `check` and `opened`.
    """
    settings = settings or Settings()
    check(settings, subject, source, None)
    groups = settings.plan()
    plan = Plan(
        list(dict.fromkeys(groups["main"] + groups["sweep"])), settings.judge() if settings.autoattack else None
    )
    chosen, warnings = opened(settings, source, sets, examples)
    runner = Runner(plan, batch_size, seed, mesh, kept_parts(workdir, "zero_shot", subject, plan, seed))
    found: dict[str, Columns] = {}
    with runner.progress("zero_shot", [part for of in chosen for part in runner.parts(of)], progress) as advance:
        for number, of in enumerate(chosen, 1):
            found[of.name] = runner.measure(lambda: subject, of, advance)
            if progress:
                shares = [f"{m.title} {100 * found[of.name][m.column].mean():.2f}" for m in _measures(settings, chosen)]
                line = f"zero_shot: {of.title} ({number} of {len(chosen)}): {', '.join(shares)}"
                print(line, file=sys.stderr, flush=True)
    record = Record.of("zero_shot", subject, source, seed=seed, examples=sum(len(of.order) for of in chosen))
    record.dataset, record.class_names = described(chosen, settings.sample), []
    record.settings, record.threat = dataclasses.asdict(settings), threat_text("linf", settings.eps)
    record.warnings = warnings
    _summarise(record, settings, groups, chosen, {name: split(columns)[0] for name, columns in found.items()})
    _account(record, runner, chosen, {name: split(columns)[1] for name, columns in found.items()})
    return record


def forget(workdir: str | os.PathLike) -> None:
    """Remove what a run kept whose record is written."""
    kept.forget(workdir, "zero_shot")


def _measures(settings: Settings, chosen: Sequence[ClassSet]) -> list[Measure]:
    """Return the lines of the table."""
    groups = settings.plan()
    found = [Measure("clean", "clean", "correct", "images as they are")]
    for attack in groups["main"]:
        heading = f"{HEADINGS[attack.name.partition('_')[0]]}-{attack.num_steps}"
        found.append(Measure(attack.name, heading, f"{attack.name}_correct", attack.protocol))
    if settings.autoattack:
        judge, few = settings.judge(), [of for of in chosen if of.classes <= MAX_TARGETS]
        texts = [judge.protocol(MAX_TARGETS + 1)] if len(few) < len(chosen) else []
        if few:
            other = dataclasses.replace(judge, version="few").protocol(min(of.classes for of in few))
            texts.append(f"on {', '.join(of.title for of in few)}, of fewer than 10 classes: {other}")
        name, heading = "autoattack", "AutoAttack"
        if judge.budget() != Budget():
            name, heading = "shortened_autoattack", SHORTENED
        found.append(Measure(name, heading, "autoattack_correct", "; ".join(texts)))
    for attack in groups["sweep"]:
        if attack not in groups["main"]:
            heading = f"PGD-{attack.num_steps} at {attack.radius}"
            found.append(Measure(attack.name, heading, f"{attack.name}_correct", attack.protocol))
    return found


def _summarise(
    record: Record,
    settings: Settings,
    groups: dict[str, list[Attack]],
    chosen: Sequence[ClassSet],
    found: dict[str, Columns],
) -> None:
    """Fill in the metrics, the table, the curve, the columns, and what the attacks give to complain about."""
    rows, means = [], {}
    for measure in _measures(settings, chosen):
        hits = {name: columns[measure.column] for name, columns in found.items()}
        means[measure.column] = averages(hits, settings.source)
        cells = [float(hit.mean()) for hit in hits.values()]
        rows.append([measure.title, *cells, *(estimate.value for estimate in means[measure.column].values())])
        each = {of.name: proportion(hits[of.name]) for of in chosen}
        without = f"without {title(settings.source)}" if settings.source in hits else "none trained on"
        over = {"average": f"; mean over {len(hits)} sets", "zero_shot_average": f"; mean over the sets, {without}"}
        for name, estimate in (means[measure.column] | each).items():
            record.metrics[f"{name}.{measure.name}"] = estimate
            record.protocols[f"{name}.{measure.name}"] = measure.protocol + over.get(name, "")
    titles = [*(of.title for of in chosen), *(AVERAGES[name] for name in means["correct"])]
    record.tables["zero_shot"] = {"columns": ["accuracy", *titles], "rows": rows}
    if groups["sweep"]:
        points = [("0", 0.0, "correct"), *((a.radius, a.eps, f"{a.name}_correct") for a in groups["sweep"])]
        record.curves["linf"] = [_point(label, x, means[column]) for label, x, column in points]
    names = [np.full(len(columns["index"]), name) for name, columns in found.items()]
    columns = joined(list(found.values()))
    plan = list(dict.fromkeys(groups["main"] + groups["sweep"]))
    record.checks = attack_checks(plan, columns) if plan else {}
    record.warnings += clean_warnings(columns) + (check_warnings(record.checks) if plan else []) + rising(record)
    record.columns = {"set": np.concatenate(names)} | without_checks(columns)


def _point(label: str, x: float, means: dict[str, Any]) -> dict[str, Any]:
    others = {"zero_shot": means["zero_shot_average"]} if "zero_shot_average" in means else {}
    return {"label": label, "x": x, "accuracy": means["average"]} | others


def _account(record: Record, runner: Runner, chosen: Sequence[ClassSet], found: dict[str, Columns]) -> None:
    """Fill in what the work cost and, set by set, what was taken; what AutoAttack doubts is a warning."""
    rows = []
    for of in chosen:
        measured, (height, width, _) = found[of.name], image_shape(of.source)
        rate = float(measured[RATE])
        cells = [of.title, f"{of.source.name} {of.source.split}", len(of.order), of.classes, of.classes_taken]
        seconds = float(measured[SECONDS])
        rows.append([*cells, f"{height} x {width}", seconds, None if math.isnan(rate) else rate])
        record.warnings += [f"{of.title}: {text}" for text in dict.fromkeys(measured.get(FLAGS, np.array([])).tolist())]
    columns = ["set", "data set", "images", "classes", "of these in the sample", "size", "seconds", "images/s"]
    record.tables["sets"] = {"columns": columns, "rows": rows}
    record.seconds = sum(float(measured[SECONDS]) for measured in found.values())
    record.attack_steps = sum(int(measured[STEPS]) for measured in found.values())
    record.attack_steps_per_second = runner.rate.per_second
    record.checks["images_per_second"] = record.examples / record.seconds
    record.checks["parts_of_an_earlier_run"] = len(runner.resumed)
