"""Random keys of single examples, so that a draw depends on the image and not on its batch, shard or device."""

from __future__ import annotations

import jax


def per_example(key: jax.Array, index: jax.Array) -> jax.Array:
    """Return `fold_in(key, index[i])` for every example: typed keys of shape [B] for index int32[B]."""
    return jax.vmap(lambda i: jax.random.fold_in(key, i))(index)
