"""Adversarial training: what AT, TRADES and MART share, and AT itself, cross-entropy on the images that PGD makes."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp

from jrobust import keys
from jrobust.attacks import cross_entropy, linf, pgd
from jrobust.attacks.pgd import Objective
from jrobust.methods.network import NetworkMethod, accuracy
from jrobust.models.network import Prediction
from jrobust.training.method import Batch, Metrics


class Terms(NamedTuple):
    """What a base method makes of one batch: its loss, and the forward passes that another method may add losses to.

    Attributes:
      loss: the scalar that is minimised.
      adversarial, clean: train-mode predictions of x' and of x, with intermediates; `clean` is None in AT, which never
        forwards the clean images.
      state: the batch statistics after all forward passes.
      metrics: scalars for the log.
    """

    loss: jax.Array
    adversarial: Prediction
    clean: Prediction | None
    state: Any
    metrics: Metrics


@dataclasses.dataclass(frozen=True)
class AdversarialMethod(NetworkMethod):
    """A method whose images come from sign ascent inside an Linf ball of the network's own logits.

    Attributes:
      eps, step_size: in pixel units of [0, 1].
      num_steps: gradient steps of the attack.
    """

    forwards_clean: ClassVar[bool] = True  # whether `Terms.clean` is there

    eps: float
    step_size: float
    num_steps: int

    @abc.abstractmethod
    def terms(self, params: Any, state: Any, batch: Batch, key: jax.Array) -> Terms:
        """Return the loss and the train-mode forward passes it is made of."""

    def loss(self, params: Any, state: Any, batch: Batch, key: jax.Array) -> tuple[jax.Array, tuple[Any, Metrics]]:
        """Return the loss of `terms`, the batch statistics after its forward passes, and its metrics."""
        terms = self.terms(params, state, batch, key)
        return terms.loss, (terms.state, terms.metrics)

    def forward(self, params: Any, state: Any, images: jax.Array, key: jax.Array, index: jax.Array) -> Prediction:
        """Return a train-mode prediction: batch statistics, and dropout and masks drawn from keys of each example."""
        return self.classifier.apply(
            params,
            state,
            images,
            train=True,
            keys=keys.per_example(key, index),
            mask_mode="sample",
            intermediates=True,
        )

    def frozen_logits(self, params: Any, state: Any) -> Callable[[jax.Array], jax.Array]:
        """Return images -> logits as attacks see the network: running statistics, no noise, weights as constants."""
        frozen = jax.lax.stop_gradient(params)  # no weight gradient is even traced inside the attack
        return lambda images: self.classifier.apply(frozen, state, images, mask_mode="mean").logits

    def ascend(
        self, objective: Objective, images: jax.Array, key: jax.Array | None = None, **options: Any
    ) -> jax.Array:
        """Return what sign ascent on an objective makes of the images, with the numbers of this method."""
        return pgd(
            objective,
            images,
            key,
            threat=linf(self.eps),
            step_size=self.step_size,
            num_steps=self.num_steps,
            **options,
        ).adv_images


def near_start(images: jax.Array, key: jax.Array, index: jax.Array, scale: float) -> jax.Array:
    """Return x + scale N(0, I), where TRADES and MART begin: example i draws from `fold_in(key, index[i])`.

    At x itself the gradient of TRADES' KL is zero up to rounding, so its sign would be noise.
    """
    dtype = jnp.promote_types(images.dtype, jnp.float32)
    noise = jax.vmap(lambda k: jax.random.normal(k, images.shape[1:], dtype))(keys.per_example(key, index))
    return images + scale * noise


@dataclasses.dataclass(frozen=True)
class Adversarial(AdversarialMethod):
    """Minimise max_{||x' - x||_inf <= eps} CE(x') (Madry et al. 2018), the maximum found by PGD from a random start.

    Attributes:
      batch_norm: of the attack: "eval" uses the running statistics and no dropout (each image is attacked alone),
        "train" batch statistics, as the released CUB code of ART. Neither moves the running statistics.
    """

    forwards_clean: ClassVar[bool] = False

    batch_norm: Literal["eval", "train"] = "eval"

    def terms(self, params: Any, state: Any, batch: Batch, key: jax.Array) -> Terms:
        """Return mean CE(x'), and metrics on x'."""
        images, labels, index = batch["image"], batch["label"], batch["index"]
        attack_key, noise_key, forward_key = jax.random.split(key, 3)

        adv_images = self.perturb(params, state, images, labels, index, attack_key, noise_key)
        adv = self.forward(params, state, adv_images, forward_key, index)
        loss = jnp.mean(cross_entropy(adv.logits, labels))
        metrics = {"cross_entropy": loss, "train_accuracy": accuracy(adv.logits, labels)}
        return Terms(loss, adv, None, adv.batch_stats, metrics)

    def perturb(
        self,
        params: Any,
        state: Any,
        images: jax.Array,
        labels: jax.Array,
        index: jax.Array,
        start_key: jax.Array,
        noise_key: jax.Array,
    ) -> jax.Array:
        """Return x'; `noise_key` is used by the dropout of `batch_norm="train"` alone."""
        frozen, frozen_logits = jax.lax.stop_gradient(params), self.frozen_logits(params, state)

        def objective(x: jax.Array, step: jax.Array) -> tuple[jax.Array, jax.Array]:
            if self.batch_norm == "eval":
                return cross_entropy(frozen_logits(x), labels), step + 1
            noise = keys.per_example(jax.random.fold_in(noise_key, step), index)
            out = self.classifier.apply(frozen, state, x, train=True, keys=noise, mask_mode="mean")
            return cross_entropy(out.logits, labels), step + 1

        return self.ascend(objective, images, start_key, index=index, state=jnp.int32(0))
