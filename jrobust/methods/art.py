"""ART: attributional robustness training by aligning input gradients with the image.

M. Singh, N. Kumari, P. Mangla, A. Sinha, V. N. Balasubramanian, B. Krishnamurthy, "Attributional Robustness Training
using Input-Gradient Spatial Alignment", ECCV 2020. Equation numbers are the paper's; docs/art.md says where its text
and its released code differ and which is built here.

Notation: x pixels in [0, 1], z = (x - mean) / std, f the logits, g^i = d f_i / d input, d the cosine distance. Path R
is the network with ReLUs, path P the same weights with softplus of sharpness beta, whose second derivative is not zero.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from jrobust import keys
from jrobust.attacks import cross_entropy, linf, pgd
from jrobust.attributions.agreement import cosine_distance
from jrobust.methods.classes import negative_class
from jrobust.methods.network import NetworkMethod, accuracy
from jrobust.models.classifier import Classifier
from jrobust.models.network import Prediction
from jrobust.training.method import Batch, Metrics

Objective = Literal["equation5", "equation2", "equation4_l2", "equation4_cosine"]


class Attribution(NamedTuple):
    """One forward pass on path P and the two input gradients taken from it."""

    true: jax.Array  # g^y, float32[B, ...]
    other: jax.Array  # g^{i*}, i* the negative class
    anchor: jax.Array  # the image they are compared with, in the same shape
    batch_stats: Any

    def restrict(self, mask: jax.Array) -> Attribution:
        """Keep the coordinates where `mask` is 1."""
        return self._replace(true=self.true * mask, other=self.other * mask, anchor=self.anchor * mask)


@dataclasses.dataclass(frozen=True)
class ART(NetworkMethod):
    """Eq. 6: minimise E[ CE(x~, y) + lambda L_attr ], x~ = x + argmax_{||delta||_inf <= eps} L_attr(x + delta, y).

    Attributes:
      eps, step_size: in pixel units of [0, 1].
      num_steps: a, gradient steps of the inner maximisation.
      attribution_weight: lambda.
      beta: sharpness of the softplus of path P.
      mask_size: K; the inner maximisation compares only the K coordinates of largest |g^y| (path R, at the random
        start). 0 compares all. Only for Equation 5; from the released code.
      reduction: "none", or "absmean": gradients and images enter as means over channels of absolute values (CUB).
      objective: Eq. 5 or, for the ablation of Table 1, a term that takes its place in both optimisations.
      negative_class: i* as the largest ("runner_up") or the smallest ("argmin") logit among the wrong classes.
      inner_cross_entropy: the inner maximisation adds CE of path R, at weight 1.
      outer: "pair_hard": L_attr over x and x~ with the hardest of both as positive and negative (the released code);
        "adv_only": L_attr of x~ (the paper's Eq. 6).
      bn_update: "all": the running statistics move in every forward pass (the released code); "outer": only in the two
        outer ones.
    """

    classifier: Classifier
    eps: float
    step_size: float
    num_steps: int
    attribution_weight: float
    beta: float
    mask_size: int
    reduction: Literal["none", "absmean"] = "none"
    objective: Objective = "equation5"
    negative_class: Literal["runner_up", "argmin"] = "runner_up"
    inner_cross_entropy: bool = False
    outer: Literal["pair_hard", "adv_only"] = "pair_hard"
    bn_update: Literal["all", "outer"] = "all"

    def loss(self, params: Any, state: Any, batch: Batch, key: jax.Array) -> tuple[jax.Array, tuple[Any, Metrics]]:
        """Return the total of Eq. 6, the next batch statistics and the metrics of its terms.

        The inner maximisation and the outer loss run in train mode: batch statistics, and a fresh dropout mask in
        every forward pass. The clean image never enters the cross-entropy.
        """
        images, labels, index = batch["image"], batch["label"], batch["index"]
        inner_key, attribution_key, ce_key = jax.random.split(key, 3)

        adv_images, inner_state = self.perturb(params, state, images, labels, index, inner_key)
        state = inner_state if self.bn_update == "all" else state

        attribution_loss, alignment, state = self.attribution_loss(
            params, state, images, adv_images, labels, keys.per_example(attribution_key, index)
        )
        out = self.classifier.apply(params, state, adv_images, train=True, keys=keys.per_example(ce_key, index))  # R
        ce = jnp.mean(cross_entropy(out.logits, labels))
        loss = ce + self.attribution_weight * attribution_loss  # Eq. 6
        metrics = {
            "cross_entropy": ce,
            "attribution_loss": attribution_loss,
            "alignment": alignment,
            "train_accuracy": accuracy(out.logits, labels),
        }
        return loss, (out.batch_stats, metrics)

    def perturb(
        self,
        params: Any,
        state: Any,
        images: jax.Array,
        labels: jax.Array,
        index: jax.Array,
        key: jax.Array,
        start: jax.Array | None = None,
    ) -> tuple[jax.Array, Any]:
        """Return x~ and the batch statistics that its forward passes leave: sign ascent on the objective.

        The derivative is the full one: through the anchor and, second order, through both gradients. The ascent begins
        at `start`, by default a random point of the ball.
        """
        params, images = jax.lax.stop_gradient((params, images))  # x~ is a constant of the outer loss
        start_key, mask_key, noise_key = jax.random.split(key, 3)
        threat = linf(self.eps)
        if start is None:
            start = jax.vmap(threat.random_start)(keys.per_example(start_key, index), images)
        mask, clean = None, None
        if self.objective == "equation5" and self.mask_size:
            mask, state = self.salient_mask(params, state, start, labels, keys.per_example(mask_key, index))
        if self.objective == "equation2":  # does not depend on the perturbation, so it stays outside the loop
            clean = self.attribute(params, state, images, labels, keys.per_example(mask_key, index), pixels=False)

        def objective(x: jax.Array, carry: tuple) -> tuple[jax.Array, tuple]:
            stats, step = carry
            path_p, path_r = jax.random.split(jax.random.fold_in(noise_key, step))
            noise = keys.per_example(path_p, index)
            # As the released code: gradients with respect to pixels here, to the normalised image in the outer loss.
            a = self.attribute(params, stats, x, labels, noise, pixels=self.objective == "equation5")
            stats = a.batch_stats
            value = self.vulnerability(a if mask is None else a.restrict(mask), clean)
            if self.inner_cross_entropy:
                out = self.classifier.apply(params, stats, x, train=True, keys=keys.per_example(path_r, index))
                value, stats = value + cross_entropy(out.logits, labels), out.batch_stats
            return value, (stats, step + 1)

        result = pgd(
            objective,
            images,
            threat=threat,
            step_size=self.step_size,
            num_steps=self.num_steps,
            start=start,
            state=(state, jnp.int32(0)),
        )
        return result.adv_images, result.state[0]

    def attribution_loss(
        self, params: Any, state: Any, images: jax.Array, adv_images: jax.Array, labels: jax.Array, noise: jax.Array
    ) -> tuple[jax.Array, jax.Array, Any]:
        """Return the mean of L_attr (or of the ablation's term), the mean cos(g^y(x~), z~), and the batch statistics.

        Parameters receive gradient through g^y and g^{i*} only: images and x~ are constants.
        """
        if self.outer == "adv_only" and self.objective != "equation2":
            a = self.attribute(params, state, adv_images, labels, noise, pixels=False)
            adv, losses = a, self.vulnerability(a)
        else:
            # One forward pass of 2N; the copies of an image lie side by side, so that a sharded batch stays in place.
            both = jnp.stack([images, adv_images], axis=1).reshape(-1, *images.shape[1:])
            noise = jax.vmap(lambda k: jax.random.split(k))(noise).reshape(-1)
            a = self.attribute(params, state, both, jnp.repeat(labels, 2), noise, pixels=False)
            clean, adv = (Attribution(a.true[i::2], a.other[i::2], a.anchor[i::2], None) for i in (0, 1))
            losses = pair_hard_loss(clean, adv) if self.objective == "equation5" else self.vulnerability(adv, clean)
        return jnp.mean(losses), jnp.mean(1 - cosine_distance(adv.true, adv.anchor)), a.batch_stats

    def vulnerability(self, a: Attribution, clean: Attribution | None = None) -> jax.Array:
        """Return what the inner problem maximises and the outer minimises, float32[B]: a row of Table 1.

        The forms of Equations 2 and 4 (unsquared norm over sqrt(D), lambda unchanged) are our reading: the paper's text
        does not fix them and no code for them was released.
        """
        if self.objective == "equation5":
            return triplet_loss(cosine_distance(a.true, a.anchor), cosine_distance(a.other, a.anchor))
        if self.objective == "equation4_cosine":
            return cosine_distance(a.true, a.anchor)  # d(g^y(x~), z~)
        if self.objective == "equation4_l2":
            return _root_mean_square(a.anchor - a.true)  # ||z~ - g^y(x~)||
        assert clean is not None, "Equation 2 compares with the clean image"
        return _root_mean_square(a.true - clean.true)  # ||g^y(x~) - g^y(x)||

    def attribute(
        self, params: Any, state: Any, images: jax.Array, labels: jax.Array, noise: jax.Array, *, pixels: bool
    ) -> Attribution:
        """Return g^y, g^{i*} (path P) and the anchor z of `images`, flattened to float32[B, D].

        One forward pass and two pullbacks of it. `pixels` takes gradients with respect to x, otherwise to z.
        """

        def forward(x: jax.Array) -> tuple[jax.Array, Prediction]:
            out = self.classifier.apply(params, state, x, train=True, beta=self.beta, keys=noise)
            return out.logits, out

        logits, pullback, out = jax.vjp(forward, images, has_aux=True)
        negative = negative_class(logits, labels, self.negative_class)
        # Cotangents of 1, not of a mean's 1/N: the guard of the cosine against zero vectors has a scale.
        gradients = [pullback(jax.nn.one_hot(i, logits.shape[-1], dtype=logits.dtype))[0] for i in (labels, negative)]
        if not pixels:
            gradients = [g * self.classifier.sigma for g in gradients]  # dx/dz = sigma
        true, other, anchor = (self._reduce(v) for v in (*gradients, self.classifier.normalize(images)))
        return Attribution(true, other, anchor, out.batch_stats)

    def salient_mask(
        self, params: Any, state: Any, images: jax.Array, labels: jax.Array, noise: jax.Array
    ) -> tuple[jax.Array, Any]:
        """Return S float32[B, D] with a 1 at the `mask_size` largest |g^y| of path R, and the batch statistics."""

        def score(x: jax.Array) -> tuple[jax.Array, Any]:
            out = self.classifier.apply(params, state, x, train=True, keys=noise)
            return jnp.sum(jnp.take_along_axis(out.logits, labels[:, None], axis=1)), out.batch_stats

        gradient, batch_stats = jax.grad(score, has_aux=True)(images)
        return top_k_mask(jnp.abs(self._reduce(gradient)), self.mask_size), batch_stats

    def _reduce(self, values: jax.Array) -> jax.Array:
        values = values.astype(jnp.promote_types(values.dtype, jnp.float32))
        if self.reduction == "absmean":
            # sign * v and not abs(v): the derivative of abs at 0 is 1 in JAX, and dead pixels are common.
            values = jnp.mean(jnp.sign(jax.lax.stop_gradient(values)) * values, axis=-1)
        return values.reshape(values.shape[0], -1)


def triplet_loss(positive: jax.Array, negative: jax.Array) -> jax.Array:
    """Return Eq. 5, log(1 + exp(d_pos - d_neg)), for the distances of the anchor to g^y and to g^{i*}.

    In [log(1 + e^-2), log(1 + e^2)] = [0.1269, 2.1269]; log 2 where the two are equal.
    """
    return jax.nn.softplus(positive - negative)


def pair_hard_loss(clean: Attribution, adv: Attribution) -> jax.Array:
    """Return Eq. 5 for the 2N anchors z and z~, each with the hardest gradients among those of x and of x~.

        d+_a = max_{b in {x, x~}} d(g^y(b), z_a),   d-_a = min_{b in {x, x~}} d(g^{i*}(b), z_a)

    Equal to hard mining in the 2N x 2N matrix of distances, where only copies of one image are compared. On ties the
    gradient goes to the anchor's own copy, as an indexed maximum does, and is not split.
    """

    def anchored(own: Attribution, twin: Attribution) -> jax.Array:
        own_pos, twin_pos = (cosine_distance(b.true, own.anchor) for b in (own, twin))
        own_neg, twin_neg = (cosine_distance(b.other, own.anchor) for b in (own, twin))
        positive = jnp.where(own_pos >= twin_pos, own_pos, twin_pos)
        return triplet_loss(positive, jnp.where(own_neg <= twin_neg, own_neg, twin_neg))

    return jnp.concatenate([anchored(clean, adv), anchored(adv, clean)])


def top_k_mask(values: jax.Array, k: int) -> jax.Array:
    """Return float32[B, D] with exactly k ones a row, at the largest values; ties to the lowest index."""
    indices = jax.lax.top_k(values, min(k, values.shape[-1]))[1]
    return jax.vmap(lambda i: jnp.zeros(values.shape[-1], values.dtype).at[i].set(1))(indices)


def _root_mean_square(vectors: jax.Array) -> jax.Array:
    """Return ||v|| / sqrt(D) a row, with derivative 0 at v = 0 (where JAX's norm gives NaN)."""
    mean = jnp.mean(vectors**2, axis=-1)
    proper = mean > 1e-20
    return jnp.where(proper, jnp.sqrt(jnp.where(proper, mean, 1)), 0)
