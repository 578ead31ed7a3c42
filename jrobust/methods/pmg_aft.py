"""PMG-AFT: adversarial fine-tuning of CLIP that stays near the pre-trained model (Wang et al., CVPR 2024).

S. Wang, J. Zhang, Z. Yuan, S. Shan, "Pre-trained Model Guided Fine-Tuning for Zero-Shot Adversarial Robustness".
FT-Standard is the method `standard` on a CLIP, FT-TeCoA (Mao et al., ICLR 2023) is `adversarial`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp

from jrobust.attacks import cross_entropy, kl
from jrobust.methods.adversarial import Adversarial, Terms
from jrobust.methods.network import accuracy
from jrobust.models.clip.prompts import Prompts
from jrobust.models.clip.similarity import unit
from jrobust.models.clip.zero_shot import ZeroShot
from jrobust.models.network import Prediction
from jrobust.replicated import Replicated
from jrobust.training.method import Batch, Variables


@dataclasses.dataclass(frozen=True)
class PMGAFT(Adversarial):
    """Minimise, over the image tower or the visual prompts theta, Eq. 2, 5-10 of the paper:

        L = mean_i CE(x'_i; theta) + alpha R sum_i D(x'_i; theta0, theta) + beta R sum_i KL(P(x_i) || P(x'_i))

    x' is found by PGD on the target theta alone (Eq. 1); P is the softmax of its logits, P0 that of the original
    theta0, which sees the same x'. D = KL(P0(x') || P(x')) is the generalisation branch (Eq. 8-9), the last term the
    regulariser (Eq. 10). P0 is a constant; gradients flow through both P(x) and P(x').

    Attributes:
      general_weight, clean_weight: alpha and beta; a branch whose weight is 0 is not computed. Both 0 is FT-TeCoA.
      distance: D. "kl"; "l2", of probabilities, |P - P0|^2; "feature_l2" and "feature_cosine", of unit features v,
        |v - v0|^2 and 1 - <v, v0>. The exact forms of the last three are unverified (Tables 12 and 13).
      kl_direction: "ori_adv" as above, of the released code; "adv_ori" swaps both KLs, as that code's first commit.
      reduction: "sum" is R = 1 (the released code: the KLs weigh B times more than the cross-entropy), "batchmean" is
        R = 1 / B, B the images of a batch, on all devices.
      detach_clean: P(x) is a constant in the regulariser; False in the released code.
      original_prompts: which of the target's visual prompts the original sees; "pixels" in the released code.
      microbatches: equal parts of a batch, of which the trainer hands over one at a time and averages the losses.
    """

    forwards_clean: ClassVar[bool] = True

    classifier: ZeroShot

    general_weight: float = 1.0
    clean_weight: float = 1.0
    distance: Literal["kl", "l2", "feature_l2", "feature_cosine"] = "kl"
    kl_direction: Literal["ori_adv", "adv_ori"] = "ori_adv"
    reduction: Literal["sum", "batchmean"] = "sum"
    detach_clean: bool = False
    original_prompts: Literal["none", "pixels", "all"] = "pixels"
    microbatches: int = 1

    def init(self, key: jax.Array, batch: Batch) -> Variables:
        """Return fresh variables; the original is the tower that training begins with."""
        return self._with_original(super().init(key, batch))

    def start_from(self, variables: Variables, load: Callable[[Variables], Variables]) -> Variables:
        """Return variables in which target and original are what `load` makes of the target's."""
        return self._with_original(super().start_from(self.deployed(variables), load))

    def deployed(self, variables: Variables) -> Variables:
        """Return the target's variables, without the original where that is another tower."""
        if self.classifier.prompts is not None:
            return variables
        return Variables(variables.params, {k: v for k, v in variables.state.items() if k != "tower"})

    def _with_original(self, target: Variables) -> Variables:
        if self.classifier.prompts is not None:  # the tower is frozen: it is the original
            return target
        return Variables(target.params, target.state | {"tower": Replicated(target.params)})

    def terms(self, params: Any, state: Any, batch: Batch, key: jax.Array) -> Terms:
        """Return L, and the target's predictions on x' and, if `clean_weight` is not 0, on x."""
        images, labels, index = batch["image"], batch["label"], batch["index"]
        attack_key, noise_key = jax.random.split(key)
        adv_images = self.perturb(params, state, images, labels, index, attack_key, noise_key)
        adv, clean = self._target(params, state, adv_images, images)

        loss = robust = jnp.mean(cross_entropy(adv.logits, labels))  # Eq. 5-6
        metrics = {"cross_entropy": robust, "train_accuracy": accuracy(adv.logits, labels)}
        if self.general_weight:
            general = self._general(params, state, adv_images, adv)
            loss, metrics["general"] = loss + self.general_weight * general, general
        if clean is not None:
            regulariser = self._regulariser(clean.logits, adv.logits)
            loss, metrics["regulariser"] = loss + self.clean_weight * regulariser, regulariser
            metrics["clean_accuracy"] = accuracy(clean.logits, labels)
        return Terms(loss, adv, clean, state, metrics)

    def _target(
        self, params: Any, state: Any, adv_images: jax.Array, images: jax.Array
    ) -> tuple[Prediction, Prediction | None]:
        """Return the predictions on x' and on x from one forward pass of both."""
        if not self.clean_weight:
            return self.classifier.apply(params, state, adv_images, intermediates=True), None
        # x'_1, x_1, x'_2, x_2, ...: neighbours stay on one device.
        pairs = jnp.stack([adv_images, images], axis=1).reshape(-1, *images.shape[1:])
        both = self.classifier.apply(params, state, pairs, intermediates=True)

        logits = both.logits.reshape(len(images), 2, -1)
        features = both.intermediates["features"].reshape(len(images), 2, -1)
        adv, clean = (Prediction(logits[:, i], state, {"features": features[:, i]}) for i in (0, 1))
        return adv, clean

    def _general(self, params: Any, state: Any, adv_images: jax.Array, adv: Prediction) -> jax.Array:
        """Return L_general, Eq. 8-9: how far the target is from the original on x'."""
        seen = self._seen(params)
        features = jax.lax.stop_gradient(self.classifier.original_features(state, adv_images, seen))
        if self.distance in ("kl", "l2"):
            original = self.classifier.logits(state, features)
            if self.distance == "kl":
                return self._reduce(self._kl(original, adv.logits))
            difference = jax.nn.softmax(adv.logits) - jax.nn.softmax(original)
            return self._reduce(jnp.sum(jnp.square(difference), axis=-1))
        v, v0 = unit(adv.intermediates["features"]), unit(features)
        if self.distance == "feature_l2":
            return self._reduce(jnp.sum(jnp.square(v - v0), axis=-1))
        return self._reduce(1 - jnp.sum(v * v0, axis=-1))

    def _regulariser(self, clean: jax.Array, adv: jax.Array) -> jax.Array:
        """Return L_clean, Eq. 10: how far the target on x' is from itself on x."""
        return self._reduce(self._kl(jax.lax.stop_gradient(clean) if self.detach_clean else clean, adv))

    def _kl(self, reference: jax.Array, adv: jax.Array) -> jax.Array:
        """Return KL(P_reference || P_adv) of each example, or with "adv_ori" KL(P_adv || P_reference)."""
        return kl(reference, adv) if self.kl_direction == "ori_adv" else kl(adv, reference)

    def _reduce(self, losses: jax.Array) -> jax.Array:
        """Return R times the sum over the batch, as what the mean over devices and microbatches makes into that."""
        mean = jnp.mean(losses)
        if self.reduction == "batchmean":
            return mean
        axis = self.classifier.axis_name
        return mean * len(losses) * self.microbatches * (1 if axis is None else jax.lax.axis_size(axis))

    def _seen(self, params: Any) -> Prompts | None:
        """Return the visual prompts that the original sees."""
        if self.classifier.prompts is None or self.original_prompts == "none":
            return None
        prompts = jax.lax.stop_gradient(params)
        return prompts if self.original_prompts == "all" else prompts._replace(tokens=None)
