"""Visual prompts: learned pixels that are added to the normalised image, and learned tokens beside the patches.

Mao et al., "Understanding Zero-Shot Adversarial Robustness for Large-Scale Models", ICLR 2023 (TeCoA).
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jrobust.errors import InputError


class Border(NamedTuple):
    """A frame of `w` pixels around an image of n by n; the corners belong to the top and the bottom."""

    up: jax.Array  # float[w, n, 3]
    down: jax.Array  # float[w, n, 3]
    left: jax.Array  # float[n - 2 w, w, 3]
    right: jax.Array  # float[n - 2 w, w, 3]

    def image(self) -> jax.Array:
        """Return the frame as float[n, n, 3], 0 inside."""
        (inner, width, channels), side = self.left.shape, self.up.shape[1]
        middle = jnp.zeros((inner, side - 2 * width, channels), self.left.dtype)
        return jnp.concatenate([self.up, jnp.concatenate([self.left, middle, self.right], axis=1), self.down])


class Prompts(NamedTuple):
    """What a model adds to every image; None leaves a part out. A pytree: what visual-prompt methods train."""

    pixels: jax.Array | Border | None = None  # full image float[n, n, 3], or a frame; added after normalisation
    tokens: jax.Array | None = None  # float[P, width], for a ViT; appended after the patches, without positions

    def image(self) -> jax.Array | None:
        """Return the pixels as one image float[n, n, 3]."""
        return self.pixels.image() if isinstance(self.pixels, Border) else self.pixels


def border(key: jax.Array, image_size: int, width: int = 30) -> Border:
    """Return a frame for images of `image_size`, drawn from N(0, 1) as in the released code.

    Raises:
      InputError: the frame leaves nothing of the image free.
    """
    inner = image_size - 2 * width
    if width < 1 or inner < 1:
        raise InputError(f"a border of {width} pixels on {image_size}: expected at least 1 and less than half the side")
    shapes = ((width, image_size, 3), (width, image_size, 3), (inner, width, 3), (inner, width, 3))
    keys = jax.random.split(key, len(shapes))
    return Border(*(jax.random.normal(k, shape) for k, shape in zip(keys, shapes, strict=True)))
