"""FAB, the Fast Adaptive Boundary attack (Croce and Hein 2020): the nearest misclassified point, by linearisation."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jrobust import keys
from jrobust.attacks.hyperplane import smallest_move
from jrobust.attacks.iterative import LogitsFn, Problem, run, select_rows
from jrobust.attacks.losses import ranked_targets
from jrobust.attacks.pgd import AttackResult
from jrobust.attacks.threat import Threat


class FabCarry(NamedTuple):
    """Where B rows are.

    Attributes:
      points: float[B, H, W, C], x_1 of the paper.
      adv_images: float[B, H, W, C], the nearest misclassified point so far; the image itself before there is one.
      norm: float[B], its distance from the image; infinite before there is one, 0 where the image itself is wrong.
      success: bool[B], norm <= eps.
      steps: int32[B], the number of iterations after which it was found.
    """

    points: jax.Array
    adv_images: jax.Array
    norm: jax.Array
    success: jax.Array
    steps: jax.Array


@dataclasses.dataclass(frozen=True)
class FAB:
    """One run of FAB as an `Iterative`: from the image, or from a random point near it.

    With f the difference z_t - z_y linearised at x_1, and d_1 and d_2 the smallest moves of x_1 and of the image x onto
    {f = 0} inside the box (Croce and Hein 2020, Algorithm 1):

        a   = min(|d_1| / (|d_1| + |d_2|), alpha_max)
        x_1 = clip((1 - a) (x_1 + overshoot * d_1) + a (x + overshoot * d_2), 0, 1)
        where x_1 is misclassified (as anything):   keep it if it is the nearest so far;   x_1 = x + backward (x_1 - x)

    An iteration costs a forward and backward pass and a forward pass; untargeted, a backward pass for every class.
    A row goes on after its first success, because the next point may be nearer.

    Attributes:
      norm: "linf" or "l2".
      num_steps: iterations.
      alpha_max, overshoot, backward: numbers of the paper (eta and beta of the official code are the last two).
      targeted: t is the problem's target. Otherwise the class whose plane is nearest to x_1, in every iteration anew.
      random_start: begin at distance eps / 2 in a random direction, for second and further runs. The first needs no
        random numbers.
    """

    norm: str
    num_steps: int = 100
    alpha_max: float = 0.1
    overshoot: float = 1.05
    backward: float = 0.9
    targeted: bool = True
    random_start: bool = False

    def begin(self, logits_fn: LogitsFn, problem: Problem) -> FabCarry:
        """Return the start; images that are wrong as they are count as found, at distance 0."""
        images = points = problem.images
        if self.random_start:
            points = jax.vmap(_half_way, in_axes=(None, 0, 0))(problem.threat, problem.keys, images)
        wrong = jnp.argmax(logits_fn(images), axis=-1) != problem.labels
        norm = jnp.where(wrong, 0, jnp.inf).astype(jnp.promote_types(images.dtype, jnp.float32))
        return FabCarry(points, images, norm, wrong, jnp.zeros(wrong.shape, jnp.int32))

    def advance(self, logits_fn: LogitsFn, problem: Problem, carry: FabCarry, step: jax.Array) -> FabCarry:
        """Return the carry after one more iteration."""
        images, dtype = problem.images, carry.norm.dtype
        x, center = carry.points.astype(dtype), images.astype(dtype)
        linearise = self._linearise_targeted if self.targeted else self._linearise_nearest
        values, normals = jax.lax.stop_gradient(linearise(logits_fn, problem, carry.points))
        normals = jnp.where(jnp.isfinite(normals), normals, 0)  # a lost coordinate must not cost the others

        # Both moves in one batch, and the plane by its value at the two points, which needs no b.
        at_image = values + jnp.sum(normals * (center - x), axis=(1, 2, 3))
        flat, shape = (2 * x.shape[0], -1), x.shape
        moves = smallest_move(
            jnp.concatenate([x, center]).reshape(flat),
            jnp.concatenate([normals, normals]).reshape(flat),
            jnp.concatenate([values, at_image]),
            norm=self.norm,
        )
        lengths = jnp.maximum(_length(moves, self.norm), 1e-8)
        from_x, from_image = jnp.split(lengths, 2)
        alpha = jnp.minimum(from_x / (from_x + from_image), self.alpha_max)[:, None, None, None]
        move, image_move = (m.reshape(shape) for m in jnp.split(moves, 2))
        x = (x + self.overshoot * move) * (1 - alpha) + (center + self.overshoot * image_move) * alpha
        points = jnp.clip(x, 0, 1).astype(images.dtype)  # what is judged and measured is what is returned

        broken = jnp.argmax(logits_fn(points), axis=-1) != problem.labels
        delta = points.astype(dtype) - center
        norm = _length(delta.reshape(shape[0], -1), self.norm)
        nearer = broken & (norm < carry.norm)
        adv_images, norm, steps = select_rows(
            nearer, (points, norm, step + 1), (carry.adv_images, carry.norm, carry.steps)
        )
        back = (center + self.backward * delta).astype(images.dtype)
        # No tolerance: a point just outside the ball is no success, as in the official code.
        return FabCarry(select_rows(broken, back, points), adv_images, norm, norm <= _eps(problem.threat, dtype), steps)

    def finish(self, problem: Problem, carry: FabCarry) -> AttackResult:
        """Return the nearest misclassified points; `loss` is their distance, also where that is more than eps."""
        adv_images = select_rows(carry.success, carry.adv_images, problem.images)
        return AttackResult(adv_images, carry.success, carry.norm, carry.steps)

    def _linearise_targeted(self, logits_fn: LogitsFn, problem: Problem, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Return z_t - z_y and its gradient: float[B], float[B, H, W, C]."""

        def total(x: jax.Array) -> tuple[jax.Array, jax.Array]:
            logits = logits_fn(x)
            logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
            chosen = jnp.stack([problem.targets, problem.labels], axis=-1)
            target, true = jnp.moveaxis(jnp.take_along_axis(logits, chosen, axis=-1), -1, 0)
            return jnp.sum(target - true), target - true

        gradient, values = jax.grad(total, has_aux=True)(x)
        return values, gradient.astype(values.dtype)

    def _linearise_nearest(self, logits_fn: LogitsFn, problem: Problem, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Return the same for the class whose plane is nearest: |z_k - z_y| / |w|, in the norm dual to the attack's."""
        logits, pullback = jax.vjp(logits_fn, x)
        classes = jnp.eye(logits.shape[-1], dtype=logits.dtype)
        rows = (logits.shape[-1], *logits.shape)
        gradients = jax.vmap(lambda k: pullback(k)[0])(jnp.broadcast_to(classes[:, None], rows))
        dtype = jnp.promote_types(logits.dtype, jnp.float32)
        logits, gradients = logits.astype(dtype), gradients.astype(dtype)
        own, row = problem.labels, jnp.arange(x.shape[0])
        values, normals = logits - logits[row, own][:, None], gradients - gradients[own, row]  # [B, K], [K, B, ...]
        flat = normals.reshape(*normals.shape[:2], -1)
        steepness = jnp.sum(jnp.abs(flat), -1) if self.norm == "linf" else jnp.sqrt(jnp.sum(flat**2, -1))
        distance = jnp.abs(values) / (1e-12 + steepness.T)
        distance = jnp.where(jnp.arange(classes.shape[0]) == own[:, None], jnp.inf, distance)
        nearest = jnp.argmin(jnp.nan_to_num(distance, nan=jnp.inf, posinf=jnp.inf), axis=-1)
        return values[row, nearest], normals[nearest, row]


def fab(
    logits_fn: LogitsFn,
    images: jax.Array,
    labels: jax.Array,
    key: jax.Array | None = None,
    *,
    threat: Threat,
    num_targets: int = 9,
    num_steps: int = 100,
    restarts: int = 1,
    targeted: bool = True,
    index: jax.Array | None = None,
) -> AttackResult:
    """Look for the smallest change that makes each image misclassified, and say whether it is inside the ball.

    Every target and restart of every image is a row of one batch: num_targets * B rows at a time, and in memory.

    Args:
      logits_fn: images float[B, H, W, C] -> logits float[B, K].
      images: float[B, H, W, C] in [0, 1].
      labels: int[B].
      key: a typed PRNG key; needed for restarts only, the first run draws nothing.
      threat: `linf(eps)` or `l2(eps)`; eps decides on success and on how far away restarts begin, not on the search.
      num_targets: aim at the classes of ranks 2 .. num_targets + 1 of the clean logits, one after the other.
      num_steps: iterations a run.
      restarts: runs for every target, the second and later ones from random points.
      targeted: False linearises against all classes in each iteration instead, which costs K backward passes.
      index: int32[B], the examples' numbers in the data set; 0 .. B-1 by default.

    Returns:
      `AttackResult`: `loss` float[B] is the norm ||adv - x|| of the nearest misclassified point found, whether it lies
      in the ball or not (infinite where none was found; 0 where the image itself is misclassified, which is a success).
      The point itself is in `adv_images` where it lies in the ball; elsewhere the image is.

    Raises:
      InputError: there are not `num_targets` wrong classes.
      ValueError: restarts without a key.
    """
    if restarts > 1 and key is None:
        raise ValueError("restarts of FAB begin at random points: pass key=..., or restarts=1")
    images, key = jax.lax.stop_gradient(images), jax.random.key(0) if key is None else key
    labels, index = labels.astype(jnp.int32), jnp.arange(images.shape[0]) if index is None else index
    targets = ranked_targets(logits_fn(images), num_targets).T if targeted else labels[None]

    def runs(count: int, numbers: range, random_start: bool) -> AttackResult:
        """Run `count` rows an image, as one batch of rows, the image's number running fastest."""
        row_keys = jax.vmap(lambda n: keys.per_example(jax.random.fold_in(key, n), index))(jnp.asarray(numbers))
        problem = Problem(
            jnp.tile(images, (count, 1, 1, 1)),
            jnp.tile(labels, count),
            jnp.tile(targets, (count // targets.shape[0], 1)).reshape(-1),
            row_keys.reshape(-1),
            threat,
        )
        attack = FAB(threat.norm, num_steps, targeted=targeted, random_start=random_start)
        return run(attack, logits_fn, problem)

    each = targets.shape[0]
    found = [runs(each, range(each), random_start=False)]
    if restarts > 1:
        found.append(runs(each * (restarts - 1), range(each, each * restarts), random_start=True))
    rows = jax.tree.map(lambda *a: jnp.concatenate([b.reshape(-1, *images.shape[:1], *b.shape[1:]) for b in a]), *found)
    nearest = jnp.argmin(rows.loss, axis=0)
    return jax.tree.map(lambda a: a[nearest, jnp.arange(images.shape[0])], rows)


def _half_way(threat: Threat, key: jax.Array, image: jax.Array) -> jax.Array:
    """Return a point at distance eps / 2 of one image, cut to the box."""
    dtype = jnp.promote_types(image.dtype, jnp.float32)
    if threat.norm == "linf":
        direction = jax.random.uniform(key, image.shape, dtype, -1, 1)
    else:
        direction = jax.random.normal(key, image.shape, dtype)
    direction = direction / jnp.maximum(_length(direction.reshape(1, -1), threat.norm), 1e-12)
    return jnp.clip(image + 0.5 * _eps(threat, dtype) * direction, 0, 1).astype(image.dtype)


def _length(rows: jax.Array, norm: str) -> jax.Array:
    return jnp.max(jnp.abs(rows), axis=-1) if norm == "linf" else jnp.sqrt(jnp.sum(rows**2, axis=-1))


def _eps(threat: Threat, dtype: jnp.dtype) -> jax.Array:
    return jnp.asarray(threat.eps, dtype)
