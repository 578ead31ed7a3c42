"""Resizing on the device in the meaning of PIL: bilinear with antialiasing, in whole levels, as two matrix products."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

_STEPS = 2**22  # PIL rounds its weights to multiples of 1 / this
_COARSE = 2**12  # times 255 levels this fits into float32; so does what is left of a weight


def resized(image: jax.Array, side: int, center: int = 0) -> jax.Array:
    """Return float32[H', W', C] for [H, W, C] of 0..255: the shorter side becomes `side`, the longer in proportion.

    With `center` only the central square of that side is computed, cut out as torchvision's CenterCrop does.

    The same as PIL's Image.resize on uint8, level for level.
    """
    height, width, _ = image.shape
    sides = [side * length // min(height, width) for length in (height, width)]
    down, across = bilinear_weights(height, sides[0]), bilinear_weights(width, sides[1])
    if center:
        top, left = (central(size, center) for size in sides)
        down, across = down[top : top + center], across[left : left + center]
    rows = _levels("ow,hwc->hoc", across, image.astype(jnp.float32))
    return _levels("oh,hwc->owc", down, rows)


def center_crop(image: jax.Array, size: int) -> jax.Array:
    """Return the central square of [H, W, C], as torchvision's CenterCrop."""
    top, left = (central(length, size) for length in image.shape[:2])
    return image[top : top + size, left : left + size]


def central(length: int, size: int) -> int:
    """Return where the central `size` pixels of `length` begin."""
    return round((length - size) / 2)


@functools.cache
def bilinear_weights(length: int, size: int) -> np.ndarray:
    """Return float32[size, length]: how much of each input pixel is in each output pixel.

    A triangle about the centre of the output pixel, whose half width is one output pixel where that is more than one
    input pixel, else one input pixel; normalised over the picture, then rounded as in PIL.
    """
    scale = length / size
    centre = (np.arange(size)[:, None] + 0.5) * scale
    weights = np.maximum(0, 1 - np.abs(np.arange(length)[None, :] + 0.5 - centre) / max(scale, 1))
    weights /= weights.sum(1, keepdims=True)
    return (np.floor(weights * _STEPS + 0.5) / _STEPS).astype(np.float32)


def _levels(product: str, weights: np.ndarray, levels: jax.Array) -> jax.Array:
    """Return a product of weights and whole levels, rounded half up to whole levels without an error of float32.

    A weight of 22 bits times a level has 30; float32 holds 24. So its first 12 bits and its last 10 are summed apart.
    """
    exact = jax.lax.Precision.HIGHEST  # accelerators round the factors of products to 8 or 11 bits
    coarse = np.floor(weights * _COARSE) / np.float32(_COARSE)
    total = jnp.einsum(product, coarse, levels, precision=exact) + 0.5
    fine = weights - coarse
    if not fine.any():  # so from 32 or 64 to 256 pixels
        return jnp.floor(total)
    whole = jnp.floor(total)
    return whole + jnp.floor(total - whole + jnp.einsum(product, fine, levels, precision=exact))
