"""TRADES: natural accuracy and stability of the prediction as two terms of one loss.

H. Zhang, Y. Yu, J. Jiao, E. Xing, L. El Ghaoui, M. Jordan, "Theoretically Principled Trade-off between Robustness and
Accuracy", ICML 2019. "The released code" is the authors' repository.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp

from jrobust.attacks import cross_entropy, kl
from jrobust.methods.adversarial import AdversarialMethod, Terms, near_start
from jrobust.methods.network import accuracy
from jrobust.training.method import Batch


@dataclasses.dataclass(frozen=True)
class TRADES(AdversarialMethod):
    """Minimise CE(x, y) + beta max_{||x' - x||_inf <= eps} KL(p(x) || p(x'))   (Eq. 5), p the softmax of the logits.

    Attributes:
      kl_weight: beta, 1 / lambda of the paper.
      start_noise: the ascent begins at x + start_noise N(0, I), cut with [0, 1]. The released code cuts only after the
        first step, which moves the start of pixels at 0 or 1, and of no others, by about start_noise.
      bn_updates: "two": x and x' are forwarded once each, in this order, and move the running statistics twice.
        "reference": the released code forwards x a third time for the target of the KL. With dropout off the loss is
        the same, and the running statistics move once more.
    """

    kl_weight: float
    start_noise: float = 0.001
    bn_updates: Literal["two", "reference"] = "two"

    def terms(self, params: Any, state: Any, batch: Batch, key: jax.Array) -> Terms:
        """Return Eq. 5; gradients flow through both arguments of the KL, as in the released code."""
        images, labels, index = batch["image"], batch["label"], batch["index"]
        attack_key, clean_key, adv_key, again_key = jax.random.split(key, 4)

        adv_images = self.perturb(params, state, images, near_start(images, attack_key, index, self.start_noise))
        clean = target = self.forward(params, state, images, clean_key, index)
        adv = self.forward(params, clean.batch_stats, adv_images, adv_key, index)
        state = adv.batch_stats
        if self.bn_updates == "reference":
            target = self.forward(params, state, images, again_key, index)
            state = target.batch_stats

        natural = jnp.mean(cross_entropy(clean.logits, labels))
        robust = jnp.mean(kl(target.logits, adv.logits))
        metrics = {
            "cross_entropy": natural,
            "kl": robust,
            "clean_accuracy": accuracy(clean.logits, labels),
            "train_accuracy": accuracy(adv.logits, labels),
        }
        return Terms(natural + self.kl_weight * robust, adv, clean, state, metrics)

    def perturb(self, params: Any, state: Any, images: jax.Array, start: jax.Array) -> jax.Array:
        """Return x': ascent on KL(p(x) || p(x')) from `start`, p(x) held fixed and computed once."""
        logits_fn = self.frozen_logits(params, state)
        clean = logits_fn(images)
        return self.ascend(lambda x: kl(clean, logits_fn(x)), images, start=start)
