"""Dropout whose draws belong to the example: no dependence on batch, sharding, jit or pmap."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp


def dropout(x: jax.Array, rate: float, keys: jax.Array | None, layer: int) -> jax.Array:
    """Return `x * mask / keep`, each example's mask drawn from its own key.

        mask_i ~ Bernoulli(keep) from fold_in(keys[i], layer),   keep = 1 - rate (rounded to a multiple of 2^-16)

    Args:
      x: float[B, ...].
      rate: probability of a zero, in [0, 1).
      keys: one typed PRNG key per example, shape [B].
      layer: the layer's number in its network, so that no two layers share a mask.

    Raises:
      ValueError: there is no key, or not one per example.
    """
    if keys is None:
        raise ValueError("dropout in train mode needs `keys`, one typed PRNG key per example")
    if keys.shape != x.shape[:1] or not jnp.issubdtype(keys.dtype, jax.dtypes.prng_key):
        raise ValueError(
            f"dropout got keys of shape {keys.shape} and dtype {keys.dtype}, expected typed keys of shape {x.shape[:1]}"
        )
    threshold = round(rate * 2**16)
    keep = 1.0 - threshold / 2**16
    mask = jax.vmap(lambda key: _uniform16(jax.random.fold_in(key, layer), x.shape[1:]) >= threshold)(keys)
    return jnp.where(mask, x / jnp.asarray(keep, x.dtype), jnp.zeros((), x.dtype))


def _uniform16(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Draw uint16 of `shape` as int32, two from every 32-bit word: half the generator's work, dropout's larger part."""
    count = math.prod(shape)
    words = jax.random.bits(key, (-(-count // 2),), jnp.uint32)
    return jax.lax.bitcast_convert_type(words, jnp.uint16).reshape(-1)[:count].reshape(shape).astype(jnp.int32)
