"""The course of a run of AutoAttack: questions to the model, one attack after the other, what came of it."""

from __future__ import annotations

import dataclasses
import hashlib
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jrobust import loops
from jrobust.attacks import model_checks
from jrobust.attacks.autoattack_input import Input
from jrobust.attacks.autoattack_state import PartReport, State, StateError
from jrobust.attacks.ledger import Ledger, Plan
from jrobust.attacks.losses import ranked_targets
from jrobust.attacks.model_checks import Flag, Look
from jrobust.attacks.pool import Examples, Pool
from jrobust.attacks.threat import Threat
from jrobust.attacks.versions import Part
from jrobust.errors import InputError


class AutoAttackResult(NamedTuple):
    """What AutoAttack found, one entry an image, on the host.

    Attributes:
      adv_images: float[N, H, W, C], inside the ball and [0, 1]; the image itself where it stands or was wrong as it is.
      success: bool[N], the image is misclassified; `1 - success.mean()` is the robust accuracy.
      loss: float32[N], max_{k != y} z_k - z_y at `adv_images`.
      steps: int32[N], iterations of the successful run.
      broken_by: str[N], the first attack that broke the image; "clean" where it is wrong as it is, "" where it stands.
      clean_margin: float32[N], the `loss` of the images themselves.
      parts: what each attack did.
      checks: what was verified: answers that differ, largest perturbation, range of values, NaN, ...
      flags: what makes the result doubtful.
      gradients_per_second: gradients of single images, compilation left out; None if too few were taken to tell.
    """

    adv_images: np.ndarray
    success: np.ndarray
    loss: np.ndarray
    steps: np.ndarray
    broken_by: np.ndarray
    clean_margin: np.ndarray
    parts: tuple[PartReport, ...]
    checks: dict[str, Any]
    flags: tuple[Flag, ...]
    gradients_per_second: float | None


class Progress(NamedTuple):
    """Where a run is; `done` and `left` are in forward passes of single images, `left` being the most there can be.

    `state` can be saved, and a later call can go on from it. `part_ended` says that `part` is done.
    """

    part: str
    done: float
    left: float
    robust: int
    state: State
    part_ended: bool


