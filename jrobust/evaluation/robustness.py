"""Suite `robustness`: accuracy under FGSM, PGD and C&W, over radii of Linf and L2, with checks on the attacks."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import jax
import numpy as np

from jrobust import units
from jrobust.errors import InputError, unknown
from jrobust.evaluation import programs
from jrobust.evaluation.accuracy import clean_columns, clean_warnings, joined, keep_valid
from jrobust.evaluation.attack import NORMS, Attack, ascent, craft, families, threat_text
from jrobust.evaluation.batches import batches, choose
from jrobust.evaluation.checks import attack_checks, attack_warnings
from jrobust.evaluation.estimates import proportion, worst_case
from jrobust.evaluation.progress import track
from jrobust.evaluation.rate import Rate
from jrobust.evaluation.record import Record
from jrobust.evaluation.subject import Subject


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the attacks of the suite are allowed; radii and step sizes are text in pixel units of [0, 1].

    Attributes:
      norm: "linf" or "l2", of FGSM, PGD and C&W.
      eps: their radius.
      step_size: of PGD and C&W at `eps`.
      num_steps: one PGD for each number of steps.
      random_start: PGD and C&W start at a random point of the ball (uniform for Linf); otherwise at the image.
      restarts: of PGD and C&W; per image the worst run counts.
      cw_steps: one C&W for each number of steps; () for none. The attack that Kim et al. 2023 (FSR) and others report
        under this name: PGD that maximises -max(z_y - max_{k != y} z_k + kappa, 0). Not the attack of least L2 norm.
      cw_confidence: kappa.
      sweep_linf, sweep_l2: the radii of the two curves; () for none.
      sweep_steps: steps of PGD on the curves. The step size is `step_size * radius / eps` for the norm above, so that
        the point at `eps` is PGD itself, and 2.5 radius / steps for the other norm.
    """

    norm: str = "linf"
    eps: str = "8/255"
    step_size: str = "2/255"
    num_steps: tuple[int, ...] = (20,)
    random_start: bool = True
    restarts: int = 1
    cw_steps: tuple[int, ...] = ()
    cw_confidence: float = 50.0
    sweep_linf: tuple[str, ...] = ()
    sweep_l2: tuple[str, ...] = ()
    sweep_steps: int = 40

    def __post_init__(self):
        if self.norm not in NORMS:
            raise unknown("norm", self.norm, NORMS)
        for radius in (self.eps, self.step_size, *self.sweep_linf, *self.sweep_l2):
            units.parse(radius)
        if not self.num_steps or min(*self.num_steps, *self.cw_steps, self.sweep_steps, self.restarts) < 1:
            raise InputError(
                f"num_steps={self.num_steps}, cw_steps={self.cw_steps}, sweep_steps={self.sweep_steps},"
                f" restarts={self.restarts}: expected numbers of at least 1, and at least one num_steps"
            )
        if self.restarts > 1 and not self.random_start:
            raise InputError(
                f"restarts={self.restarts} repeat one and the same run without random_start: set it to True"
            )


def attacks(settings: Settings) -> dict[str, list[Attack]]:
    """Return the attacks: under "main" FGSM, PGD and C&W, under "linf" and "l2" the points of the curves."""
    norm, eps = settings.norm, settings.eps
    start, restarts, kappa = settings.random_start, settings.restarts, settings.cw_confidence

    def at_eps(name: str, steps: int, confidence: float | None = None) -> Attack:
        return ascent(name, norm, eps, settings.step_size, steps, start, restarts, confidence=confidence)

    main = [
        Attack("fgsm", norm, eps, units.number(eps), 1, False, 1, f"FGSM, {threat_text(norm, eps)}, from the image"),
        *(at_eps(f"pgd_{steps}", steps) for steps in settings.num_steps),
        *(at_eps(f"cw_{steps}", steps, kappa) for steps in settings.cw_steps),
    ]
    groups = {"main": main}
    for curve, radii in (("linf", settings.sweep_linf), ("l2", settings.sweep_l2)):
        groups[curve] = []
        for radius in sorted(radii, key=units.parse):
            if curve == norm and units.parse(eps):
                step = units.parse(settings.step_size) * units.parse(radius) / units.parse(eps)
            else:
                step = units.parse(radius) * 5 / 2 / settings.sweep_steps
            point = ascent(f"{curve}_{radius}", curve, radius, step, settings.sweep_steps, start)
            # A point that is one of the main attacks is not run twice.
            groups[curve].append(next((attack for attack in main if attack.numbers() == point.numbers()), point))
    return groups


