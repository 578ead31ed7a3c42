"""Adversarial training: cross-entropy on the images that PGD makes of the batch."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp

from jrobust import keys
from jrobust.attacks import cross_entropy, linf, pgd
from jrobust.methods.network import NetworkMethod
from jrobust.training.method import Batch, Metrics


@dataclasses.dataclass(frozen=True)
class Adversarial(NetworkMethod):
    """Minimise max_{||x' - x||_inf <= eps} CE(x') (Madry et al. 2018), the maximum found by PGD from a random start.

    Attributes:
      eps, step_size: in pixel units of [0, 1].
      num_steps: gradient steps of the attack.
      batch_norm: of the attack: "eval" uses the running statistics and no dropout (each image is attacked alone),
        "train" batch statistics, as the released CUB code of ART. Neither moves the running statistics.
    """

    eps: float
    step_size: float
    num_steps: int
    batch_norm: Literal["eval", "train"] = "eval"

    def loss(self, params: Any, state: Any, batch: Batch, key: jax.Array) -> tuple[jax.Array, tuple[Any, Metrics]]:
        """Return mean CE(x'), the batch statistics after the forward pass on x', and metrics on x'."""
        images, labels, index = batch["image"], batch["label"], batch["index"]
        attack_key, noise_key, dropout_key = jax.random.split(key, 3)

        frozen = jax.lax.stop_gradient(params)  # no weight gradient is even traced inside the attack

        def objective(x: jax.Array, step: jax.Array) -> tuple[jax.Array, jax.Array]:
            noise = keys.per_example(jax.random.fold_in(noise_key, step), index)
            out = self.classifier.apply(frozen, state, x, train=self.batch_norm == "train", keys=noise)
            return cross_entropy(out.logits, labels), step + 1

        adv_images = pgd(
            objective,
            images,
            attack_key,
            threat=linf(self.eps),
            step_size=self.step_size,
            num_steps=self.num_steps,
            index=index,
            state=jnp.int32(0),
        ).adv_images
        out = self.classifier.apply(params, state, adv_images, train=True, keys=keys.per_example(dropout_key, index))
        loss = jnp.mean(cross_entropy(out.logits, labels))
        accuracy = jnp.mean(jnp.argmax(out.logits, -1) == labels)
        return loss, (out.batch_stats, {"cross_entropy": loss, "train_accuracy": accuracy})
