"""BiasAdv: images that a biased network gets wrong and the debiased one still gets right, as training examples.

J. Lim et al., "BiasAdv: Bias-Adversarial Augmentation for Model Debiasing", CVPR 2023; there is no public code.
Equation numbers are the paper's. docs/biasadv.md says what the paper leaves open and what was chosen.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, Self

import jax
import jax.numpy as jnp

from jrobust import keys
from jrobust.attacks import Threat, cross_entropy, l2, linf, pgd
from jrobust.errors import InputError
from jrobust.methods.debiasing import Debiasing
from jrobust.methods.network import NetworkMethod, accuracy
from jrobust.models.auxiliary import split_norm, with_norm
from jrobust.models.classifier import Classifier
from jrobust.training.method import Batch, Metrics, Variables


@dataclasses.dataclass(frozen=True)
class BiasAdv(NetworkMethod):
    """Add the cross-entropy of bias-adversarial images to the loss of ERM, JTT or LfF.

        x_adv = argmax_{x~} CE(x~; phi) - lambda CE(x~; theta)                                         (Eq. 3)
        R(theta) = mean_i [w_i CE(x_i; theta) + beta w'_i CE(x_adv,i; theta)]                          (Eq. 4)

    w is of the base method; w' is 1 in ERM and JTT, and 1 - w in LfF. Both sums are divided by the batch size. x_adv, w
    and w' are constants made before the update.

    Adversarial images have batch norms of their own in theta (Xie et al. 2020): scales, biases and running statistics
    under the key `auxiliary`, which start as copies of the main ones and which nothing but training uses.

    Attributes:
      base: the method on clean images.
      debiased_weight: lambda.
      adv_weight: beta.
      eps: radius; in pixel units of [0, 1], or in units of the normalised input with space="normalized".
      num_steps: S.
      step_size: in the units of eps; None for step_ratio eps / S.
      step_ratio: how far S steps reach, in radii; without effect where step_size is given.
      norm: of the ball. Neither it nor the space nor the step is stated by the paper.
      space: "normalized" is an Linf ball whose radius in a channel is eps times the channel's std.
      random_start: begin at a random point of the ball.
      batch_norm: of the attack: "eval" uses the running statistics, "train" those of the batch. Neither moves them.
      auxiliary_norm: give adversarial images batch norms of their own.
      attack_norm: which of theta's batch norms the attack sees.
      objective: "biasadv"; for ablations "advprop", which maximises CE(x~; theta), and "random", which draws x~
        uniformly from the Linf ball that S steps can reach.
    """

    classifier: Classifier
    base: Debiasing
    debiased_weight: float
    adv_weight: float
    eps: float
    num_steps: int
    step_size: float | None = None
    step_ratio: float = 1.0
    norm: Literal["linf", "l2"] = "linf"
    space: Literal["pixel", "normalized"] = "pixel"
    random_start: bool = False
    batch_norm: Literal["eval", "train"] = "eval"
    auxiliary_norm: bool = True
    attack_norm: Literal["auxiliary", "main"] = "auxiliary"
    objective: Literal["biasadv", "advprop", "random"] = "biasadv"

    def __post_init__(self) -> None:
        if self.space == "normalized" and self.norm != "linf":
            raise InputError("method.biasadv.space=normalized is defined for norm=linf alone: set norm, or space=pixel")
        if self.objective == "random" and self.norm != "linf":
            raise InputError("method.biasadv.objective=random draws from an Linf ball: set norm=linf")

    def with_axis(self, axis_name: str | None) -> Self:
        """Return this method, with its base, for a batch that is divided among the devices of an axis."""
        return dataclasses.replace(super().with_axis(axis_name), base=self.base.with_axis(axis_name))

    def init(self, key: jax.Array, batch: Batch) -> Variables:
        """Return the variables of the base and the auxiliary batch norms."""
        return self._with_branch(self.base.init(key, batch))

    def start_from(self, variables: Variables, load: Callable[[Variables], Variables]) -> Variables:
        """Return the variables with the networks of the base, and then the auxiliary batch norms, started anew."""
        return self._with_branch(self.base.start_from(variables, load))

    def deployed(self, variables: Variables) -> Variables:
        """Return theta with its main batch norms."""
        return self.base.deployed(variables)

    def loss(self, params: Any, state: Any, batch: Batch, key: jax.Array) -> tuple[jax.Array, tuple[Any, Metrics]]:
        """Return R(phi) + R(theta), the next state, and metrics."""
        images, labels, index = batch["image"], batch["label"], batch["index"]
        base_key, attack_key, forward_key = jax.random.split(key, 3)
        adv_images = self.perturb(params, state, images, labels, index, attack_key)

        terms = self.base.terms(params, state, batch, base_key)
        branch = self._branch(Variables(params, terms.state))
        adv = self.base.forward(branch, adv_images, index, forward_key)
        adv_weights = self.adv_weight * jax.lax.stop_gradient(terms.adv_weights)
        loss = terms.loss + jnp.mean(adv_weights * cross_entropy(adv.logits, labels))

        moved = "auxiliary" if self.auxiliary_norm else "debiased"
        metrics = terms.metrics | {
            "adv_cross_entropy": jnp.mean(cross_entropy(adv.logits, labels)),
            "adv_accuracy": accuracy(adv.logits, labels),
            "perturbation": jnp.mean(jnp.max(jnp.abs(adv_images - images), axis=(1, 2, 3))),
        }
        return loss, (terms.state | {moved: adv.batch_stats}, metrics)

    def perturb(
        self, params: Any, state: Any, images: jax.Array, labels: jax.Array, index: jax.Array, key: jax.Array
    ) -> jax.Array:
        """Return x_adv (Eq. 3), a constant; the images are those that training sees, augmented."""
        start_key, noise_key = jax.random.split(key)
        frozen = jax.lax.stop_gradient(Variables(params, state))
        theta = self._branch(frozen) if self.attack_norm == "auxiliary" else self.base.debiased(frozen)
        phi = self.base.biased(frozen)
        train = self.batch_norm == "train"
        noise = keys.per_example(noise_key, index) if train else None

        def loss(network: Variables, x: jax.Array) -> jax.Array:
            out = self.classifier.apply(network.params, network.state, x, train=train, keys=noise)
            return cross_entropy(out.logits, labels)

        def objective(x: jax.Array) -> jax.Array:
            if self.objective == "advprop":
                return loss(theta, x)
            return loss(phi, x) - self.debiased_weight * loss(theta, x)

        threat, step_size = self._ball()
        if self.objective == "random":
            threat, num_steps = linf(jnp.minimum(threat.eps, self.num_steps * step_size)), 0
        else:
            num_steps = self.num_steps
        random_start = self.random_start or self.objective == "random"
        return pgd(
            objective,
            images,
            start_key,
            threat=threat,
            step_size=step_size,
            num_steps=num_steps,
            random_start=random_start,
            index=index,
        ).adv_images

    def _ball(self) -> tuple[Threat, jax.Array]:
        """Return the threat model and the step size in pixel units; with space="normalized", of each channel."""
        step = self.step_ratio * self.eps / max(self.num_steps, 1) if self.step_size is None else self.step_size
        unit = self.classifier.sigma if self.space == "normalized" else jnp.asarray(1.0)
        return (linf if self.norm == "linf" else l2)(self.eps * unit), step * unit

    def _branch(self, variables: Variables) -> Variables:
        """Return theta as adversarial images see it."""
        theta = self.base.debiased(variables)
        if not self.auxiliary_norm:
            return theta
        return Variables(with_norm(theta.params, variables.params["auxiliary"]), variables.state["auxiliary"])

    def _with_branch(self, variables: Variables) -> Variables:
        """Return the variables with auxiliary batch norms that are copies of the main ones."""
        if not self.auxiliary_norm:
            return variables
        theta = self.base.debiased(variables)
        return Variables(
            variables.params | {"auxiliary": split_norm(theta.params, theta.state)},
            variables.state | {"auxiliary": theta.state},
        )
