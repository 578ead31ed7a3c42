"""Per-example losses that attacks maximise, and the objective they make of a classifier."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

Loss = Callable[[jax.Array, jax.Array], jax.Array]


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Return logsumexp(z) - z_y: float[B] in float32 or wider, for logits float[B, K] and labels int[B]."""
    return optax.softmax_cross_entropy_with_integer_labels(_wide(logits), labels)


def margin(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Return max_{k != y} z_k - z_y: float[B], positive where the example is misclassified."""
    logits = _wide(logits)
    true = jax.nn.one_hot(labels, logits.shape[-1], dtype=bool)
    best_wrong = jnp.max(jnp.where(true, -jnp.inf, logits), axis=-1)
    return best_wrong - jnp.take_along_axis(logits, labels[:, None], axis=-1)[:, 0]


def untargeted(
    logits_fn: Callable[[jax.Array], jax.Array], labels: jax.Array, loss: Loss = cross_entropy
) -> Callable[[jax.Array], tuple[jax.Array, jax.Array]]:
    """Return the objective that drives images away from their labels.

    Args:
      logits_fn: images float[B, H, W, C] in [0, 1] -> logits float[B, K]; the normalisation is inside it.
      labels: int[B].
      loss: what is maximised, per example.

    Returns:
      images -> (loss float[B], success bool[B]); success is misclassification, ties going to the lowest class.
    """

    def objective(images: jax.Array) -> tuple[jax.Array, jax.Array]:
        logits = logits_fn(images)
        return loss(logits, labels), jnp.argmax(logits, axis=-1) != labels

    return objective


def _wide(logits: jax.Array) -> jax.Array:
    return logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
