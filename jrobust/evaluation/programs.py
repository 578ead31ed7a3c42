"""The compiled programs that several suites share: predictions, perturbations, their size.

`logits` is static and the variables are an argument, so a program is compiled once for a model and a batch shape, and
radii and step sizes, which are traced, do not compile it again. Callers set the matmul precision.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jrobust.attacks import Threat, margin, pgd, untargeted

Logits = Callable[..., jax.Array]


class Outcome(NamedTuple):
    """What a classifier says, one entry an example.

    Attributes:
      prediction: int32[B].
      correct: bool[B]; an example with a logit that is not finite counts as wrong.
      margin: float32[B], max_{k != y} z_k - z_y; positive where misclassified.
      finite: bool[B], whether all logits are.
    """

    prediction: jax.Array
    correct: jax.Array
    margin: jax.Array
    finite: jax.Array


class Size(NamedTuple):
    """How large perturbations are, one entry an example: norms, and the range of the perturbed image (NaN shows)."""

    linf: jax.Array
    l2: jax.Array
    lowest: jax.Array
    highest: jax.Array


@functools.partial(jax.jit, static_argnums=0)
def predict(logits: Logits, variables: Any, images: jax.Array, labels: jax.Array) -> Outcome:
    """Return what the classifier says about `images` float32[B, H, W, C]."""
    scores = logits(variables, images)
    prediction = jnp.argmax(scores, axis=-1).astype(jnp.int32)
    finite = jnp.all(jnp.isfinite(scores), axis=-1)
    return Outcome(prediction, (prediction == labels) & finite, margin(scores, labels).astype(jnp.float32), finite)


@functools.partial(jax.jit, static_argnums=0, static_argnames=("num_steps", "random_start", "restarts"))
def craft(
    logits: Logits,
    variables: Any,
    images: jax.Array,
    labels: jax.Array,
    index: jax.Array,
    key: jax.Array,
    threat: Threat,
    step_size: jax.Array,
    *,
    num_steps: int,
    random_start: bool,
    restarts: int = 1,
) -> jax.Array:
    """Return the last iterates of PGD on the cross-entropy, float32[B, H, W, C]; eps and step size may be arrays."""
    objective = untargeted(lambda x: logits(variables, x), labels)
    result = pgd(
        objective,
        images,
        key,
        threat=threat,
        step_size=step_size,
        num_steps=num_steps,
        random_start=random_start,
        restarts=restarts,
        index=index,
    )
    return result.adv_images


@jax.jit
def size(images: jax.Array, adv_images: jax.Array) -> Size:
    """Return how far `adv_images` lie from `images`, and their range."""
    delta = (adv_images - images).reshape(images.shape[0], -1)
    flat = adv_images.reshape(images.shape[0], -1)
    return Size(jnp.abs(delta).max(1), jnp.linalg.norm(delta, axis=1), flat.min(1), flat.max(1))


@functools.partial(jax.jit, static_argnums=0)
def health(logits: Logits, variables: Any, images: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return two bool[B] that betray a useless attack: the input gradient is exactly zero; the logits are a softmax."""
    objective = untargeted(lambda x: logits(variables, x), labels)
    gradient = jax.grad(lambda x: objective(x)[0].sum())(images)
    scores = logits(variables, images)
    probabilities = (scores.min(-1) >= 0) & (jnp.abs(scores.sum(-1) - 1) < 1e-4)
    return jnp.abs(gradient).reshape(images.shape[0], -1).max(1) == 0, probabilities
