"""One data set of many under the same attacks; what is done is kept, so that a killed run goes on after it."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import jax
import numpy as np

from jrobust.attacks.versions import MAX_TARGETS
from jrobust.evaluation import autoattack
from jrobust.evaluation.accuracy import joined, keep_valid
from jrobust.evaluation.attack import Attack, families
from jrobust.evaluation.autoattack import Settings as Judge
from jrobust.evaluation.batches import batches
from jrobust.evaluation.class_sets import ClassSet
from jrobust.evaluation.kept import Columns, Kept, fingerprint
from jrobust.evaluation.progress import track
from jrobust.evaluation.rate import Rate
from jrobust.evaluation.robustness import attacked, clean, steps_of
from jrobust.evaluation.subject import Subject, replicated

CHUNK = 2048  # images that AutoAttack holds in memory at a time
AUTOATTACK_STEPS = 1000  # what it costs an image, in steps of PGD, roughly: for the time left only
# What is measured of a part beside its columns.
SECONDS, RATE, STEPS, FLAGS = ".seconds", ".images_per_second", ".steps", ".flags"


class Plan(NamedTuple):
    """What is done to every data set: attacks by gradients and, if any, AutoAttack in its version for many classes."""

    attacks: Sequence[Attack]
    autoattack: Judge | None = None

    def judge(self, classes: int) -> Judge | None:
        """Return AutoAttack for so many classes; with fewer than 10 there are no 9 targets, and other attacks."""
        if self.autoattack is None or classes > MAX_TARGETS:
            return self.autoattack
        return dataclasses.replace(self.autoattack, version="few")


class Part(NamedTuple):
    """Work that is done and kept in one piece: the attacks by gradients on a set, or AutoAttack on a piece of it."""

    name: str
    of: ClassSet
    order: np.ndarray
    autoattack: Judge | None
    work: int


@dataclasses.dataclass
class Runner:
    """Runs a plan on data sets, batch by batch and set by set.

    Attributes:
      plan: what is done to each.
      batch_size, seed, mesh: as in the robustness suite.
      kept: where what is done is kept.
      rate: of the attack steps of this run.
      resumed: names of the parts that an earlier run had done.
    """

    plan: Plan
    batch_size: int
    seed: int
    mesh: jax.sharding.Mesh | None
    kept: Kept
    rate: Rate = dataclasses.field(default_factory=Rate)
    resumed: list[str] = dataclasses.field(default_factory=list)

    def parts(self, of: ClassSet, label: str = "") -> list[Part]:
        """Return the work on a data set; `label` tells models apart."""
        name, count = f"{of.title}{label}", len(of.order)
        found = [Part(name, of, of.order, None, count * (1 + sum(steps_of(f) for f in families(self.plan.attacks))))]
        if judge := self.plan.judge(of.classes):
            pieces = np.array_split(of.order, -(-count // CHUNK))
            found += [
                Part(f"{name}-autoattack-{k}", of, piece, judge, len(piece) * AUTOATTACK_STEPS)
                for k, piece in enumerate(pieces)
            ]
        return found

    @contextmanager
    def progress(self, suite: str, parts: Sequence[Part], enabled: bool) -> Iterator[Callable[[float], None]]:
        """Yield what is to be told of work done, all parts but those that are kept being the work."""
        left = sum(part.work for part in parts if self.kept.get(part.name, _about(part)) is None)
        with jax.default_matmul_precision("highest"), track(suite, left, enabled) as advance:
            yield advance

    def measure(
        self, made: Callable[[], Subject], of: ClassSet, advance: Callable[[float], None], label: str = ""
    ) -> Columns:
        """Return the columns of a data set, a line an image, and what was measured of the work (names with a dot).

        `made` returns the subject; it is not called where all is kept.
        """
        model: Subject | None = None
        columns: Columns = {}
        pieces = []
        for part in self.parts(of, label):
            found = self.kept.get(part.name, _about(part))
            if found is not None:
                self.resumed.append(part.name)
            else:
                model = model or replicated(of.model(made()), self.mesh)
                found = (
                    self._gradients(model, part, advance)
                    if not part.autoattack
                    else self._judged(model, part, part.autoattack, advance)
                )
                self.kept.put(part.name, _about(part), found)
            if part.autoattack:
                pieces.append(found)
            else:
                columns = found
        if pieces:
            after = joined([{k: np.atleast_1d(v) for k, v in piece.items()} for piece in pieces])
            for name in (SECONDS, STEPS):
                columns[name] = columns[name] + after.pop(name).sum()
            columns |= after
        return columns

    def _gradients(self, model: Subject, part: Part, advance: Callable[[float], None]) -> Columns:
        begin, rows, own, key = time.perf_counter(), [], Rate(), jax.random.key(self.seed)
        ascents, steps = families(self.plan.attacks), self.rate.steps
        for batch in batches(part.of.source, self.batch_size, part.order, self.mesh):
            count = int(np.sum(np.asarray(batch["valid"])))
            with own.timed("batch", count):
                columns = jax.block_until_ready(clean(model, batch))
                advance(count)
                for family in ascents:
                    program = batch["image"].shape, part.of.classes, family[0].loss
                    with self.rate.timed(program, count * steps_of(family)):
                        columns |= jax.block_until_ready(attacked(model, batch, family, key))
                    advance(count * steps_of(family))
                rows.append(keep_valid(batch, columns))
        seconds = time.perf_counter() - begin
        measured = {SECONDS: seconds, RATE: own.per_second or np.nan, STEPS: self.rate.steps - steps}
        return joined(rows) | {name: np.asarray(value) for name, value in measured.items()}

    def _judged(self, model: Subject, part: Part, settings: Judge, advance: Callable[[float], None]) -> Columns:
        begin = time.perf_counter()
        result, earlier = autoattack.attacked(
            model,
            autoattack.gathered(part.of.source, self.batch_size, part.order),
            settings,
            batch_size=self.batch_size,
            seed=self.seed,
            mesh=self.mesh,
            path=self.kept.path(part.name, _about(part), ".state.npz"),
            advance=lambda share: advance(share * part.work),
        )
        return {
            "autoattack_correct": ~result.success,
            "autoattack_broken_by": result.broken_by,
            FLAGS: np.array([flag.text for flag in result.flags], str),
            SECONDS: np.asarray(earlier + time.perf_counter() - begin),
            STEPS: np.asarray(sum(report.backward for report in result.parts)),
        }


def kept_parts(workdir: str | os.PathLike | None, suite: str, subject: Subject, plan: Plan, seed: int) -> Kept:
    """Return where the parts of a run are kept, told apart by model, attacks and seed."""
    if workdir is None:
        return Kept(None, suite)
    attacks = [[attack.name, attack.protocol] for attack in plan.attacks]
    judge = dataclasses.asdict(plan.autoattack) if plan.autoattack else None
    return Kept(workdir, suite, [fingerprint(subject.variables), subject.dtype, attacks, judge, seed])


def _about(part: Part) -> Any:
    """Return what tells a part from others of its name: which images, and what their classes are called."""
    source, digest = part.of.source, hashlib.sha256(np.ascontiguousarray(part.order).tobytes())
    digest.update(np.ascontiguousarray(source.labels).tobytes())
    prompts = [list(texts) for texts in part.of.prompts] if part.of.prompts is not None else None
    return [source.name, source.split, list(source.image_shape), digest.hexdigest(), prompts]


def split(columns: Columns) -> tuple[Columns, Columns]:
    """Return the columns, a line an image, apart from what was measured of the work."""
    return (
        {name: column for name, column in columns.items() if not name.startswith(".")},
        {name: column for name, column in columns.items() if name.startswith(".")},
    )
