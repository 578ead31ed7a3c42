"""How alike images and texts are: logits from features."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

INITIAL_LOGIT_SCALE = math.log(1 / 0.07)
MAX_LOGIT_SCALE = math.log(100.0)


def unit(features: jax.Array) -> jax.Array:
    """Return float[..., E] divided by its length over the last axis, in at least float32."""
    features = features.astype(jnp.promote_types(features.dtype, jnp.float32))
    return features / jnp.linalg.norm(features, axis=-1, keepdims=True)


def similarity(
    image_features: jax.Array, text_features: jax.Array, logit_scale: jax.Array | float | None = None
) -> jax.Array:
    """Return the logits float32[B, N] of images float[B, E] against texts float[N, E], of any length.

        z = s v t^T,   |v| = |t| = 1,   s = exp(logit_scale),   s = 1 where that is None

    `logit_scale` is the leaf of that name in a model's parameters, about log 100 in the released weights.
    """
    # In full precision: a scale of 100 enlarges the errors of shorter products.
    cosines = jnp.matmul(unit(image_features), unit(text_features).T, precision=jax.lax.Precision.HIGHEST)
    return cosines if logit_scale is None else jnp.exp(logit_scale) * cosines


def clamp(logit_scale: jax.Array) -> jax.Array:
    """Return `logit_scale` with an exponential of at most 100: contrastive training applies it after each step."""
    return jnp.minimum(logit_scale, MAX_LOGIT_SCALE)