def run(
    subject: Subject,
    source: Any,
    settings: Settings | None = None,
    *,
    batch_size: int = 256,
    examples: int = 0,
    seed: int = 0,
    progress: bool = True,
    mesh: jax.sharding.Mesh | None = None,
) -> Record:
    """Return clean accuracy, accuracy under each attack, in the worst case over them, and over radii.

    Every image is attacked, misclassified ones too; what counts is the prediction on the last iterate (with restarts:
    on the worst run). `worst_case` is the share of images right on the image itself and under FGSM, every PGD and every
    C&W ("Ensemble" in FSR's tables). An image's random start depends on `seed` and its index only, and is the same one,
    scaled, for every radius and number of steps: no number changes with the batch size. Attacks that differ only in
    their number of steps are stops of one ascent, which costs (and counts as `attack_steps`) the longest of them.

    The protocol of FSR (its code): eps 8/255, step_size "0.8/255", num_steps (20, 100), random_start False, cw_steps
    (30,).

    Args and the per-example table are those of the accuracy suite; each attack adds `<attack>_correct` and
    `<attack>_margin` (positive where misclassified).

    Raises:
      InputError: the settings have no meaning.
    """
    settings = settings or Settings()
    groups = attacks(settings)
    plan = list({attack.name: attack for group in groups.values() for attack in group}.values())
    begin, rate = time.perf_counter(), Rate()
    order = choose(source, examples)
    ascents = families(plan)
    work = len(order) * sum(steps_of(family) for family in ascents)
    rows, key = [], jax.random.key(seed)
    with jax.default_matmul_precision("highest"), track("robustness", work, progress) as advance:
        for batch in batches(source, batch_size, order, mesh):
            columns = clean(subject, batch)
            count = int(np.sum(np.asarray(batch["valid"])))
            for family in ascents:
                steps = count * steps_of(family)
                with rate.timed((family[0].norm, family[0].loss, family[0].restarts > 1), steps):
                    columns |= jax.block_until_ready(attacked(subject, batch, family, key))
                advance(steps)
            rows.append(keep_valid(batch, columns))
    return _record(subject, source, settings, groups, joined(rows), rate, time.perf_counter() - begin, seed)


def attacked(subject: Subject, batch: dict[str, Any], family: list[Attack], key: jax.Array) -> dict[str, jax.Array]:
    """Return the columns of the attacks of one path on one batch, their sizes among them."""
    columns: dict[str, jax.Array] = {}
    for attack, adv_images in zip(family, craft(subject, batch, family, key), strict=True):
        outcome = programs.predict(subject.logits, subject.variables, adv_images, batch["label"])
        found = {"correct": outcome.correct, "margin": outcome.margin}
        found |= programs.size(batch["image"], adv_images)._asdict()
        columns |= {f"{attack.name}_{name}": column for name, column in found.items()}
    return columns


def steps_of(family: list[Attack]) -> int:
    """Return the gradient steps an image: those of the longest, the last one."""
    return family[-1].num_steps * family[-1].restarts


def clean(subject: Subject, batch: dict[str, Any]) -> dict[str, jax.Array]:
    """Return the columns of a batch as it is, with what betrays useless attacks."""
    arguments = (subject.logits, subject.variables, batch["image"], batch["label"])
    zero, softmax = programs.health(*arguments)
    return clean_columns(batch, programs.predict(*arguments)) | {"zero_gradient": zero, "softmax": softmax}


def _record(subject, source, settings: Settings, groups, columns, rate: Rate, seconds: float, seed: int) -> Record:
    main = groups["main"]
    record = Record.of("robustness", subject, source, examples=len(columns["index"]), seed=seed)
    record.settings, record.threat = dataclasses.asdict(settings), threat_text(settings.norm, settings.eps)
    record.metrics["accuracy"], record.protocols["accuracy"] = proportion(columns["correct"]), "images as they are"
    for attack in main:
        record.metrics[attack.name] = proportion(columns[f"{attack.name}_correct"])
        record.protocols[attack.name] = attack.protocol
    columns["worst_case_correct"] = worst_case(
        [columns["correct"], *(columns[f"{attack.name}_correct"] for attack in main)]
    )
    record.metrics["worst_case"] = proportion(columns["worst_case_correct"])
    record.protocols["worst_case"] = "right on the image and under each of: " + "; ".join(a.protocol for a in main)
    for curve in ("linf", "l2"):
        if groups[curve]:
            clean = {"label": "0", "x": 0.0, "accuracy": record.metrics["accuracy"]}
            record.curves[curve] = [clean, *(_point(attack, columns) for attack in groups[curve])]
    record.checks = attack_checks([a for group in groups.values() for a in group], columns)
    record.warnings = clean_warnings(columns) + attack_warnings(main, record)
    record.columns = without_checks(columns)
    record.attack_steps, record.attack_steps_per_second, record.seconds = rate.steps, rate.per_second, seconds
    return record


def without_checks(columns: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the columns but those that were only there to be checked."""
    endings = ("_linf", "_l2", "_lowest", "_highest")
    return {k: v for k, v in columns.items() if not k.endswith(endings) and k not in ("finite", "softmax")}


def _point(attack: Attack, columns: dict[str, np.ndarray]) -> dict[str, Any]:
    accuracy = proportion(columns[f"{attack.name}_correct"])
    return {"label": attack.radius, "x": attack.eps, "accuracy": accuracy, "protocol": attack.protocol}
