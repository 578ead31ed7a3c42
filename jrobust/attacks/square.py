"""Square Attack (Andriushchenko et al. 2020): random search with square windows, from the logits alone."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jrobust.attacks import windows
from jrobust.attacks.iterative import LogitsFn, Problem, run, select_rows
from jrobust.attacks.losses import margin
from jrobust.attacks.pgd import AttackResult
from jrobust.attacks.threat import Threat
from jrobust.attacks.windows import Proposal

# The share of pixels in a window is p_init times 1, 1/2, 1/4, ...; a step after one of these takes the next.
HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)


class SquareCarry(NamedTuple):
    """Where B rows are.

    Attributes:
      adv_images: float[B, H, W, C], the point of highest margin so far.
      margin: float[B], max_{k != y} z_k - z_y there.
      success: bool[B], it is misclassified; such rows do not change any more.
      steps: int32[B], the number of iterations after which it was found.
    """

    adv_images: jax.Array
    margin: jax.Array
    success: jax.Array
    steps: jax.Array


@dataclasses.dataclass(frozen=True)
class Square:
    """One run of Square as an `Iterative`, on the margin loss.

    Linf (Algorithm 2 of the paper): stripes of x +- eps to begin with; then the pixels of a random window become
    x + eps or x - eps, a sign a channel, where that raises the margin max_{k != y} z_k - z_y. L2 (Algorithm 3) is in
    `jrobust.attacks.bumps`. Windows shrink as `sides` says. An iteration costs a forward pass.

    Windows and signs are drawn by every row for itself. (In the official code the rows of a batch share them in Linf,
    and windows in L2, so that its outcome depends on which images are attacked together, and on how many are left. The
    paper's own code draws them for every image.)

    Attributes:
      norm: "linf" or "l2".
      num_steps: iterations; the start costs two forward passes more, one of them for the image itself.
      p_init: share of the pixels in the first windows.
      rescale_schedule: shrink the windows as a run of 10,000 iterations does, in `num_steps`. AutoAttack does not.
    """

    norm: str
    num_steps: int = 5000
    p_init: float = 0.8
    rescale_schedule: bool = False

    def begin(self, logits_fn: LogitsFn, problem: Problem) -> SquareCarry:
        """Return the start; images that are wrong as they are count as found."""
        return self.begin_at(logits_fn, problem, self.start(problem))

    def advance(self, logits_fn: LogitsFn, problem: Problem, carry: SquareCarry, step: jax.Array) -> SquareCarry:
        """Return the carry after one more iteration."""
        return self.attempt(logits_fn, problem, carry, step, self.draw(problem, step))

    def finish(self, problem: Problem, carry: SquareCarry) -> AttackResult:
        """Return the misclassified points; `loss` is the highest margin found, also where that is negative."""
        adv_images = select_rows(carry.success, carry.adv_images, problem.images)
        return AttackResult(adv_images, carry.success, carry.margin, carry.steps)

    def sides(self, height: int, width: int) -> np.ndarray:
        """Return the side of the window in every iteration: int32[num_steps], or [1].

        >>> Square("linf").sides(32, 32)[[0, 10, 11, 51, 201, 501, 1001, 2001, 4001, 4999]]
        array([29, 29, 20, 14, 10,  7,  5,  4,  3,  3], dtype=int32)
        """
        total = max(self.num_steps, 1)
        steps = np.arange(total)
        if self.rescale_schedule:
            steps = np.array([int(step / total * 10_000) for step in steps])
        share = self.p_init / 2.0 ** np.searchsorted(HALVINGS, steps)
        side = np.round(np.sqrt(share * height * width)).astype(np.int32)
        side = np.maximum(side, 1) if self.norm == "linf" else np.maximum(side, 3) // 2 * 2 + 1
        return np.minimum(side, min(height, width)).astype(np.int32)

    def start(self, problem: Problem) -> jax.Array:
        """Return the first points: float[B, H, W, C], vertical stripes in Linf and a grid of bumps in L2."""
        start_keys = jax.vmap(lambda key: jax.random.fold_in(key, 0))(problem.keys)
        shape = problem.images.shape[1:]
        if self.norm == "linf":
            signs = jax.vmap(lambda key: jax.random.rademacher(key, (1, *shape[1:])))(start_keys)
            return _towards(problem, signs)
        return windows.start(start_keys, problem)

    def draw(self, problem: Problem, step: jax.Array) -> Proposal:
        """Return what the rows draw in iterations step int32[B], each from its own key."""
        height, width, channels = problem.images.shape[1:]
        side = jnp.asarray(self.sides(height, width))[step]
        # The last position, height - side, is never drawn, as in the official code; the whole image is at 0.
        positions = jnp.maximum(jnp.stack([height - side, width - side], axis=-1), 1)

        # One call a row: on an accelerator the draws of an iteration would take longer than its arithmetic.
        draw = jax.vmap(lambda key, i: jax.random.uniform(jax.random.fold_in(key, i), (5 + channels,), jnp.float32))
        numbers = draw(problem.keys, step + 1)
        corner, other = ((numbers[:, i : i + 2] * positions).astype(jnp.int32) for i in (0, 2))
        signs = jnp.where(numbers[:, 5:] < 0.5, -1, 1)
        return Proposal(side, corner, signs, other, numbers[:, 4] < 0.5)

    def propose(self, problem: Problem, best: jax.Array, proposal: Proposal) -> jax.Array:
        """Return the points that the proposals make of the best ones: float[B, H, W, C]."""
        if self.norm == "linf":
            inside = windows.window(best.shape, proposal.corner, proposal.side)
            return jnp.where(inside, _towards(problem, proposal.signs[:, None, None, :]), best)
        return windows.propose(problem, best, proposal, tuple(np.unique(self.sides(*best.shape[1:3])).tolist()))

    def begin_at(self, logits_fn: LogitsFn, problem: Problem, start: jax.Array) -> SquareCarry:
        """Return the carry of the points `start`, or of the images where those are misclassified."""
        none = jnp.zeros(problem.labels.shape, jnp.int32)
        clean = _judged(logits_fn, problem, problem.images, none)
        return select_rows(clean.success, clean, _judged(logits_fn, problem, start, none))

    def attempt(
        self, logits_fn: LogitsFn, problem: Problem, carry: SquareCarry, step: jax.Array, proposal: Proposal
    ) -> SquareCarry:
        """Return the carry after the iteration in which `proposal` was drawn."""
        new = _judged(logits_fn, problem, self.propose(problem, carry.adv_images, proposal), step + 1)
        better = (new.margin > carry.margin) | new.success
        return select_rows(better & ~carry.success, new, carry)


def square(
    logits_fn: LogitsFn,
    images: jax.Array,
    labels: jax.Array,
    key: jax.Array,
    *,
    threat: Threat,
    num_queries: int = 5000,
    rescale_schedule: bool = False,
    index: jax.Array | None = None,
) -> AttackResult:
    """Attack without gradients: change random square windows, and keep what lowers the margin of the true class.

    Args:
      logits_fn: images float[B, H, W, C] -> logits float[B, K].
      images: float[B, H, W, C] in [0, 1].
      labels: int[B].
      key: a typed PRNG key; example i draws from `fold_in(key, index[i])`.
      threat: `linf(eps)` or `l2(eps)`.
      num_queries: iterations. The loop ends when every image is misclassified.
      rescale_schedule: see `Square`.
      index: int32[B], the examples' numbers in the data set; 0 .. B-1 by default.

    Returns:
      `AttackResult`: `loss` float[B] is the highest margin max_{k != y} z_k - z_y found, that of `adv_images` where
      successful. An image that is itself misclassified comes back as it is.
    """
    problem = Problem.of(images, labels, threat, key, index=index)
    attack = Square(threat.norm, num_queries, rescale_schedule=rescale_schedule)
    return run(attack, logits_fn, problem, until_broken=True)


def _towards(problem: Problem, signs: jax.Array) -> jax.Array:
    """Return x + eps * signs inside [0, 1]: float[B, H, W, C]."""
    images, threat = problem.images, problem.threat
    moved = images + jnp.asarray(threat.eps, jnp.promote_types(images.dtype, jnp.float32)) * signs
    return jax.vmap(threat.project)(moved, images)


def _judged(logits_fn: LogitsFn, problem: Problem, points: jax.Array, steps: jax.Array) -> SquareCarry:
    logits = jax.lax.stop_gradient(logits_fn(points))
    value = jnp.nan_to_num(margin(logits, problem.labels), nan=-jnp.inf, posinf=jnp.inf, neginf=-jnp.inf)
    # A margin of 0 is misclassified where the other class is the lower one; AutoAttack gives up the search there.
    return SquareCarry(points, value, jnp.argmax(logits, axis=-1) != problem.labels, steps)
