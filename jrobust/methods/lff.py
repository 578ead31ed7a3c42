"""Learning from failure: the debiased network learns most from what the biased one finds hard (Nam et al. 2020)."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp

from jrobust.attacks import cross_entropy
from jrobust.errors import InputError
from jrobust.methods.debiasing import Debiasing, Terms
from jrobust.methods.generalized_cross_entropy import Form, generalized_cross_entropy
from jrobust.methods.loss_table import LossTable, relative_difficulty
from jrobust.methods.network import clean_metrics
from jrobust.training.method import Batch, Replicated, Variables


@dataclasses.dataclass(frozen=True)
class LfF(Debiasing):
    """Minimise mean W_i CE(x_i; theta) + mean GCE(x_i; phi); W_i is a constant in [0, 1].

    Both means are over the batch: the weights are not normalised by their sum. The losses that W is made of come from
    the train-mode forward passes of this step, before any update.

    Attributes:
      q, gce_form: of the generalised cross-entropy of phi; see `generalized_cross_entropy`.
      weight: "ema_classmax" as the released code: running losses of all training images, each divided by the largest
        of its class (`LossTable`); "instant" as the papers' formula: CE_phi / (CE_phi + CE_theta) of this batch.
      alpha: how much of the running losses stays at a visit.
      num_examples: rows of the table, the size of the training set; 0 with "instant".
    """

    q: float = 0.7
    gce_form: Form = "lff"
    weight: Literal["ema_classmax", "instant"] = "ema_classmax"
    alpha: float = 0.7
    num_examples: int = 0

    def __post_init__(self) -> None:
        if self.weight == "ema_classmax" and self.num_examples < 1:
            raise InputError("method.weight=ema_classmax keeps a loss for each training image: their number is missing")

    def init(self, key: jax.Array, batch: Batch) -> Variables:
        """Return two fresh networks and, for running losses, the empty table `losses`."""
        variables = super().init(key, batch)
        if self.weight == "ema_classmax":
            variables.state["losses"] = Replicated(LossTable.empty(self.num_examples))
        return variables

    def terms(self, params: Any, state: Any, batch: Batch, key: jax.Array) -> Terms:
        """Return the loss; an adversarial image counts as much as its original does not: 1 - W."""
        variables, labels, index = Variables(params, state), batch["label"], batch["index"]
        debiased_key, biased_key = jax.random.split(key)
        theta = self.forward(self.debiased(variables), batch["image"], index, debiased_key)
        phi = self.forward(self.biased(variables), batch["image"], index, biased_key)
        debiased_loss, biased_loss = cross_entropy(theta.logits, labels), cross_entropy(phi.logits, labels)
        state = state | {"debiased": theta.batch_stats, "biased": phi.batch_stats}
        weights, state = self._weigh(state, labels, index, *jax.lax.stop_gradient((debiased_loss, biased_loss)))

        loss = jnp.mean(weights * debiased_loss)  # R_theta on clean images
        loss += jnp.mean(generalized_cross_entropy(phi.logits, labels, self.q, self.gce_form))  # R_phi
        metrics = clean_metrics(theta.logits, labels)
        metrics |= {"biased_cross_entropy": jnp.mean(biased_loss), "weight": jnp.mean(weights)}
        return Terms(loss, 1 - weights, state, metrics)

    def _weigh(
        self, state: dict[str, Any], labels: jax.Array, index: jax.Array, debiased: jax.Array, biased: jax.Array
    ) -> tuple[jax.Array, dict[str, Any]]:
        """Return W float32[B] and the state with the updated table."""
        if self.weight == "instant":
            return relative_difficulty(biased, debiased), state
        rows = self.gathered((index, labels, debiased, biased))  # every device updates the whole table
        table = state["losses"].value.update(*rows, self.alpha)
        weights = table.difficulty(index, labels, self.classifier.num_classes)
        return weights, state | {"losses": Replicated(table)}
