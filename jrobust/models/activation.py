"""The one activation of every network: ReLU (path R) or a sharp softplus (path P) over the same variables."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def activation(x: jax.Array, beta: float | jax.Array | None = None) -> jax.Array:
    """Return ReLU(x), or `softplus(beta x) / beta` where `beta` is given.

        R: max(x, 0), with derivative 0 at 0;    P: log(1 + exp(beta x)) / beta,   P(0) = log 2 / beta

    The second derivative of P is at most beta / 4 (at 0), that of R is 0 almost everywhere: losses of input gradients
    need path P. `x` has any shape; the result has its dtype. Path P is computed in at least float32, and
    `beta` is a constant of derivatives.
    """
    if beta is None:
        return jax.nn.relu(x)
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return _softplus(wide, jnp.asarray(beta, wide.dtype)).astype(x.dtype)


@jax.custom_jvp
def _softplus(x: jax.Array, beta: jax.Array) -> jax.Array:
    # log(1 + exp(50 x)) written out overflows in float32 for x > 1.8; jax.nn.softplus does not.
    return jax.nn.softplus(beta * x) / beta


# JAX's own is exp(beta x - log(1 + exp(beta x))) * beta / beta: the same number, but gradients of gradients then keep
# more arrays (docs/throughput.md, "Second-order steps"). There is none with respect to beta.
_softplus.defjvps(lambda dx, _, x, beta: jax.nn.sigmoid(beta * x) * dx, None)
