"""Auto-PGD (Croce and Hein 2020, Alg. 1): gradient ascent with momentum that halves its own step size.

Numbers and order of operations are those of the official AutoAttack, whose iterates it reproduces from the same start.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jrobust.attacks import losses
from jrobust.attacks.iterative import LogitsFn, Problem, select_rows
from jrobust.attacks.pgd import AttackResult
from jrobust.attacks.threat import Threat
from jrobust.errors import InputError, unknown

LOSSES: dict[str, losses.TargetedLoss] = {
    "ce": lambda logits, labels, targets: losses.cross_entropy(logits, labels),
    "dlr": lambda logits, labels, targets: losses.dlr(logits, labels),
    "targeted_ce": losses.targeted_cross_entropy,
    "targeted_dlr": losses.targeted_dlr,
}
MOMENTUM = 0.75  # the share of the new direction in a step; the rest repeats the step before


class Carry(NamedTuple):
    """Where the rows of an attack are; six image buffers.

    Attributes:
      x, x_old: float[B, H, W, C], the iterate and the one before it.
      gradient: of the loss at x.
      x_best, gradient_best, loss_best: of the highest loss met.
      adv_images: the last misclassified iterate; meaningless where `success` is False.
      success: bool[B], whether an iterate was misclassified.
      best_success: bool[B], whether x_best is misclassified.
      steps, best_steps: int32[B], iterations that led to adv_images and to x_best.
      step_size: float[B], in units of eps: 2, 1, 1/2, ...
      loss: float[B], at the last iterate; 0 at the beginning, see `begin`.
      increases: int32[B], how often the loss rose since the last checkpoint.
      loss_checked: float[B], loss_best at the last checkpoint.
      reduced: bool[B], whether the step size was halved there.
    """

    x: jax.Array
    x_old: jax.Array
    gradient: jax.Array
    x_best: jax.Array
    gradient_best: jax.Array
    loss_best: jax.Array
    adv_images: jax.Array
    success: jax.Array
    best_success: jax.Array
    steps: jax.Array
    best_steps: jax.Array
    step_size: jax.Array
    loss: jax.Array
    increases: jax.Array
    loss_checked: jax.Array
    reduced: jax.Array


@dataclasses.dataclass(frozen=True)
class APGD:
    """One run of Auto-PGD for every row; see `jrobust.attacks.apgd_runs` for whole attacks.

        v_i     = P(x_i + eta d(g_i)),   d(g) = sign(g) for Linf, g / (||g||_2 + 1e-12) for L2
        x_{i+1} = P(x_i + a (v_i - x_i) + (1 - a) (x_i - x_{i-1})),   a = 1 for i = 0, else 0.75

    with P the projection on the ball, then on [0, 1]. At the checkpoints of `schedule` eta, 2 eps at first, is halved
    and the run goes on from the best point, where in the window the loss rose in no more than a share rho of its steps,
    or where eta was not halved at the last checkpoint and the best loss has not changed since.

    Attributes:
      loss: "ce" and "dlr", or "targeted_dlr" and "targeted_ce", which use the problem's targets.
      norm: "linf" or "l2", the same as that of the problem's threat.
      num_steps: iterations; a run costs one gradient more.
      rho: see above.
      eot: where positive, the classifier is randomised: `logits_fn(images, keys)`. Gradients are means over so many
        draws; as in the official code losses and predictions are those of the last one.
      random_start: begin on the surface of the ball (Linf: in its widest coordinate) instead of at the image.
      select: what is returned: the last misclassified iterate ("any_adv") or the one of highest loss ("best_loss").
    """

    loss: str = "ce"
    norm: Literal["linf", "l2"] = "linf"
    num_steps: int = 100
    rho: float = 0.75
    eot: int = 0
    random_start: bool = True
    select: Literal["any_adv", "best_loss"] = "any_adv"

    def __post_init__(self) -> None:
        if self.loss not in LOSSES:
            raise unknown("loss", self.loss, LOSSES)
        if self.select not in ("any_adv", "best_loss"):
            raise unknown("select", self.select, ("any_adv", "best_loss"))
        if self.num_steps < 0 or self.eot < 0:
            raise InputError(f"num_steps={self.num_steps}, eot={self.eot}: expected numbers that are not negative")

    def begin(self, logits_fn: LogitsFn, problem: Problem, start: jax.Array | None = None) -> Carry:
        """Return the carry at the starts: `start`, projected, or a random one, or the images themselves."""
        threat, images = problem.threat, problem.images
        if threat.norm != self.norm:
            raise ValueError(f"an attack in {self.norm} on a ball in {threat.norm}")
        if start is None and self.random_start:
            start = jax.vmap(functools.partial(_random_start, threat))(_fold(problem.keys, 0), images)
        # An image is its own projection, to the bit.
        x = images if start is None else jax.vmap(threat.project)(jax.lax.stop_gradient(start), images)
        loss, wrong, gradient = self._evaluate(logits_fn, problem, x, jnp.zeros_like(problem.labels))
        count = jnp.zeros(problem.labels.shape, jnp.int32)
        return Carry(
            x=x,
            x_old=x,
            gradient=gradient,
            x_best=x,
            gradient_best=gradient,
            loss_best=loss,
            adv_images=x,
            success=wrong,
            best_success=wrong,
            steps=count,
            best_steps=count,
            step_size=jnp.full_like(loss, 2),
            # The official code compares the first loss with an entry of its record that is still empty: with 0, not
            # with the loss of the start. For the cross-entropy that always counts as a rise.
            loss=jnp.zeros_like(loss),
            increases=count,
            loss_checked=loss,
            reduced=jnp.ones_like(wrong),
        )

    def advance(self, logits_fn: LogitsFn, problem: Problem, carry: Carry, step: jax.Array) -> Carry:
        """Return the carry after one more iteration of every row."""
        x = self._move(problem, carry, step)
        loss, wrong, gradient = self._evaluate(logits_fn, problem, x, step + 1)

        adv_images, steps = select_rows(wrong, (x, step + 1), (carry.adv_images, carry.steps))
        best = carry.x_best, carry.gradient_best, carry.loss_best, carry.best_success, carry.best_steps
        best = select_rows(loss > carry.loss_best, (x, gradient, loss, wrong, step + 1), best)
        x_best, gradient_best, loss_best, best_success, best_steps = best

        increases = carry.increases + (loss > carry.loss)
        window = jnp.asarray(schedule(self.num_steps))[step]
        check = window > 0
        oscillates = increases <= self.rho * window
        stuck = ~carry.reduced & (carry.loss_checked >= loss_best)
        reduce = check & (oscillates | stuck)
        # Back to the best point, but x_old stays: the next momentum is x_best less the iterate before this one.
        x, gradient = select_rows(reduce, (x_best, gradient_best), (x, gradient))
        return Carry(
            x=x,
            x_old=carry.x,
            gradient=gradient,
            x_best=x_best,
            gradient_best=gradient_best,
            loss_best=loss_best,
            adv_images=adv_images,
            success=carry.success | wrong,
            best_success=best_success,
            steps=steps,
            best_steps=best_steps,
            step_size=jnp.where(reduce, carry.step_size / 2, carry.step_size),
            loss=loss,
            increases=jnp.where(check, 0, increases),
            loss_checked=jnp.where(check, loss_best, carry.loss_checked),
            reduced=jnp.where(check, reduce, carry.reduced),
        )

    def finish(self, problem: Problem, carry: Carry) -> AttackResult:
        """Return what was found; `loss` is the highest one met, whatever iterate is returned."""
        if self.select == "best_loss":
            return AttackResult(carry.x_best, carry.best_success, carry.loss_best, carry.best_steps)
        adv_images, steps = select_rows(
            carry.success, (carry.adv_images, carry.steps), (problem.images, jnp.zeros_like(carry.steps))
        )
        return AttackResult(adv_images, carry.success, carry.loss_best, steps)

    def _move(self, problem: Problem, carry: Carry, step: jax.Array) -> jax.Array:
        threat, images = problem.threat, problem.images
        project = jax.vmap(lambda point, image: threat.project(point, image, floor=1e-12))
        wide = carry.loss.dtype  # images may be bfloat16
        x, x_old = carry.x.astype(wide), carry.x_old.astype(wide)
        length = _per_row(carry.step_size * jnp.asarray(threat.eps, wide))
        direction = jax.vmap(lambda g: threat.ascend(g, floor=1e-12))(carry.gradient)
        v = project(x + length * direction, images).astype(wide)
        a = _per_row(jnp.where(step == 0, 1, MOMENTUM).astype(wide))
        return project(x + a * (v - x) + (1 - a) * (x - x_old), images)

    def _evaluate(self, logits_fn: LogitsFn, problem: Problem, x: jax.Array, evaluation: jax.Array) -> tuple:
        """Return loss[B], misclassified[B] and gradient at x; NaN losses are -inf, the worst."""
        wide = jnp.promote_types(x.dtype, jnp.float32)

        def total(x: jax.Array, *draw: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
            logits = logits_fn(x, *draw)
            loss = LOSSES[self.loss](logits, problem.labels, problem.targets)
            return loss.sum(), (loss, jnp.argmax(logits, axis=-1) != problem.labels)

        def differentiate(*draw: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
            gradient, (loss, wrong) = jax.grad(total, has_aux=True)(x, *draw)
            return jnp.where(jnp.isnan(loss), -jnp.inf, loss).astype(wide), wrong, gradient.astype(wide)

        if not self.eot:
            loss, wrong, gradient = differentiate()
        else:
            draws = _fold(_fold(problem.keys, 1), evaluation)

            def add(j: jax.Array, carry: tuple) -> tuple:
                loss, wrong, gradient = differentiate(_fold(draws, j))
                return loss, wrong, carry[2] + gradient

            nothing = jnp.zeros(x.shape[:1], wide), jnp.zeros(x.shape[:1], bool), jnp.zeros(x.shape, wide)
            # Rolled on CPU too: twenty draws unrolled take minutes to compile.
            loss, wrong, gradient = jax.lax.fori_loop(0, self.eot, add, nothing)
            gradient /= self.eot
        return jax.lax.stop_gradient((loss, wrong, gradient.astype(x.dtype)))


@functools.lru_cache
def schedule(num_steps: int) -> np.ndarray:
    """Return int32[num_steps]: the length of the window that ends with iteration i, or 0 where none does.

    The first window takes 22 % of the steps, each further one 3 % less than the one before, and none less than 6 %.

    >>> (np.flatnonzero(schedule(100)) + 1).tolist()
    [22, 41, 57, 70, 80, 87, 93, 99]
    """
    window, least, shrink = (max(int(share * num_steps), 1) for share in (0.22, 0.06, 0.03))
    table, end = np.zeros(num_steps, np.int32), window
    while end <= num_steps:
        table[end - 1] = window
        window = max(window - shrink, least)
        end += window
    return table


def _random_start(threat: Threat, key: jax.Array, image: jax.Array) -> jax.Array:
    """Draw t, uniform in [-1, 1] (Linf) or normal (L2), and return image + eps t / ||t||, as AutoAttack does."""
    wide = jnp.promote_types(image.dtype, jnp.float32)
    if threat.norm == "linf":
        t = jax.random.uniform(key, image.shape, wide, -1, 1)
        t /= jnp.max(jnp.abs(t))
    else:
        t = jax.random.normal(key, image.shape, wide)
        t /= jnp.linalg.norm(t)
    return threat.project(image.astype(wide) + threat.eps * t, image)


def _fold(row_keys: jax.Array, data: jax.Array | int) -> jax.Array:
    data = jnp.broadcast_to(jnp.asarray(data), row_keys.shape)
    return jax.vmap(jax.random.fold_in)(row_keys, data)


def _per_row(values: jax.Array) -> jax.Array:
    return values[:, None, None, None]
