"""Suite `interpolation`: models between the original and the fine-tuned one, clean against robust accuracy."""

from __future__ import annotations

import dataclasses
import functools
import math
import os
from typing import Any

import jax
import numpy as np

from jrobust.errors import InputError
from jrobust.evaluation import kept
from jrobust.evaluation.accuracy import clean_warnings, joined
from jrobust.evaluation.attack import ascent, threat_text
from jrobust.evaluation.checks import attack_checks, check_warnings
from jrobust.evaluation.class_runs import SECONDS, STEPS, Plan, Runner, kept_parts, split
from jrobust.evaluation.class_sets import ClassSets, Sets, averages, check, described, opened
from jrobust.evaluation.kept import Columns
from jrobust.evaluation.record import Record
from jrobust.evaluation.subject import Subject

__all__ = ["Settings", "check", "drift", "forget", "run"]


@dataclasses.dataclass(frozen=True)
class Settings(ClassSets):
    """The data sets and PGD, see `ClassSets`, and the models.

    Attributes:
      shares: of the fine-tuned model, from 0 to 1. The grid of the paper's figure is unverified.
    """

    shares: tuple[float, ...] = tuple(k / 10 for k in range(11))

    def __post_init__(self):
        super().__post_init__()
        if not self.shares or not all(0 <= share <= 1 for share in self.shares):
            raise InputError(f"shares={','.join(map(str, self.shares))}: expected numbers from 0 to 1, at least one")


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
    """Return clean and robust accuracy on the way from the original to the fine-tuned model (PMG-AFT, Figure 5).

        th(l) = (1 - l) th0 + l th1      th0 original, th1 fine-tuned, l each of `shares`

    Metrics are `<average>.clean at <l>` and `<average>.pgd_<steps> at <l>`, averages over data sets as in suite
    zero_shot; the curve `interpolation` and the table have them too. `checks` says how far the parameters went:

        drift = | sum_p |th1_p|_2 - sum_p |th0_p|_2 |    relative_drift = drift / sum_p |th0_p|_2
        relative_distance = |th1 - th0|_2 / |th0|_2

    p running over the arrays; the first two are what PMG-AFT's code logs, which do not see a rotation. `share_1_exact`
    says whether th(1) is the subject bit by bit.

    Args are those of suite zero_shot. What is done is kept in WORKDIR/evaluation/interpolation.kept.

    Raises:
      InputError: see `check` and `opened`.
    """
    settings = settings or Settings()
    check(settings, subject, source, None)
    assert subject.zero_shot is not None
    between = subject.zero_shot.interpolated
    attack = ascent(
        *(f"pgd_{settings.num_steps}", "linf", settings.eps, settings.step_size, settings.num_steps),
        settings.random_start,
    )
    plan, shares = Plan([attack]), sorted(set(settings.shares))
    chosen, warnings = opened(settings, source, sets, examples)
    runner = Runner(plan, batch_size, seed, mesh, kept_parts(workdir, "interpolation", subject, plan, seed))
    found: dict[float, dict[str, Columns]] = {share: {} for share in shares}
    work = [part for of in chosen for share in shares for part in runner.parts(of, _at(share))]
    with runner.progress("interpolation", work, progress) as advance:
        for of in chosen:
            for share in shares:
                found[share][of.name] = runner.measure(functools.partial(between, share), of, advance, _at(share))
    record = Record.of("interpolation", subject, source, seed=seed, examples=sum(len(of.order) for of in chosen))
    record.dataset, record.class_names = described(chosen, settings.sample), []
    record.settings, record.threat = dataclasses.asdict(settings), threat_text("linf", settings.eps)
    record.warnings = warnings
    _summarise(record, found, settings.source, attack.name, attack.protocol)
    every = joined([split(columns)[0] for sets_of in found.values() for columns in sets_of.values()])
    original, fine_tuned = between(0.0), between(1.0)
    record.checks = attack_checks([attack], every) | drift(_parameters(original), _parameters(fine_tuned))
    record.checks["share_1_exact"] = _equal(_parameters(fine_tuned), _parameters(subject))
    record.warnings += clean_warnings(every) + check_warnings(record.checks)
    if not record.checks["share_1_exact"]:
        record.warnings.append("the model at share 1 is not the fine-tuned one: the curve does not end where it should")
    measured = [columns for sets_of in found.values() for columns in sets_of.values()]
    record.seconds = sum(float(columns[SECONDS]) for columns in measured)
    record.attack_steps = sum(int(columns[STEPS]) for columns in measured)
    record.attack_steps_per_second = runner.rate.per_second
    return record


def forget(workdir: str | os.PathLike) -> None:
    """Remove what a run kept whose record is written."""
    kept.forget(workdir, "interpolation")


def drift(original: Any, fine_tuned: Any) -> dict[str, float]:
    """Return how far parameters went, see `run`.

    >>> drift({"a": np.array([3.0, 4.0])}, {"a": np.array([0.0, 4.0])})
    {'drift': 1.0, 'relative_drift': 0.2, 'relative_distance': 0.6}
    """
    start = end = whole = moved = 0.0
    for before, after in zip(jax.tree.leaves(original), jax.tree.leaves(fine_tuned), strict=True):
        before, after = np.asarray(before, np.float64), np.asarray(after, np.float64)
        start, end = start + float(np.linalg.norm(before)), end + float(np.linalg.norm(after))
        whole, moved = whole + float(np.sum(before**2)), moved + float(np.sum((after - before) ** 2))
    relative = (abs(end - start) / start, float(np.sqrt(moved / whole))) if whole else (math.nan, math.nan)
    return {"drift": abs(end - start), "relative_drift": relative[0], "relative_distance": relative[1]}


def _summarise(
    record: Record, found: dict[float, dict[str, Columns]], trained_on: str, attack: str, protocol: str
) -> None:
    """Fill in the metrics, the curve, the table and the columns."""
    points: list[dict[str, Any]] = []
    columns: Columns = {}
    for share, sets_of in found.items():
        row = joined([split(found_of)[0] for found_of in sets_of.values()])
        if not columns:
            names = [np.full(len(found_of["index"]), name) for name, found_of in sets_of.items()]
            columns = {"set": np.concatenate(names), "index": row["index"], "label": row["label"]}
        point: dict[str, Any] = {"label": f"{share:g}", "x": share}
        measures = (
            ("clean", "clean", "correct", "images as they are"),
            ("robust", attack, f"{attack}_correct", protocol),
        )
        for word, measure, column, how in measures:
            columns[f"{measure}{_at(share)}"] = row[column]
            hits = {name: found_of[column] for name, found_of in sets_of.items()}
            for name, estimate in averages(hits, trained_on).items():
                record.metrics[f"{name}.{measure}{_at(share)}"] = estimate
                record.protocols[f"{name}.{measure}{_at(share)}"] = f"{how}; mean over data sets"
                point[word if name == "average" else f"zero_shot_{word}"] = estimate
        points.append(point)
    record.columns, record.curves["interpolation"] = columns, points
    titles = list(points[0])[2:]
    rows = [[point["label"], *(point[title].value for title in titles)] for point in points]
    record.tables["interpolation"] = {
        "columns": ["share", *(title.replace("_", " ").replace("zero shot", "zero-shot") for title in titles)],
        "rows": rows,
    }


def _at(share: float) -> str:
    return f" at {share:g}"


def _parameters(subject: Subject) -> Any:
    return getattr(subject.variables, "params", subject.variables)


def _equal(first: Any, second: Any) -> bool:
    return kept.fingerprint(first) == kept.fingerprint(second)
