"""Masked images as counterfactual samples: robust fine-tuning of CLIP (Xiao et al., CVPR 2023).

Y. Xiao, Z. Tang, P. Wei, C. Liu, L. Lin, "Masked Images Are Counterfactual Samples for Robust Fine-tuning". Vanilla
fine-tuning is the method `standard` on a CLIP with a linear head.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp

from jrobust import keys
from jrobust.attacks import cross_entropy, kl
from jrobust.attributions import patches
from jrobust.methods.network import NetworkMethod, accuracy
from jrobust.methods.relevance import PatchRelevance
from jrobust.models.clip.linear_head import LinearHead
from jrobust.replicated import Replicated
from jrobust.training.method import Batch, Metrics, Variables


@dataclasses.dataclass(frozen=True)
class MaskedImages(NetworkMethod):
    """Minimise, over tower f and head g (section 3 and Eq. 1 of the appendix):

        L = mean CE(g(f(x)), y) + beta MSE(fhat(x_cf), f(x_cf)) + gamma tau^2 mean KL(p_e(x) || p(x))

    x_cf is x with patches masked and refilled from other images of the batch; which, the relevance map of f itself for
    the true label decides, at the current weights. fhat is the pre-trained tower, frozen. MSE is the mean over batch
    and dimensions of features that have no unit length. p = softmax(g(f(x)) / tau), and p_e is that of a frozen
    teacher: WiSE-KD.

    Attributes:
      masking: "object", patches of relevance above `threshold`; "context", all others; "random"; "none", x_cf = x.
      refilling: "single", from one other image each; "multi", every patch from its own; "none", patches are not seen.
      threshold: of the map, whose largest value is 1.
      rate: of "random": the share of patches masked.
      feature_weight: beta; 30 in the released code, the paper's is unverified. 0 leaves x_cf out.
      logit_weight: gamma; 0 for no teacher of logits.
      temperature: tau.
      groups: the batch is refilled within so many equal parts, as within each of the four devices of the released code.

    Raises:
      InputError: patches are to be masked and the tower is a ResNet, which has none.
    """

    classifier: LinearHead

    masking: Literal["object", "context", "random", "none"] = "object"
    refilling: Literal["single", "multi", "none"] = "single"
    threshold: float = 0.3
    rate: float = 0.5
    feature_weight: float = 30.0
    logit_weight: float = 0.0
    temperature: float = 10.0
    groups: int = 1

    def __post_init__(self) -> None:
        if self.feature_weight and self.masking != "none":
            self.classifier.clip.patches()

    def init(self, key: jax.Array, batch: Batch) -> Variables:
        """Return fresh variables; the frozen tower is the one that training begins with."""
        return self._with_frozen(super().init(key, batch))

    def start_from(self, variables: Variables, load: Callable[[Variables], Variables]) -> Variables:
        """Return variables in which the network and the frozen tower are what `load` makes of the network."""
        return self._with_frozen(super().start_from(self.deployed(variables), load))

    def with_teacher(self, variables: Variables, teacher: Variables) -> Variables:
        """Return variables whose teacher of logits is a network, such as a WiSE-FT average."""
        return variables._replace(state=variables.state | {"teacher": Replicated(teacher.params)})

    def deployed(self, variables: Variables) -> Variables:
        """Return the network alone."""
        frozen = ("pretrained", "teacher")
        return Variables(variables.params, {k: v for k, v in variables.state.items() if k not in frozen})

    def _with_frozen(self, network: Variables) -> Variables:
        state = network.state | {"pretrained": Replicated(network.params["image"])}
        if self.logit_weight:  # until there is another: what training begins with
            state["teacher"] = Replicated(network.params)
        return Variables(network.params, state)

    def loss(self, params: Any, state: Any, batch: Batch, key: jax.Array) -> tuple[jax.Array, tuple[Any, Metrics]]:
        """Return L, the state as it is, and its terms."""
        images, labels = batch["image"], batch["label"]
        features, maps = self._forward(params, state, images, labels)
        logits = self.classifier.head(params, state, features)
        loss = ce = jnp.mean(cross_entropy(logits, labels))
        metrics = {"cross_entropy": ce, "train_accuracy": accuracy(logits, labels)}
        if self.feature_weight:
            mse, masked = self._feature_loss(params, state, batch, maps, features, key)
            loss, metrics["feature_loss"] = loss + self.feature_weight * mse, mse
            metrics["masked_share"] = masked
        if self.logit_weight:
            distance = self._logit_loss(state, images, logits)
            loss, metrics["logit_loss"] = loss + self.logit_weight * distance, distance
        return loss, (state, metrics)

    def _logit_loss(self, state: Any, images: jax.Array, logits: jax.Array) -> jax.Array:
        """Return tau^2 mean KL(p_e || p)."""
        teacher = jax.lax.stop_gradient(self.classifier.apply(state["teacher"].value, state, images).logits)
        return self.temperature**2 * jnp.mean(kl(teacher / self.temperature, logits / self.temperature))

    def _forward(self, params: Any, state: Any, images: jax.Array, labels: jax.Array) -> tuple[jax.Array, Any]:
        """Return f(x), and the map of the same forward pass if the masks need it."""
        if not self.feature_weight or self.masking not in ("object", "context"):
            return self.classifier.features(params, state, images), None
        return PatchRelevance(self.classifier).features_and_maps(params, state, images, labels)

    def _feature_loss(
        self, params: Any, state: Any, batch: Batch, maps: Any, features: jax.Array, key: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Return MSE(fhat(x_cf), f(x_cf)) and the share of patches that are masked."""
        images, masked = batch["image"], jnp.float32(0)
        options: dict[str, Any] = {}
        student = features
        if self.masking != "none":
            images, options, masked = self._counterfactual(batch, maps, key)
            student = self.classifier.features(params, state, images, **options)
        teacher = self.classifier.tower(state["pretrained"].value, state, images, **options)
        return jnp.mean(jnp.square(jax.lax.stop_gradient(teacher) - student)), masked

    def _counterfactual(self, batch: Batch, maps: Any, key: jax.Array) -> tuple[jax.Array, dict[str, Any], jax.Array]:
        """Return x_cf, the patches of it that are seen if not all are, and the share of masked ones."""
        images, grid = batch["image"], self.classifier.clip.patches()
        mask_key, fill_key = jax.random.split(key)
        each = keys.per_example(mask_key, batch["index"])
        if self.masking == "random" and self.refilling == "none":
            places = patches.random_places(each, grid**2, self.rate)
            return images, {"keep": places}, jnp.float32(1 - places.shape[1] / grid**2)
        if self.masking == "random":
            mask = patches.random_mask(each, grid, self.rate)
        else:
            mask = (patches.object_mask if self.masking == "object" else patches.context_mask)(maps, self.threshold)
        share = jnp.mean(mask.astype(jnp.float32))
        if self.refilling == "none":
            return images, {"keep": patches.kept(mask)}, share
        if self.refilling == "multi":
            drawn = keys.per_example(fill_key, batch["index"])
            return patches.multi_fill(drawn, images, mask, groups=self.groups), {}, share
        axis = self.classifier.axis_name
        own = fill_key if axis is None else jax.random.fold_in(fill_key, jax.lax.axis_index(axis))
        return patches.single_fill(own, images, mask, groups=self.groups), {}, share
