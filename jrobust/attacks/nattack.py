"""N Attack (Li et al. 2019): a Gaussian over perturbations, whose mean follows a gradient estimated from logits."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jrobust.attacks.iterative import LogitsFn, Problem, run, select_rows
from jrobust.attacks.losses import margin
from jrobust.attacks.pgd import AttackResult
from jrobust.attacks.threat import Threat
from jrobust.errors import InputError


class NAttackCarry(NamedTuple):
    """Where B rows are.

    Attributes:
      mean: float[B, H, W, C], of the Gaussian, in the space where images are 1/2 tanh(.) + 1/2.
      adv_images: float[B, H, W, C], the point of the mean, as it was tested last.
      margin: float[B], max_{k != y} z_k - z_y there.
      success: bool[B], it is misclassified; such rows do not change any more.
      steps: int32[B], the number of iterations before that test.
    """

    mean: jax.Array
    adv_images: jax.Array
    margin: jax.Array
    success: jax.Array
    steps: jax.Array


@dataclasses.dataclass(frozen=True)
class NAttack:
    """N Attack as an `Iterative` (Algorithm 1 of the paper), Linf.

        c     = atanh((1 - 1e-6) (2 x - 1)),                     e_j ~ N(0, I),   j = 1 .. samples
        x_j   = project(1/2 tanh(c + mean + sigma e_j) + 1/2)
        R_j   = -1/2 clip(z_y(x_j) - max_{k != y} z_k(x_j), 0, 1000)
        mean += learning_rate / (samples sigma) sum_j e_j (R_j - mean R) / (std R + 1e-7)

    from mean = 0.001 N(0, I). Candidates are projected onto the ball around x itself; the official code takes
    1/2 tanh(c) + 1/2 for its centre, which differs by up to 5e-7. Its rewards are differences of log-probabilities: the
    same as those of logits, but for a floor of 1e-30 in some of its scripts. The point of the mean is tested in every
    tenth iteration, as there, and in the last one.

    Attributes:
      num_steps: iterations of `samples + 1` forward passes an image.
      samples: population; all of a batch's at once are in memory.
      sigma: standard deviation of the Gaussian.
      learning_rate: of the mean.
      test_every: iterations between two tests of the mean.
      chunk: samples of an image that pass through the network together; all by default. The result does not depend on
        it.
    """

    num_steps: int = 500
    samples: int = 300
    sigma: float = 0.1
    learning_rate: float = 0.02
    test_every: int = 10
    chunk: int | None = None

    def begin(self, logits_fn: LogitsFn, problem: Problem) -> NAttackCarry:
        """Return the start; images that are wrong as they are count as found."""
        if problem.threat.norm != "linf":
            raise InputError(f"N Attack in {problem.threat.norm}: it is defined for Linf; use Square for L2")
        images = problem.images
        dtype = jnp.promote_types(images.dtype, jnp.float32)
        start_keys = jax.vmap(lambda key: jax.random.fold_in(key, 0))(problem.keys)
        mean = 0.001 * jax.vmap(lambda key: jax.random.normal(key, images.shape[1:], dtype))(start_keys)
        values, wrong = self._judge(logits_fn, problem, images[None])
        return NAttackCarry(mean, images, values[0], wrong[0], jnp.zeros(wrong[0].shape, jnp.int32))

    def advance(self, logits_fn: LogitsFn, problem: Problem, carry: NAttackCarry, step: jax.Array) -> NAttackCarry:
        """Return the carry after one more iteration."""
        return self.attempt(logits_fn, problem, carry, step, self.draw(problem, step))

    def finish(self, problem: Problem, carry: NAttackCarry) -> AttackResult:
        """Return the misclassified points; `loss` is the margin of the mean when it was tested last."""
        adv_images = select_rows(carry.success, carry.adv_images, problem.images)
        return AttackResult(adv_images, carry.success, carry.margin, carry.steps)

    def draw(self, problem: Problem, step: jax.Array) -> jax.Array:
        """Return e of iterations step int32[B]: float[samples, B, H, W, C]."""
        shape, dtype = problem.images.shape[1:], jnp.promote_types(problem.images.dtype, jnp.float32)

        def one(key: jax.Array, step: jax.Array) -> jax.Array:
            return jax.random.normal(jax.random.fold_in(key, step + 1), (self.samples, *shape), dtype)

        return jax.vmap(one, out_axes=1)(problem.keys, step)

    def attempt(
        self, logits_fn: LogitsFn, problem: Problem, carry: NAttackCarry, step: jax.Array, noise: jax.Array
    ) -> NAttackCarry:
        """Return the carry after the iteration in which `noise` was drawn."""
        images = problem.images
        c = jnp.arctanh((1 - 1e-6) * (2 * images.astype(noise.dtype) - 1))
        # The mean passes through the network as one more sample.
        moves = carry.mean + jnp.concatenate([self.sigma * noise, jnp.zeros_like(noise[:1])])
        points = 0.5 * jnp.tanh(c + moves) + 0.5
        points = jax.vmap(jax.vmap(problem.threat.project), in_axes=(0, None))(points, images)
        values, wrong = self._judge(logits_fn, problem, points)

        reward = -0.5 * jnp.clip(-values[:-1], 0, 1000)
        reward = (reward - jnp.mean(reward, 0)) / (jnp.std(reward, 0) + 1e-7)
        ascent = jnp.einsum("jb...,jb->b...", noise, reward, precision="highest")
        mean = carry.mean + self.learning_rate / (self.samples * self.sigma) * ascent
        tested = (step % self.test_every == 0) | (step == self.num_steps - 1)
        adv_images, value, success, steps = select_rows(
            tested,
            (points[-1], values[-1], wrong[-1], step),
            (carry.adv_images, carry.margin, carry.success, carry.steps),
        )
        new = NAttackCarry(mean.astype(carry.mean.dtype), adv_images, value.astype(carry.margin.dtype), success, steps)
        return select_rows(carry.success, carry, new)

    def _judge(self, logits_fn: LogitsFn, problem: Problem, points: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Return margin float[N, B] and misclassification bool[N, B] of points float[N, B, H, W, C]."""

        def judge(points: jax.Array) -> tuple[jax.Array, jax.Array]:
            count = points.shape[0]
            logits = jax.lax.stop_gradient(logits_fn(points.reshape(-1, *points.shape[2:])))
            labels = jnp.tile(problem.labels, count)
            value = jnp.nan_to_num(margin(logits, labels), nan=-jnp.inf, posinf=jnp.inf, neginf=-jnp.inf)
            wrong = jnp.argmax(logits, axis=-1) != labels
            return value.reshape(count, -1), wrong.reshape(count, -1)

        chunk = self.chunk or points.shape[0]
        if chunk >= points.shape[0]:
            return judge(points)
        whole = points.shape[0] // chunk * chunk
        full = jax.lax.map(judge, points[:whole].reshape(-1, chunk, *points.shape[1:]))
        found = jax.tree.map(lambda a: a.reshape(whole, -1), full)
        if whole == points.shape[0]:
            return found
        return jax.tree.map(lambda *a: jnp.concatenate(a), found, judge(points[whole:]))


