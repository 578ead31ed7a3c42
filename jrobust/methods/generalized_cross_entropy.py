"""Generalised cross-entropy, which lets a network grow surer of what it finds easy.

Z. Zhang and M. Sabuncu, "Generalized Cross Entropy Loss for Training Deep Neural Networks with Noisy Labels", 2018.
"""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp

from jrobust.attacks import cross_entropy

Form = Literal["lff", "value"]


def generalized_cross_entropy(logits: jax.Array, labels: jax.Array, q: float, form: Form = "lff") -> jax.Array:
    """Return the loss of each example, float[B], for logits float[B, K] and 0 <= q <= 1.

    "value" is (1 - p_y^q) / q, the cross-entropy in the limit q -> 0 and 1 - p_y at q = 1; its gradient is that of the
    cross-entropy times p_y^q. "lff" is q p_y^q CE with p_y^q held constant, as the released code of LfF has it: its
    gradient is q times that of "value".

    >>> logits, labels = jnp.log(jnp.array([[0.25, 0.75]])), jnp.array([0])
    >>> float(generalized_cross_entropy(logits, labels, 1.0, "value")[0])
    0.75
    """
    loss = cross_entropy(logits, labels)
    if form == "lff":
        return q * jax.lax.stop_gradient(jnp.exp(-q * loss)) * loss
    return loss if q == 0 else -jnp.expm1(-q * loss) / q  # expm1: 1 - p^q would round away for small q
