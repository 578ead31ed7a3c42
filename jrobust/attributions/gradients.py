"""Input gradients, the scores they are taken of, and the saliency maps that metrics and attacks compare."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
import optax

from jrobust import errors

ScoreFn = Callable[[jax.Array], jax.Array]  # images float[B, H, W, C] -> one number an example, float[B]
LogitsFn = Callable[[jax.Array], jax.Array]  # images float[B, H, W, C] in [0, 1] -> logits float[B, K]
Reduce = Literal["sum", "mean"]


def logit_score(logits_fn: LogitsFn, labels: jax.Array) -> ScoreFn:
    """Return the score images -> f_y(x): float[B], the logit of class `labels` int[B], before any softmax."""

    def score(images: jax.Array) -> jax.Array:
        return jnp.take_along_axis(wide(logits_fn(images)), labels[:, None], axis=-1)[:, 0]

    return score


def cross_entropy_score(logits_fn: LogitsFn, labels: jax.Array) -> ScoreFn:
    """Return the score images -> logsumexp(f(x)) - f_y(x): float[B], with respect to class `labels` int[B].

    In float32 its gradient is exactly zero once f_y leads by about 100; `empty_maps` finds such examples.
    """

    def score(images: jax.Array) -> jax.Array:
        return optax.softmax_cross_entropy_with_integer_labels(wide(logits_fn(images)), labels)

    return score


def probability_score(logits_fn: LogitsFn, labels: jax.Array) -> ScoreFn:
    """Return the score images -> softmax(f(x))_y: float[B], the probability of class `labels` int[B]."""

    def score(images: jax.Array) -> jax.Array:
        return jnp.exp(-cross_entropy_score(logits_fn, labels)(images))

    return score


def input_gradient(score_fn: ScoreFn, images: jax.Array) -> jax.Array:
    """Return d score_b / d x_b for every example b: float[B, H, W, C], the shape of `images`.

    Scores are summed, not averaged, so that a gradient does not depend on the batch size. Where a network couples the
    examples of a batch (batch statistics), the terms across examples are included.
    """
    return jax.grad(lambda x: jnp.sum(score_fn(x)))(images)


def saliency(attribution: jax.Array, reduce: Reduce = "sum") -> jax.Array:
    """Return maps of pixel importance: absolute values, channels reduced, scaled so that a map sums to H * W.

        M_p = H W a_p / sum_q a_q,   a_p = sum_c |A_pc|      (or the mean over channels, which gives the same M)

    A constant factor of the attribution cancels, however small (1e-30 included). A map that is zero everywhere stays
    zero, with derivative 0; `empty_maps` flags it. The derivative of |.| at 0 is taken as 0.

    Args:
      attribution: float[B, H, W, C].
      reduce: "sum" (Chen et al. 2019; Ghorbani et al. 2019) or "mean" over channels.

    Returns:
      float32[B, H * W] (or wider), non-negative.
    """
    if reduce not in ("sum", "mean"):
        raise errors.unknown("channel reduction", reduce, ("sum", "mean"))
    attribution = wide(attribution)
    # sign(.) * a and not abs(a): JAX may take the derivative of abs at 0 as 1, and dead pixels are common.
    magnitude = jnp.sign(jax.lax.stop_gradient(attribution)) * attribution
    magnitude = magnitude.sum(-1) if reduce == "sum" else magnitude.mean(-1)
    flat = magnitude.reshape(magnitude.shape[0], -1)
    # M has degree 0 in a, so dividing by a constant changes neither M nor its derivative; it keeps 1 / total**2, which
    # the derivative contains, inside float32.
    peak = jax.lax.stop_gradient(jnp.max(flat, axis=-1, keepdims=True))
    filled = peak > jnp.finfo(flat.dtype).tiny
    scaled = jnp.where(filled, flat / jnp.where(filled, peak, 1), 0)
    total = jnp.where(filled, scaled.sum(-1, keepdims=True), 1)
    return scaled * (flat.shape[-1] / total)


def empty_maps(maps: jax.Array) -> jax.Array:
    """Return bool[B]: which maps float[B, H * W] are zero everywhere, so that ranks and overlaps mean nothing."""
    return jnp.all(maps == 0, axis=-1)


def wide(array: jax.Array) -> jax.Array:
    """Return `array` in float32, or in its own dtype if that is wider."""
    return array.astype(jnp.promote_types(array.dtype, jnp.float32))
