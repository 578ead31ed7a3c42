"""How well masked patches cover an object (Xiao et al., "Masked Images Are Counterfactual Samples", CVPR 2023, A.2)."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jrobust.attributions.patches import as_patches


class MaskingScores(NamedTuple):
    """Of every image float32[..., B]; NaN in all three for an image without an object, which means leave out.

    With M the masked patches' pixels, S the object's and n(.) a number of pixels:

    Attributes:
      image_masking_rate: n(M) / n(image).
      object_masking_rate: n(M and S) / n(S).
      iou: n(M and S) / n(M or S).
    """

    image_masking_rate: jax.Array
    object_masking_rate: jax.Array
    iou: jax.Array


def masking_scores(mask: jax.Array, segmentation: jax.Array) -> MaskingScores:
    """Return the scores of masks of patches against the objects' pixels, which may come from any source.

    Pixels are counted once a patch, and no mask is brought to the size of the image.

    Args:
      mask: bool[..., B, g, g], True where a patch is masked; more axes are more masks of the same images.
      segmentation: bool[B, H, W], in the frame of the images that were masked; H and W multiples of g.

    Raises:
      InputError: a patch would be no whole number of pixels.
    """
    rows, columns = mask.shape[-2:]
    inside = as_patches(segmentation[..., None].astype(jnp.int32), (rows, columns)).sum((3, 4, 5))
    pixels = segmentation.shape[1] * segmentation.shape[2]
    size = inside.sum((1, 2))
    masked = mask.sum((-2, -1)) * (pixels // (rows * columns))
    shared = (mask * inside).sum((-2, -1))
    empty = size == 0
    ratios = (masked / pixels, shared / jnp.where(empty, 1, size), shared / jnp.where(empty, 1, size + masked - shared))
    return MaskingScores(*(jnp.where(empty, jnp.nan, ratio).astype(jnp.float32) for ratio in ratios))
