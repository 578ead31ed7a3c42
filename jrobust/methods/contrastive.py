"""CLIP's own training: an image and its caption find each other within the batch (Radford et al., ICML 2021)."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jrobust import keys
from jrobust.attacks import cross_entropy
from jrobust.methods.network import NetworkMethod
from jrobust.models.clip.similarity import clamp, similarity, unit
from jrobust.models.clip.zero_shot import ZeroShot, class_features
from jrobust.training.method import Batch, Metrics, Variables


@dataclasses.dataclass(frozen=True)
class Contrastive(NetworkMethod):
    """Minimise, over both towers and the logit scale, the symmetric loss of a batch of images and their captions:

        z_ij = s <v_i, t_j>,   s = min(exp(logit_scale), 100)
        L = 1/2 mean_i (logsumexp_j z_ij - z_ii) + 1/2 mean_j (logsumexp_i z_ij - z_jj)

    Batches have `tokens` int32[B, D, T], D captions an image, of which each step draws one. Images meet the
    captions of all devices; with microbatches those of their part. What is deployed is the image tower with the
    texts of `class_tokens`.

    Attributes:
      class_tokens: the texts of each class, [K][M][T] token ids, by which accuracy is measured.
    """

    classifier: ZeroShot

    class_tokens: tuple[tuple[tuple[int, ...], ...], ...]

    def init(self, key: jax.Array, batch: Batch) -> Variables:
        """Return fresh towers; a ResNet's running statistics are not trained and are no part of this."""
        del batch
        return Variables(self.classifier.clip.init(key), {})

    def loss(self, params: Any, state: Any, batch: Batch, key: jax.Array) -> tuple[jax.Array, tuple[Any, Metrics]]:
        """Return L, the state as it is, and metrics."""
        clip, tokens = self.classifier.clip, batch["tokens"]
        draw = jax.vmap(lambda k: jax.random.randint(k, (), 0, tokens.shape[1]))(keys.per_example(key, batch["index"]))
        chosen = jnp.take_along_axis(tokens, draw[:, None, None], axis=1)[:, 0]
        v = unit(clip.image_features(params, batch["image"]))
        t = unit(clip.text_features(params, chosen))
        scale = clamp(params["logit_scale"])
        first = self._first(len(v))
        labels = first + jnp.arange(len(v))
        to_texts, to_images = similarity(v, self.gathered(t), scale), similarity(t, self.gathered(v), scale)
        loss = (jnp.mean(cross_entropy(to_texts, labels)) + jnp.mean(cross_entropy(to_images, labels))) / 2
        matched = jnp.mean(jnp.argmax(to_texts, -1) == labels)
        return loss, (state, {"matched": matched, "logit_scale": jnp.exp(scale)})

    def _first(self, count: int) -> jax.Array | int:
        """Return the place of this device's first example among those of all devices."""
        axis = self.classifier.axis_name
        return 0 if axis is None else jax.lax.axis_index(axis) * count

    def deployed(self, variables: Variables) -> Variables:
        """Return the variables of `classifier`: the image tower, and the classes' texts as the text tower has them."""
        params = variables.params
        text = class_features(self.classifier.clip, params, jnp.asarray(self.class_tokens, jnp.int32))
        return Variables(*self.classifier.pretrained(None, params, text))
