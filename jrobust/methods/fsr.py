"""FSR: features separated into robust and non-robust ones and the latter recalibrated, on top of AT, TRADES or MART.

W. J. Kim, Y. Cho, J. Jung, S.-E. Yoon, "Feature Separation and Recalibration for Adversarial Robustness", CVPR 2023.
The module is in `jrobust.models.fsr`; here are the losses of its three auxiliary outputs. docs/fsr.md says what comes
from the paper, what from the released code, and what is ours.

Notation: z the network's logits, p+, p- and p~ the auxiliary logits of the robust, the non-robust and the recalibrated
features, y the label, y' the wrong class of largest z.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, Self

import jax
import jax.numpy as jnp

from jrobust.attacks import cross_entropy, kl
from jrobust.methods.adversarial import AdversarialMethod, Terms
from jrobust.methods.classes import negative_class
from jrobust.methods.network import NetworkMethod
from jrobust.models.classifier import Classifier
from jrobust.models.fsr import Auxiliary
from jrobust.models.network import Prediction
from jrobust.training.method import Batch, Metrics

NonRobust = Literal["mispredicted", "uniform", "entropy_max", "avg_targeted"]
Separation = Literal["learned", "none", "greedy", "random"]


@dataclasses.dataclass(frozen=True)
class FSR(NetworkMethod):
    """Minimise L_base + lambda_sep L_sep + lambda_rec L_rec on the forward passes that the base method makes.

        L_sep = CE(p+, y) + CE(p-, y'),   L_rec = CE(p~, y)     (batch means, averaged over modules)

    Nothing is detached: the network receives gradient from every term. The base method's attack sees z alone.

    Attributes:
      base: AT, TRADES or MART, of the same classifier.
      separation_weight, recalibration_weight: lambda_sep and lambda_rec.
      separation_loss: what p- is driven to; see `non_robust_loss`.
      auxiliary_on: the images whose auxiliary outputs have losses: "adv", "clean", or the mean of "both".
      auxiliary_kl: adds to L_sep and L_rec the KL of their outputs on x against those on x', as some later code does.
    """

    classifier: Classifier
    base: AdversarialMethod
    separation_weight: float = 1.0
    recalibration_weight: float = 1.0
    separation_loss: NonRobust = "mispredicted"
    auxiliary_on: Literal["adv", "clean", "both"] = "adv"
    auxiliary_kl: bool = False

    def with_axis(self, axis_name: str | None) -> Self:
        """Return this method, with its base, for a batch that is divided among the devices of an axis."""
        return dataclasses.replace(super().with_axis(axis_name), base=self.base.with_axis(axis_name))

    def loss(self, params: Any, state: Any, batch: Batch, key: jax.Array) -> tuple[jax.Array, tuple[Any, Metrics]]:
        """Return the total, the batch statistics that the base method leaves, and the metrics of every term."""
        terms = self.base.terms(params, state, batch, key)
        separation, recalibration = self.auxiliary_losses(terms, batch["label"])
        loss = terms.loss + self.separation_weight * separation + self.recalibration_weight * recalibration
        masks = jnp.stack([jnp.mean(auxiliary.mask) for auxiliary in auxiliaries(terms.adversarial)])
        metrics = {
            "separation_loss": separation,
            "recalibration_loss": recalibration,
            "robust_share": jnp.mean(masks),
        }
        return loss, (terms.state, terms.metrics | metrics)

    def auxiliary_losses(self, terms: Terms, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Return L_sep and L_rec, means over examples, modules and (`auxiliary_on="both"`) over x and x'."""
        kind, separation, recalibration = self.separation, [], []
        for name, branch in (("clean", terms.clean), ("adv", terms.adversarial)):
            if branch is None or self.auxiliary_on not in (name, "both"):
                continue
            wrong = negative_class(branch.logits, labels)
            for auxiliary in auxiliaries(branch):
                separation.append(separation_loss(auxiliary, labels, wrong, self.separation_loss, kind))
                recalibration.append(cross_entropy(auxiliary.recalibrated, labels))
        losses = jnp.mean(jnp.stack(separation)), jnp.mean(jnp.stack(recalibration))
        if not self.auxiliary_kl or terms.clean is None:
            return losses
        pairs = list(zip(auxiliaries(terms.clean), auxiliaries(terms.adversarial), strict=True))
        drifts = [_kept(kl(x.robust, adv.robust), kl(x.non_robust, adv.non_robust), kind) for x, adv in pairs]
        moves = [kl(x.recalibrated, adv.recalibrated) for x, adv in pairs]
        return losses[0] + jnp.mean(jnp.stack(drifts)), losses[1] + jnp.mean(jnp.stack(moves))

    @property
    def separation(self) -> Separation:
        """How the network's modules separate features."""
        return self.classifier.module.fsr.separation


def auxiliaries(prediction: Prediction) -> list[Auxiliary]:
    """Return the auxiliary outputs of all FSR modules, from the first in the network to the last."""
    return [value for name, value in sorted(prediction.intermediates.items()) if name.startswith("fsr_")]


def separation_loss(
    auxiliary: Auxiliary,
    labels: jax.Array,
    wrong: jax.Array,
    form: NonRobust = "mispredicted",
    separation: Separation = "learned",
) -> jax.Array:
    """Return CE(p+, y) + CE(p-, y')   (Eq. 1 of the supplementary): float[B].

    Where nothing learns the separation the term of p- is dropped, and where all is recalibrated ("none") that of p+
    too: our reading of the ablation, unverified.
    """
    robust = cross_entropy(auxiliary.robust, labels)
    return _kept(robust, non_robust_loss(auxiliary.non_robust, labels, wrong, form), separation)


def non_robust_loss(
    logits: jax.Array, labels: jax.Array, wrong: jax.Array, form: NonRobust = "mispredicted"
) -> jax.Array:
    """Return what p- is trained with, float[B]; p its softmax, K the number of classes.

        mispredicted   -log p_{y'}
        uniform        -(1 / K) sum_k log p_k             (label smoothing of 1)
        entropy_max    sum_k p_k log p_k
        avg_targeted   -(1 / (K - 1)) sum_{k != y} log p_k

    The last three are rows of the ablation; their weight relative to CE(p+, y) is unverified.
    """
    if form == "mispredicted":
        return cross_entropy(logits, wrong)
    log_p = jax.nn.log_softmax(logits.astype(jnp.promote_types(logits.dtype, jnp.float32)))
    if form == "uniform":
        return -jnp.mean(log_p, -1)
    if form == "entropy_max":
        return jnp.sum(jnp.exp(log_p) * log_p, -1)
    if form == "avg_targeted":
        others = 1 - jax.nn.one_hot(labels, logits.shape[-1], dtype=log_p.dtype)
        return -jnp.sum(others * log_p, -1) / (logits.shape[-1] - 1)
    raise ValueError(f"unknown form of the separation loss: {form!r}")


def _kept(robust: jax.Array, non_robust: jax.Array, separation: Separation) -> jax.Array:
    """Return the sum of those of the two terms that a kind of separation keeps."""
    if separation == "none":
        return jnp.zeros_like(robust)
    return robust + non_robust if separation == "learned" else robust
