"""Bicubic resizing as two constant matrix products: exactly differentiable, and what the references compute."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from jrobust.errors import unknown

# Name -> (cubic coefficient a, whether the kernel widens when shrinking and is cut off at the border).
FORMS = {
    "bicubic": (-0.75, False),  # PyTorch's interpolate: what adversarial pipelines put before CLIP
    "bicubic_antialias": (-0.5, True),  # PIL's, before its rounding: what CLIP's own preprocessing uses
}


@functools.lru_cache(maxsize=64)
def resize_matrix(size_in: int, size_out: int, form: str = "bicubic") -> np.ndarray:
    """Return M float64[size_out, size_in]: a line of `size_in` pixels becomes `M x`; every row sums to 1. Read-only.

        w(t) = (a + 2) |t|^3 - (a + 3) |t|^2 + 1           |t| <= 1
             = a |t|^3 - 5 a |t|^2 + 8 a |t| - 4 a         1 < |t| < 2,    0 beyond

    Pixels have their centres at i + 1/2 (`align_corners=False`). "bicubic" has a = -0.75 and four taps; a tap beyond
    the border reads the border pixel. "bicubic_antialias" has a = -0.5 and a kernel as wide as an output pixel where
    it shrinks; taps beyond the border are left out and the rest rescaled.

    Raises:
      InputError: an unknown form.
    """
    if form not in FORMS:
        raise unknown("interpolation", form, FORMS)
    a, antialias = FORMS[form]
    step = size_in / size_out
    width = max(step, 1.0) if antialias else 1.0
    centres = (np.arange(size_out) + 0.5) * step - 0.5
    # Where a form reaches past the border: far enough for its whole kernel.
    taps = np.arange(-int(2 * width) - 2, size_in + int(2 * width) + 2)
    weights = _cubic((taps - centres[:, None]) / width, a)
    if antialias:
        matrix = weights[:, (taps >= 0) & (taps < size_in)]
    else:
        matrix = weights @ np.eye(size_in)[taps.clip(0, size_in - 1)]
    matrix = matrix / matrix.sum(1, keepdims=True)
    matrix.flags.writeable = False
    return matrix


def _cubic(t: np.ndarray, a: float) -> np.ndarray:
    t = np.abs(t)
    near = ((a + 2) * t - (a + 3)) * t * t + 1
    far = ((a * t - 5 * a) * t + 8 * a) * t - 4 * a
    return np.where(t <= 1, near, np.where(t < 2, far, 0.0))


def resize(images: jax.Array, size: int, form: str = "bicubic") -> jax.Array:
    """Return images float[B, H, W, C] as float[B, size, size, C]: `M X M^T` channel by channel; float32 at least.

    Values may leave the range of the input: nothing is clamped. Images of that size are returned as they are.
    `jax.image.resize(..., "cubic")` is not the form "bicubic": it has a = -0.5 and differs by up to 0.09.

    Raises:
      InputError: an unknown form.
    """
    height, width = images.shape[1:3]
    dtype = jnp.promote_types(images.dtype, jnp.float32)
    rows, columns = resize_matrix(height, size, form), resize_matrix(width, size, form)
    images = images.astype(dtype)
    # Accelerators multiply float32 in about ten bits unless told otherwise: grey levels would be lost.
    product = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)
    if height != size:
        images = product("ij,bjwc->biwc", jnp.asarray(rows, dtype), images)
    return images if width == size else product("ij,bhjc->bhic", jnp.asarray(columns, dtype), images)
