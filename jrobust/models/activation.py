"""The one activation of every network: ReLU (path R) or a sharp softplus (path P) over the same variables."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def activation(x: jax.Array, beta: float | jax.Array | None = None) -> jax.Array:
    """Return ReLU(x), or `softplus(beta x) / beta` where `beta` is given.

        R: max(x, 0), with derivative 0 at 0;    P: log(1 + exp(beta x)) / beta,   P(0) = log 2 / beta

    The second derivative of P is at most beta / 4 (at 0), that of R is 0 almost everywhere: losses of input gradients
    need path P. `x` has any shape; the result has its dtype. Path P is computed in at least float32.
    """
    if beta is None:
        return jax.nn.relu(x)
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    # log(1 + exp(50 x)) written out overflows in float32 for x > 1.8; jax.nn.softplus does not.
    return (jax.nn.softplus(beta * wide) / beta).astype(x.dtype)
