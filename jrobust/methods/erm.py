"""Empirical risk minimisation with a biased network beside it: the base of BiasAdv's Algorithm 1.

Without BiasAdv nothing asks for the biased network: ERM alone is `Standard`.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jrobust.attacks import cross_entropy
from jrobust.methods.debiasing import Debiasing, Terms
from jrobust.methods.generalized_cross_entropy import Form, generalized_cross_entropy
from jrobust.methods.network import clean_metrics
from jrobust.training.method import Batch, Variables


@dataclasses.dataclass(frozen=True)
class ERM(Debiasing):
    """Minimise mean CE(x; theta) + mean GCE(x; phi).

    Attributes:
      q, gce_form: of the generalised cross-entropy of phi; see `generalized_cross_entropy`.
    """

    q: float = 0.7
    gce_form: Form = "lff"

    def terms(self, params: Any, state: Any, batch: Batch, key: jax.Array) -> Terms:
        """Return the loss; every adversarial image counts as much as the others."""
        variables, labels, index = Variables(params, state), batch["label"], batch["index"]
        debiased_key, biased_key = jax.random.split(key)
        theta = self.forward(self.debiased(variables), batch["image"], index, debiased_key)
        phi = self.forward(self.biased(variables), batch["image"], index, biased_key)

        metrics = clean_metrics(theta.logits, labels)
        loss = metrics["cross_entropy"]  # R_theta on clean images: w_x = 1
        loss += jnp.mean(generalized_cross_entropy(phi.logits, labels, self.q, self.gce_form))  # R_phi
        metrics["biased_cross_entropy"] = jnp.mean(cross_entropy(phi.logits, labels))
        state = state | {"debiased": theta.batch_stats, "biased": phi.batch_stats}
        return Terms(loss, jnp.ones(labels.shape), state, metrics)
