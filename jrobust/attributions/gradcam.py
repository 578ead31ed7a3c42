"""Grad-CAM: where the last feature map of a network speaks for a class (Selvaraju et al., ICCV 2017)."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jrobust.attributions.gradients import logit_score, wide

# perturbation, of the map's shape or a number -> logits float[B, K] and the map float[B, h, w, D] it was added to
LogitsAndMap = Callable[[jax.Array | float], tuple[jax.Array, jax.Array]]


def grad_cam(logits_and_map: LogitsAndMap, classes: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Return where in the images the evidence for `classes` lies: float32[B, H, W] in [0, 1] (or wider).

        alpha_d = (1 / hw) sum_ij d f_c / d A_ijd,   L = max(0, sum_d alpha_d A_d)      (Eq. 1 and 2)

    L is resized to the image bilinearly (half-pixel centres, no antialiasing: as PyTorch), and each image's map brought
    to [0, 1] by itself; a map of one value becomes 0. For a mean over the map and a linear layer W alpha_d = W_dc / hw.

    Args:
      logits_and_map: what a classifier says about the images where its feature map A is A + perturbation, and that map;
        in inference mode, in which no example sees another.
      classes: int[B], the class c of each image.
      size: (H, W) of the images.
    """
    map_shape = jax.eval_shape(lambda: logits_and_map(0.0))[1]

    def score(perturbation: jax.Array) -> tuple[jax.Array, jax.Array]:
        logits, feature_map = logits_and_map(perturbation)
        return jnp.sum(logit_score(lambda _: logits, classes)(perturbation)), feature_map

    gradient, feature_map = jax.grad(score, has_aux=True)(jnp.zeros(map_shape.shape, map_shape.dtype))
    alpha = jnp.mean(wide(gradient), axis=(1, 2), keepdims=True)
    cam = jax.nn.relu(jnp.sum(alpha * wide(feature_map), axis=-1))
    return _unit_range(jax.image.resize(cam, (cam.shape[0], *size), "linear", antialias=False))


def _unit_range(maps: jax.Array) -> jax.Array:
    low, high = jnp.min(maps, (1, 2), keepdims=True), jnp.max(maps, (1, 2), keepdims=True)
    return (maps - low) / jnp.where(high > low, high - low, 1)