class Run:
    """One call of `autoattack`."""

    def __init__(
        self,
        data: Input,
        threat: Threat,
        key: jax.Array,
        sequence: tuple[Part, ...],
        plan: Plan,
        segment: int | None,
        randomised: bool,
        progress: Callable[[Progress], None] | None,
    ):
        self.data, self.threat, self.key, self.sequence, self.plan = data, threat, key, sequence, plan
        self.segment, self.randomised, self.progress = segment, randomised, progress
        self.done = 0.0
        self.warm = [0.0, 0.0]
        self.state: State
        self.targets: np.ndarray

    def look(self, images: np.ndarray, labels: np.ndarray, numbers: np.ndarray, salt: int = 0) -> Look:
        """Ask the classifier; a randomised one draws other noise with another salt."""
        key = jax.random.fold_in(jax.random.fold_in(self.key, 0), salt) if self.randomised else None
        size = self.plan.bucket(len(self.data.images))  # for few images too: always the same program
        layout: Any = {"size": size, "sharding": self.plan.sharding, "key": key, "numbers": numbers}
        return model_checks.look(self.data.logits, self.data.variables, images, labels, **layout)

    def check_answers(self, *, allow_random: bool) -> tuple[dict[str, Any], list[Flag]]:
        """Ask about the first batch several times."""
        few = slice(0, self.plan.bucket(len(self.data.images)))
        batch = self.data.images[few], self.data.labels[few], self.data.numbers[few]
        first, *others = (self.look(*batch, salt=i) for i in range(model_checks.REPEATS))
        difference = model_checks.unlikeness(first.logits, *(other.logits for other in others))
        if not self.randomised:
            again = model_checks.retraced(self.data.logits, self.data.variables, batch[0][:16])
            difference = max(difference, again)
        recounted = any(other.correct.sum() != first.correct.sum() for other in others)
        differs = difference > model_checks.TOLERANCE or recounted
        checks = {"answers_differ_by": difference}
        if self.randomised:
            text = "the model answers the same for different keys: version 'standard' is the stronger test of it"
            return checks, [] if differs else [Flag("not_random", text)]
        text = f"the model answers differently when asked twice (logits of length 1 differ by {difference:.1g})"
        if differs and not allow_random:
            raise InputError(
                f"{text}: evaluate it without noise (FSR: mask_mode='mean'), or use version='rand' and a function of"
                " images and keys, or allow_random=True"
            )
        return checks, [Flag("random", f"{text}: attacks are misled by the noise")] if differs else []

    def begin(self, clean: Look, state: State | None) -> None:
        """Take up the state, or make one."""
        self.targets = np.asarray(ranked_targets(jnp.asarray(clean.logits), min(9, self.data.classes - 1)))
        identity = _identity(self.data, self.threat, self.key, self.sequence)
        margin = clean.margin.astype(np.float32)
        if state is None:
            state = State.new(identity, margin, clean.correct, len(self.sequence))
        elif state.identity != identity:
            raise StateError("the state is of a run with other images, attacks, radius or key")
        elif not np.allclose(state.clean_margin, margin, rtol=1e-2, atol=1e-2 * _scale(margin), equal_nan=True):
            raise StateError("the state is of another model: its answers to the images differ")
        self.state = state

    def attack(self, number: int) -> None:
        """Run part `number` on the images that stand, or what is left of it."""
        part, state, data = self.sequence[number], self.state, self.data
        attacked = state.begin(number, part)
        targets = self.targets if part.targeted else np.tile(data.labels[:, None], (1, part.variants))
        ledger = Ledger(attacked, state.finished, state.found, drop=self.plan.compact)
        pool = Pool(
            part.attack,
            data.logits,
            data.variables,
            Examples(data.images, data.labels, targets, data.numbers),
            self.threat,
            jax.random.fold_in(self.key, number + 1),
            ledger,
            dataclasses.replace(self.plan, segment=self._segment(part)),
        )
        before = time.perf_counter()
        for ended in pool:
            now = time.perf_counter()
            state.enter(part, ended, now - before)
            before = now
            self.done += part.work(ended.begun, ended.iterations)
            waiting = ledger.waiting()
            self._report(part, part.work(waiting, waiting * part.attack.num_steps + ended.left), part_ended=False)
        if part.passes[1]:
            self.warm[0] += pool.warm[0] * part.passes[1]
            self.warm[1] += pool.warm[1]
        broken = np.flatnonzero(state.broken_by == part.name)
        if len(broken):
            adv_images = np.stack([state.adversarial[i] for i in broken.tolist()])
            state.margin[broken] = self.look(adv_images, data.labels[broken], data.numbers[broken]).margin
        self._report(part, 0.0, part_ended=True)

    def result(self, checks: dict[str, Any], flags: list[Flag]) -> AutoAttackResult:
        """Put everything together."""
        data, state = self.data, self.state
        positions = sorted(state.adversarial)
        adv_images = data.images.copy()
        for position in positions:
            adv_images[position] = state.adversarial[position]
        checks |= model_checks.perturbation_checks(data.images[positions], adv_images[positions], self.threat)
        # Rounding differs between programs, so that an image on the border may fall back.
        back = state.margin[positions] < -1e-3 * _scale(state.clean_margin)
        checks["unconfirmed"] = 0 if self.randomised else int(np.count_nonzero(back))
        square = int(np.count_nonzero(state.broken_by == "square"))
        flags += model_checks.outcome_flags(
            checks, square=square, unconfirmed=checks["unconfirmed"], total=len(data.images)
        )
        return AutoAttackResult(
            adv_images,
            ~state.robust,
            state.margin,
            state.steps,
            state.broken_by,
            state.clean_margin,
            state.reports(self.sequence),
            checks,
            tuple(flags),
            self.warm[0] / self.warm[1] if self.warm[0] and self.warm[1] else None,
        )

    def _report(self, part: Part, left: float, *, part_ended: bool) -> None:
        if self.progress is None:
            return
        robust = int(np.count_nonzero(self.state.robust))
        for later in self.sequence[self.state.part + 1 :]:
            rows = robust * later.variants
            left += later.work(rows, rows * later.attack.num_steps)
        self.progress(Progress(part.name, self.done, left, robust, self.state, part_ended))

    def _segment(self, part: Part) -> int:
        if self.segment is not None:
            return self.segment
        if not part.passes[1]:
            return 50
        return 1 if loops.unrolled() else 10


def _scale(margin: np.ndarray) -> float:
    finite = np.abs(margin[np.isfinite(margin)])
    return float(finite.mean()) if finite.size else 1.0


def _identity(data: Input, threat: Threat, key: jax.Array, sequence: tuple[Part, ...]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for array in (data.images, data.labels, data.numbers, jax.random.key_data(key)):
        digest.update(np.ascontiguousarray(array).tobytes())
    digest.update(repr((data.images.shape, str(data.images.dtype), threat.norm, float(threat.eps), sequence)).encode())
    return digest.hexdigest()
