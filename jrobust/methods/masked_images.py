"""Masked images as counterfactual samples: robust fine-tuning of CLIP (Xiao et al., CVPR 2023).

Y. Xiao, Z. Tang, P. Wei, C. Liu, L. Lin, "Masked Images Are Counterfactual Samples for Robust Fine-tuning". Vanilla
fine-tuning is the method `standard` on a CLIP with a linear head.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

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


class _View(NamedTuple):
    """What both networks are shown, and what the student makes of it."""

    images: jax.Array
    seen: dict[str, Any]  # the patches that are, as options of the tower; {} for all of them
    features: jax.Array


@dataclasses.dataclass(frozen=True)
class MaskedImages(NetworkMethod):
    """Minimise, over tower f and head g (section 3 and Eq. 1 of the appendix):

        L = mean CE(g(f(x)), y) + beta MSE(fhat(x_cf), f(x_cf)) + gamma tau^2 mean KL(p_e(x) || p(x))

    x_cf is x with patches masked and refilled from other images of the batch; which, the relevance map of f itself for
    the true label decides, at the current weights. fhat is the pre-trained tower, frozen. MSE is the mean over batch
    and dimensions of features that have no unit length. p = softmax(g(f(x)) / tau), and p_e is that of a frozen
    teacher: a fine-tuned model in WiSE-KD, the pre-trained one in the released code's FT_KD, and in its
    FT_KD_image_mask that one on x_cf.

    Attributes:
      masking: "object", patches of relevance above `threshold`; "context", all others; "random"; "none", x_cf = x.
      refilling: "single", from one other image each; "multi", every patch from its own; "none", patches are not seen.
      threshold: of the map, whose largest value is 1.
      rate: of "random": the share of patches masked.
      feature_weight: beta; 30 in the released code, the paper's is unverified. 0 leaves the term out.
      logit_weight: gamma; 0 for no teacher of logits.
      logit_teacher: "file", a network that is given, see `with_teacher`; "pretrained", what training begins with.
      logit_images: on which the KL is: "clean", x; "masked", x_cf.
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
    logit_teacher: Literal["file", "pretrained"] = "file"
    logit_images: Literal["clean", "masked"] = "clean"
    temperature: float = 10.0
    groups: int = 1

    def __post_init__(self) -> None:
        if self._is_masked:
            self.classifier.clip.patches()

    @property
    def _is_masked(self) -> bool:
        """Whether a term of the loss is of x_cf, and that another image than x."""
        terms = self.feature_weight or (self.logit_weight and self.logit_images == "masked")
        return bool(terms) and self.masking != "none"

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
        state = dict(network.state)
        if self.feature_weight:
            state["pretrained"] = Replicated(network.params["image"])
        if self.logit_weight:  # of "file": until there is another
            state["teacher"] = Replicated(network.params)
        return Variables(network.params, state)

    def loss(self, params: Any, state: Any, batch: Batch, key: jax.Array) -> tuple[jax.Array, tuple[Any, Metrics]]:
        """Return L, the state as it is, and its terms."""
        images, labels = batch["image"], batch["label"]
        features, maps = self._forward(params, state, images, labels)
        logits = self.classifier.head(params, state, features)
        loss = ce = jnp.mean(cross_entropy(logits, labels))
        metrics = {"cross_entropy": ce, "train_accuracy": accuracy(logits, labels)}
        clean, share = _View(images, {}, features), jnp.float32(0)
        masked = clean
        if self._is_masked:
            masked, share = self._masked_view(params, state, batch, maps, key)
        if self.feature_weight:
            mse = self._feature_loss(state, masked)
            loss, metrics["feature_loss"] = loss + self.feature_weight * mse, mse
        if self.logit_weight:
            if self.logit_images == "clean":
                distance = self._logit_loss(state, clean, logits)
            else:
                distance = self._logit_loss(state, masked, self.classifier.head(params, state, masked.features))
            loss, metrics["logit_loss"] = loss + self.logit_weight * distance, distance
        if self.feature_weight or self._is_masked:
            metrics["masked_share"] = share
        return loss, (state, metrics)

    def _forward(self, params: Any, state: Any, images: jax.Array, labels: jax.Array) -> tuple[jax.Array, Any]:
        """Return f(x), and the map of the same forward pass if the masks need it."""
        if not self._is_masked or self.masking == "random":
            return self.classifier.features(params, state, images), None
        return PatchRelevance(self.classifier).features_and_maps(params, state, images, labels)

    def _feature_loss(self, state: Any, view: _View) -> jax.Array:
        """Return MSE(fhat, f)."""
        teacher = self.classifier.tower(state["pretrained"].value, state, view.images, **view.seen)
        return jnp.mean(jnp.square(jax.lax.stop_gradient(teacher) - view.features))

    def _logit_loss(self, state: Any, view: _View, logits: jax.Array) -> jax.Array:
        """Return tau^2 mean KL(p_e || p)."""
        teacher = state["teacher"].value
        features = self.classifier.features(teacher, state, view.images, **view.seen)
        target = jax.lax.stop_gradient(self.classifier.head(teacher, state, features))
        return self.temperature**2 * jnp.mean(kl(target / self.temperature, logits / self.temperature))

    def _masked_view(self, params: Any, state: Any, batch: Batch, maps: Any, key: jax.Array) -> tuple[_View, jax.Array]:
        """Return x_cf with f(x_cf), and the share of patches that are masked."""
        images, seen, share = self._counterfactual(batch, maps, key)
        return _View(images, seen, self.classifier.features(params, state, images, **seen)), share

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
        division: dict[str, Any] = {"groups": self.groups, "axis_name": self.classifier.axis_name}
        if self.refilling == "multi":
            drawn = keys.per_example(fill_key, batch["index"])
            return patches.multi_fill(drawn, images, mask, **division), {}, share
        return patches.single_fill(fill_key, images, mask, **division), {}, share
