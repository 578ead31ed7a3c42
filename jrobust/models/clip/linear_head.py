"""CLIP's image tower and a trained linear layer on features of unit length, as WiSE-FT and masked images have it."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jrobust.models.clip.similarity import unit
from jrobust.models.clip.tower_classifier import TowerClassifier
from jrobust.replicated import Replicated


@dataclasses.dataclass(frozen=True)
class LinearHead(TowerClassifier):
    """Images float[B, H, W, 3] in [0, 1] of any size to logits of a linear layer.

        z = A f(x) / |f(x)| + b

    Parameters are {"image": the tower, "head": {"kernel" A^T float32[E, K], "bias" b float32[K]}}, all trained; state
    is {"batch_stats"} of a ResNet, else {}. It begins as the zero-shot classifier: A_k = exp(logit_scale) W_k, b = 0.
    """

    def init(self, key: jax.Array) -> tuple[Any, Any]:
        """Return fresh `(params, state)`, the rows of A random directions."""
        return _init(self.with_axis(None), key)

    def pretrained(self, fresh: Any, clip_params: Mapping[str, Any], text: jax.Array) -> tuple[Any, Any]:
        """Return `(params, state)` with the weights of a whole CLIP and the head of its texts.

        Args:
          fresh: is not used; nothing stays of it.
          clip_params: as `CLIP.init` returns them.
          text: W float32[K, E], see `jrobust.models.clip.zero_shot.class_features`.
        """
        del fresh
        kernel = jnp.exp(clip_params["logit_scale"]) * text.T
        head = {"kernel": kernel, "bias": jnp.zeros(len(text), kernel.dtype)}
        state = {"batch_stats": Replicated(clip_params["batch_stats"])} if "batch_stats" in clip_params else {}
        return {"image": clip_params["image"], "head": head}, state

    def features(self, params: Any, state: Any, images: jax.Array, **options: Any) -> jax.Array:
        """Return f(x) float32[B, E]; `options` are `keep` and `factors` of `CLIP.image_features`."""
        return self.tower(params["image"], state, images, **options)

    def head(self, params: Any, state: Any, features: jax.Array) -> jax.Array:
        """Return z float32[B, K] of features float32[B, E]."""
        del state
        layer = params["head"]
        return jnp.matmul(unit(features), layer["kernel"], precision=jax.lax.Precision.HIGHEST) + layer["bias"]


@functools.partial(jax.jit, static_argnums=0)
def _init(model: LinearHead, key: jax.Array) -> tuple[Any, Any]:
    tower_key, head_key = jax.random.split(key)
    whole = model.clip.init(tower_key)
    text = unit(jax.random.normal(head_key, (model.num_classes, model.clip.sizes.embed_dim)))
    return model.pretrained(None, whole, text)