def nattack(
    logits_fn: LogitsFn,
    images: jax.Array,
    labels: jax.Array,
    key: jax.Array,
    *,
    threat: Threat,
    num_steps: int = 500,
    samples: int = 300,
    sigma: float = 0.1,
    learning_rate: float = 0.02,
    chunk: int | None = None,
    index: jax.Array | None = None,
) -> AttackResult:
    """Attack without gradients, by a Gaussian around each image whose samples are misclassified more and more.

    At its default size it asks 150,000 forward passes of an image: attack a subset.

    Args:
      logits_fn: images float[B, H, W, C] -> logits float[B, K].
      images: float[B, H, W, C] in [0, 1].
      labels: int[B].
      key: a typed PRNG key; example i draws from `fold_in(key, index[i])`.
      threat: `linf(eps)`.
      num_steps: iterations. The loop ends when every image is misclassified.
      samples, sigma, learning_rate, chunk: see `NAttack`.
      index: int32[B], the examples' numbers in the data set; 0 .. B-1 by default.

    Returns:
      `AttackResult`: `loss` float[B] is the margin max_{k != y} z_k - z_y of the point that was tested last, which is
      `adv_images` where successful. An image that is itself misclassified comes back as it is.

    Raises:
      InputError: the threat is not Linf.
    """
    attack = NAttack(num_steps, samples, sigma, learning_rate, chunk=chunk)
    return run(attack, logits_fn, Problem.of(images, labels, threat, key, index=index), until_broken=True)
