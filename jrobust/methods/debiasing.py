"""Debiasing with two networks: a biased one shows by its losses and gradients what the debiased one should not learn.

Nam et al., "Learning from Failure", NeurIPS 2020 (LfF); Liu et al., "Just Train Twice", ICML 2021 (JTT); Lim et al.,
"BiasAdv: Bias-Adversarial Augmentation for Model Debiasing", CVPR 2023. No bias label is used in training.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from jrobust import keys
from jrobust.methods.network import NetworkMethod
from jrobust.models.network import Prediction
from jrobust.training.method import Batch, Metrics, Variables


class Terms(NamedTuple):
    """What a base method makes of one batch of clean images.

    Attributes:
      loss: R_phi + mean_i w_i CE(x_i; theta), the scalar that is minimised.
      adv_weights: float32[B], constants: w_adv,i / beta, how much theta is to learn from a bias-adversarial image.
      state: the state after the forward passes.
      metrics: scalars for the log.
    """

    loss: jax.Array
    adv_weights: jax.Array
    state: dict[str, Any]
    metrics: Metrics


@dataclasses.dataclass(frozen=True)
class Debiasing(NetworkMethod):
    """A method with a debiased network theta, which is deployed, and a biased one phi, of the same architecture.

    Parameters and state are dicts with the keys `debiased` and `biased`, so that one optimizer step updates both. Their
    losses are added: R_theta depends on phi through constants only, hence the order of the updates does not matter.
    """

    def init(self, key: jax.Array, batch: Batch) -> Variables:
        """Return two fresh networks, each from a key of its own."""
        del batch
        debiased, biased = (Variables(*self.classifier.init(k)) for k in jax.random.split(key))
        return Variables(
            {"debiased": debiased.params, "biased": biased.params}, {"debiased": debiased.state, "biased": biased.state}
        )

    def debiased(self, variables: Variables) -> Variables:
        """Return theta with its batch statistics."""
        return Variables(variables.params["debiased"], variables.state["debiased"])

    def biased(self, variables: Variables) -> Variables:
        """Return phi with its batch statistics."""
        return Variables(variables.params["biased"], variables.state["biased"])

    def deployed(self, variables: Variables) -> Variables:
        """Return theta, which alone is evaluated and exported."""
        return self.debiased(variables)

    def start_from(self, variables: Variables, load: Callable[[Variables], Variables]) -> Variables:
        """Return the variables with both networks started from what `load` makes of them."""
        debiased, biased = load(self.debiased(variables)), load(self.biased(variables))
        return Variables(
            variables.params | {"debiased": debiased.params, "biased": biased.params},
            variables.state | {"debiased": debiased.state, "biased": biased.state},
        )

    @abc.abstractmethod
    def terms(self, params: Any, state: Any, batch: Batch, key: jax.Array) -> Terms:
        """Return the loss on the clean images and the weights of their adversarial versions."""

    def loss(self, params: Any, state: Any, batch: Batch, key: jax.Array) -> tuple[jax.Array, tuple[Any, Metrics]]:
        """Return the loss of `terms`, the state after its forward passes, and its metrics."""
        terms = self.terms(params, state, batch, key)
        return terms.loss, (terms.state, terms.metrics)

    def forward(self, network: Variables, images: jax.Array, index: jax.Array, key: jax.Array) -> Prediction:
        """Return a train-mode prediction: batch statistics, and dropout drawn from keys of each example."""
        noise = keys.per_example(key, index)
        return self.classifier.apply(network.params, network.state, images, train=True, keys=noise)
