"""Which wrong class a loss speaks of: one definition for ART, MART and FSR."""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp


def negative_class(
    logits: jax.Array, labels: jax.Array, rule: Literal["runner_up", "argmin"] = "runner_up"
) -> jax.Array:
    """Return argmax (or argmin) of z_k over k != y: int32[B], never y, ties to the lowest index, a constant.

    "runner_up" is the prediction where that is wrong, and the second largest logit where it is right: i* of ART, the
    class of MART's boosted cross-entropy, the mispredicted class y' of FSR.
    """
    logits = jax.lax.stop_gradient(logits)
    true = jax.nn.one_hot(labels, logits.shape[-1], dtype=bool)
    if rule == "argmin":
        return jnp.argmin(jnp.where(true, jnp.inf, logits), axis=-1)
    return jnp.argmax(jnp.where(true, -jnp.inf, logits), axis=-1)
