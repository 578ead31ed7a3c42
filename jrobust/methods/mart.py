"""MART: adversarial training that minds misclassified examples more.

Y. Wang, D. Zou, J. Yi, J. Bailey, X. Ma, Q. Gu, "Improving Adversarial Robustness Requires Revisiting Misclassified
Examples", ICLR 2020. "The released code" is the authors' repository; its three small constants are kept, for parity of
the loss.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jrobust.attacks import cross_entropy
from jrobust.methods.adversarial import AdversarialMethod, Terms, near_start
from jrobust.methods.classes import negative_class
from jrobust.methods.network import accuracy
from jrobust.training.method import Batch


@dataclasses.dataclass(frozen=True)
class MART(AdversarialMethod):
    """Minimise BCE(p(x'), y) + lambda KL(p(x) || p(x')) (1 - p_y(x)), x' found by PGD on CE.

    Nothing is detached: the clean prediction receives gradient through the KL and through the weight 1 - p_y(x).

    Attributes:
      kl_weight: lambda.
      start_noise: the ascent begins at x + start_noise N(0, I), cut with [0, 1] as in TRADES.
    """

    kl_weight: float
    start_noise: float = 0.001

    def terms(self, params: Any, state: Any, batch: Batch, key: jax.Array) -> Terms:
        """Return the loss; x is forwarded before x', as in the released code."""
        images, labels, index = batch["image"], batch["label"], batch["index"]
        attack_key, clean_key, adv_key = jax.random.split(key, 3)

        start = near_start(images, attack_key, index, self.start_noise)
        adv_images = self.perturb(params, state, images, labels, start)
        clean = self.forward(params, state, images, clean_key, index)
        adv = self.forward(params, clean.batch_stats, adv_images, adv_key, index)

        boosted = jnp.mean(boosted_cross_entropy(adv.logits, labels))
        robust = jnp.mean(weighted_kl(clean.logits, adv.logits, labels))
        metrics = {
            "boosted_cross_entropy": boosted,
            "kl": robust,
            "clean_accuracy": accuracy(clean.logits, labels),
            "train_accuracy": accuracy(adv.logits, labels),
        }
        return Terms(boosted + self.kl_weight * robust, adv, clean, adv.batch_stats, metrics)

    def perturb(self, params: Any, state: Any, images: jax.Array, labels: jax.Array, start: jax.Array) -> jax.Array:
        """Return x': ascent on the cross-entropy from `start`."""
        logits_fn = self.frozen_logits(params, state)
        return self.ascend(lambda x: cross_entropy(logits_fn(x), labels), images, start=start)


def boosted_cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Return BCE = -log p_y - log(1.0001 - max_{k != y} p_k + 1e-12): float[B] for logits of x'."""
    log_p = _log_softmax(logits)
    wrong = jnp.exp(_at(log_p, negative_class(logits, labels)))
    return -_at(log_p, labels) - jnp.log(1.0001 - wrong + 1e-12)


def weighted_kl(clean_logits: jax.Array, adv_logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Return sum_k p_k (log p_k - log(p'_k + 1e-12)) (1.0000001 - p_y): float[B], p of x and p' of x'."""
    log_p = _log_softmax(clean_logits)
    p, p_adv = jnp.exp(log_p), jnp.exp(_log_softmax(adv_logits))
    return jnp.sum(p * (log_p - jnp.log(p_adv + 1e-12)), -1) * (1.0000001 - _at(p, labels))


def _log_softmax(logits: jax.Array) -> jax.Array:
    return jax.nn.log_softmax(logits.astype(jnp.promote_types(logits.dtype, jnp.float32)))


def _at(values: jax.Array, classes: jax.Array) -> jax.Array:
    return jnp.take_along_axis(values, classes[:, None], axis=-1)[:, 0]
