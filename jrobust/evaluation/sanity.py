"""Suite `sanity`: three checks that the robustness of a model is not an illusion of obfuscated gradients."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jrobust import units
from jrobust.attacks import Threat
from jrobust.attacks.iterative import Iterative
from jrobust.attacks.nattack import NAttack
from jrobust.attacks.square import Square
from jrobust.errors import InputError, unknown
from jrobust.evaluation import programs, sanity_checks, transfer
from jrobust.evaluation.accuracy import joined, keep_valid
from jrobust.evaluation.attack import Attack, ascent, craft, families, length, threat_text, with_memory
from jrobust.evaluation.batches import batches, choose
from jrobust.evaluation.estimates import proportion, worst_case
from jrobust.evaluation.progress import track
from jrobust.evaluation.rate import Rate
from jrobust.evaluation.record import Record
from jrobust.evaluation.subject import Subject

DEFAULTS = {"examples": 64, "batch_size": 64}
BLACK_BOX = ("square", "nattack")
SAMPLES = 30  # of N Attack, in an iteration
LOOKS = 10  # at the unbounded attack


@dataclasses.dataclass(frozen=True)
class Settings:
    """The grids and budgets; radii and step sizes are text in pixel units of [0, 1], the norm is Linf.

    Attributes:
      eps, step_size, random_start: of PGD over numbers of steps. By default those of FSR's protocol.
      iterations: the numbers of steps; the largest is the white-box attack that black-box ones are compared with.
      radii: of PGD over radii; 1 is always there beside them, as the unbounded attack. Steps are a tenth of the radius.
      num_steps: of PGD over radii.
      unbounded_steps: of PGD inside the whole of [0, 1].
      black_box: attacks by queries at `eps`: "square", "nattack".
      queries: of each of them, forward passes an image. N Attack needs thousands to be of any use.
      tolerance: the share of the images (at least one image, unless it is 0) by which an accuracy may rise where it
        should not: single images flip back at the last iterate. The unbounded attack has no tolerance.
    """

    eps: str = "8/255"
    step_size: str = "0.8/255"
    random_start: bool = False
    iterations: tuple[int, ...] = (1, 5, 10, 20, 50, 100, 200)
    radii: tuple[str, ...] = tuple(f"{r}/255" for r in (0, 2, 4, 8, 12, 16, 32, 64, 128, 255))
    num_steps: int = 20
    unbounded_steps: int = 100
    black_box: tuple[str, ...] = ("square",)
    queries: int = 300
    tolerance: float = 0.02

    def __post_init__(self):
        for radius in (self.eps, self.step_size, *self.radii):
            units.parse(radius)
        for name in self.black_box:
            if name not in BLACK_BOX:
                raise unknown("black-box attack", name, BLACK_BOX)
        numbers = (*self.iterations, self.num_steps, self.unbounded_steps, self.queries)
        if not self.iterations or min(numbers) < 1:
            raise InputError(
                f"iterations={self.iterations}, num_steps={self.num_steps}, unbounded_steps={self.unbounded_steps},"
                f" queries={self.queries}: expected numbers of at least 1, and at least one iterations"
            )
        if not 0 <= self.tolerance < 1:
            raise InputError(f"tolerance={self.tolerance}: expected a share of the images, from 0 to less than 1")


def attacks(settings: Settings) -> dict[str, list[Attack]]:
    """Return the white-box attacks: "iterations", "linf" (0 and 1 apart), and the looks at the "unbounded" one."""
    start = settings.random_start
    looks = sorted({-(-settings.unbounded_steps * k // LOOKS) for k in range(1, LOOKS + 1)})
    radii = sorted({units.parse(radius): radius for radius in settings.radii}.items())
    return {
        "iterations": [
            ascent(f"pgd_{k}", "linf", settings.eps, settings.step_size, k, start)
            for k in sorted(set(settings.iterations))
        ],
        "linf": [
            ascent(f"linf_{text}", "linf", text, radius / 10, settings.num_steps, start)
            for radius, text in radii
            if 0 < radius < 1
        ],
        "unbounded": [ascent(f"unbounded_{k}", "linf", "1", "0.1", k, start) for k in looks],
    }


def run(
    subject: Subject,
    source: Any,
    settings: Settings | None = None,
    *,
    against: Sequence[Subject] = (),
    batch_size: int = 64,
    examples: int = 64,
    seed: int = 0,
    progress: bool = True,
    mesh: jax.sharding.Mesh | None = None,
) -> Record:
    """Run the checks of Kim et al. 2023 (FSR), supplementary, section 3, on a small sample (after Athalye et al. 2018).

        white_box_beats_black_box   no black-box attack leaves fewer images right than PGD of the most steps
        more_steps_never_help       accuracy does not rise with the steps of PGD, from 0 on
        larger_eps_never_helps      accuracy does not rise with the radius, from 0 to 1
        unbounded_reaches_zero      no image withstands PGD of radius 1, steps of a tenth of it

    In the first three a rise by `tolerance` of the images is allowed, between any two points of a curve, not neighbours
    only; a rise of the third check's last point counts too. An image withstands the unbounded attack if it is right at
    the start and at each of ten looks on the way. Everywhere else the prediction on the last iterate counts, and
    misclassified images count as wrong.

    Black-box attacks: those by queries that `black_box` names, and for every model in `against` PGD and DI-FGSM on it.

    Args:
      subject: the model.
      source: the images.
      settings: the grids and budgets.
      against: models from which images are transferred; they take the same images and have the same classes.
      batch_size, examples, seed, progress, mesh: as in the robustness suite.

    Returns:
      A record whose `checks` are True, False or None (nothing to compare with), with `tables["checks"]` for readers,
      the curves "iterations" and "linf" (Figure S2 there), and a warning for each check that failed.
    """
    settings = settings or Settings()
    if against:
        transfer.checked([subject, *against])
    begin, rate, groups = time.perf_counter(), Rate(), attacks(settings)
    order, members = choose(source, examples), _members(subject, against, settings, groups, jax.random.key(seed))
    rows = []
    with (
        jax.default_matmul_precision("highest"),
        track("sanity", len(order) * sum(member.cost for member in members), progress) as advance,
    ):
        for batch in batches(source, batch_size, order, mesh):
            count = int(np.sum(np.asarray(batch["valid"])))
            columns = {"index": batch["index"], "label": batch["label"], "correct": _right(subject, batch)}
            for member in members:
                with rate.timed(member.program, count * member.steps):
                    found = jax.block_until_ready(member.craft(batch))
                for name, images in zip(member.names, found, strict=True):
                    columns[f"{name}_correct"] = _right(subject, batch, images)
                advance(count * member.cost)
            rows.append(keep_valid(batch, columns))
    columns = joined(rows)
    looks = [columns.pop(f"{attack.name}_correct") for attack in groups["unbounded"]]
    columns["unbounded_correct"] = worst_case([columns["correct"], *looks])
    record = Record.of("sanity", subject, source, examples=len(order), seed=seed, columns=columns)
    record.settings, record.threat = dataclasses.asdict(settings), threat_text("linf", settings.eps)
    _fill(record, settings, groups, {name: text for m in members for name, text in m.black_box.items()})
    record.attack_steps, record.attack_steps_per_second = rate.steps, rate.per_second
    record.seconds = time.perf_counter() - begin
    return record


def failures(records: Sequence[Record]) -> list[str]:
    """Return a line for each record of this suite in which a check failed: "sanity failed: ...".

    What the commands end with, in status 1, after everything is written.
    """
    lines = []
    for record in records:
        if record.suite == "sanity" and any(passed is False for passed in record.checks.values()):
            failed = [
                f"{words} ({found})" for words, result, found in record.tables["checks"]["rows"] if result == "failed"
            ]
            lines.append(f"sanity failed: {'; '.join(failed)}")
    return lines


class _Member(NamedTuple):
    """Attacks that run together on a batch: what they cost an image, and the images of each."""

    names: list[str]
    craft: Callable[[dict[str, Any]], list[jax.Array]]
    program: tuple
    steps: int  # with a gradient
    cost: int
    black_box: dict[str, str]  # name -> protocol


def _members(
    subject: Subject, against: Sequence[Subject], settings: Settings, groups: dict[str, list[Attack]], key: jax.Array
) -> list[_Member]:
    members = []

    def add(model: Subject, family: list[Attack]) -> None:
        black_box = {} if model is subject else {a.name: f"{a.protocol}, crafted on {model.name}" for a in family}
        steps = family[-1].num_steps
        names = [attack.name for attack in family]
        craft_on = functools.partial(_craft, model, family, key)
        members.append(_Member(names, craft_on, (model.name, family[0].method), steps, steps, black_box))

    for family in families([attack for group in groups.values() for attack in group]):
        add(subject, family)
    for model in against:
        for attack in _transferred(settings, model.name):
            add(model, [attack])
    for name in settings.black_box:
        title = {"square": "Square", "nattack": "N Attack"}[name]
        protocol = f"{title}, {settings.queries} queries, {threat_text('linf', settings.eps)}"
        search = functools.partial(_by_queries, subject, settings, name, key)
        members.append(_Member([name], search, (name,), 0, settings.queries, {name: protocol}))
    return members


def _transferred(settings: Settings, model: str) -> list[Attack]:
    """Return PGD, and DI-FGSM with the steps of torchattacks: ten, each a quarter of the radius."""
    eps, steps = settings.eps, settings.num_steps
    quarter = length(units.parse(eps) / 4, "linf")
    return [
        ascent(f"pgd from {model}", "linf", eps, settings.step_size, steps, settings.random_start),
        with_memory("di_fgsm", f"di_fgsm from {model}", "linf", eps, quarter, 10),
    ]


def _craft(model: Subject, family: list[Attack], key: jax.Array, batch: dict[str, Any]) -> list[jax.Array]:
    return craft(model, batch, family, key)


def _by_queries(
    subject: Subject, settings: Settings, name: str, key: jax.Array, batch: dict[str, Any]
) -> list[jax.Array]:
    attack: Iterative = Square("linf", settings.queries)
    if name == "nattack":
        attack = NAttack(num_steps=max(1, settings.queries // (SAMPLES + 1)), samples=SAMPLES)
    images, threat = batch["image"], Threat("linf", jnp.float32(units.number(settings.eps)))
    arguments = (subject.logits, subject.variables, images, batch["label"], batch["index"], key, threat)
    return [programs.search(*arguments, attack)]


def _right(subject: Subject, batch: dict[str, Any], images: jax.Array | None = None) -> jax.Array:
    images = batch["image"] if images is None else images
    return programs.predict(subject.logits, subject.variables, images, batch["label"]).correct


def _fill(record: Record, settings: Settings, groups: dict[str, list[Attack]], black_boxes: dict[str, str]) -> None:
    """Enter metrics, curves, checks, their table and their warnings."""
    columns, strongest = record.columns, groups["iterations"][-1]
    looked = f"right at all of {LOOKS} looks up to step {settings.unbounded_steps}"
    protocols = {strongest.name: strongest.protocol} | black_boxes
    protocols["unbounded"] = f"PGD on cross-entropy, Linf 1, step 0.1, {looked}"
    record.metrics["accuracy"], record.protocols["accuracy"] = proportion(columns["correct"]), "images as they are"
    for name, protocol in protocols.items():
        record.metrics[name], record.protocols[name] = proportion(columns[f"{name}_correct"]), protocol
    clean = {"label": "0", "x": 0.0, "accuracy": record.metrics["accuracy"], "protocol": "images as they are"}
    steps = [_point(columns, a, str(a.num_steps), a.num_steps) for a in groups["iterations"]]
    radii = [_point(columns, a, a.radius, a.eps) for a in groups["linf"]]
    whole = next((text for text in settings.radii if units.parse(text) == 1), "1")
    last = {"label": whole, "x": 1.0, "accuracy": record.metrics["unbounded"], "protocol": protocols["unbounded"]}
    record.curves = {"iterations": [clean, *steps], "linf": [clean, *radii, last]}

    allowed = sanity_checks.allowed_rise(settings.tolerance, record.examples)
    right = {name: int(columns[f"{name}_correct"].sum()) for name in protocols}
    names = {strongest.name: f"PGD of {strongest.num_steps} steps"} | {
        name: f"{name} of {settings.queries} queries" if name in settings.black_box else name for name in black_boxes
    }
    checks = [
        sanity_checks.white_box_is_strongest(
            (names[strongest.name], right[strongest.name]), {names[name]: right[name] for name in black_boxes}, allowed
        ),
        sanity_checks.never_rises("more_steps_never_help", _counts(record, "iterations", "{} steps"), allowed),
        sanity_checks.never_rises("larger_eps_never_helps", _counts(record, "linf", "radius {}"), allowed),
        sanity_checks.reaches_zero(right["unbounded"], record.examples, settings.unbounded_steps),
    ]
    sanity_checks.enter(record, checks)
    if not columns["correct"].any():
        record.warnings.append("no image of the sample is classified correctly, so the checks say nothing")


def _counts(record: Record, curve: str, label: str) -> list[tuple[str, int]]:
    points = record.curves[curve]
    return [(label.format(p["label"]), round(p["accuracy"].value * record.examples)) for p in points]


def _point(columns: dict[str, np.ndarray], attack: Attack, label: str, x: float) -> dict[str, Any]:
    accuracy = proportion(columns[f"{attack.name}_correct"])
    return {"label": label, "x": float(x), "accuracy": accuracy, "protocol": attack.protocol}
