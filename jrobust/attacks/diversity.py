"""Input diversity (Xie et al. 2019): images resized and shifted at random before they are classified."""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp

from jrobust.errors import InputError, unknown

VARIANTS = ("torchattacks", "original", "transferattack")


@dataclasses.dataclass(frozen=True)
class Diversity:
    """The transform T: with a probability, resize an image of side S, put it at a random place among zeros.

    A resized and shifted image is A_h x A_w^T, one matrix an axis, made from the numbers drawn: shapes are static and
    each image has a draw of its own. Published code shares one draw among the images of a batch, which makes results
    depend on the size of the batch; here they do not.

    variant         size, uniform     canvas    interpolation            published in
    torchattacks    0.9 S .. S - 1    S         bilinear                 torchattacks
    original        S .. C - 1        330/299 S nearest                  cihangxie/DI-2-FGSM
    transferattack  S .. C - 1        1.1 S     bilinear                 TransferAttack

    The place is uniform too: 0 .. C - size - 1 from the top and from the left, C being the canvas. Larger canvases are
    resized to S again in the same interpolation. The original code leaves that out, because its networks take any size.

    Attributes:
      variant: see the table.
      probability: of the transform; else an image stays as it is.
    """

    variant: Literal["torchattacks", "original", "transferattack"] = "torchattacks"
    probability: float = 0.5

    def __post_init__(self) -> None:
        if self.variant not in VARIANTS:
            raise unknown("variant of the input diversity", self.variant, VARIANTS)
        if not 0 <= self.probability <= 1:
            raise InputError(f"probability={self.probability}: expected a number from 0 to 1")

    def __call__(self, images: jax.Array, keys: jax.Array) -> jax.Array:
        """Transform images float[B, H, W, C], each by what it draws from its own of the typed keys [B].

        Sizes of both axes are drawn together, places independently.

        Raises:
          InputError: images are so small that there is nothing to choose.
        """
        return jax.vmap(self._one)(images, keys)

    def sizes(self, side: int) -> tuple[int, int, int]:
        """Return for images of a side the least size, the size that is not reached any more, and the canvas."""
        if self.variant == "torchattacks":
            least, end, canvas = int(0.9 * side), side, side
        else:
            canvas = side * 330 // 299 if self.variant == "original" else int(1.1 * side)
            least, end = side, canvas
        if least >= end:
            raise InputError(f"images of side {side}: too small for the input diversity of {self.variant}")
        return least, end, canvas

    def matrix(self, side: int, size: jax.Array, place: jax.Array, dtype: jnp.dtype) -> jax.Array:
        """Return A float[S, S]: one axis resized from S to `size`, put at `place` on the canvas, and that back to S."""
        canvas = self.sizes(side)[2]
        row = jnp.arange(canvas) - place
        inside = (row >= 0) & (row < size)
        matrix = jnp.where(inside[:, None], self._resizing(row, size, side, dtype), 0)
        if canvas != side:
            matrix = self._resizing(jnp.arange(side), jnp.asarray(side), canvas, dtype) @ matrix
        return matrix

    def _one(self, image: jax.Array, key: jax.Array) -> jax.Array:
        whether_key, size_key, top_key, left_key = jax.random.split(key, 4)
        wide = jnp.promote_types(image.dtype, jnp.float32)

        def axis(side: int, place_key: jax.Array) -> jax.Array:
            least, end, canvas = self.sizes(side)
            size = jax.random.randint(size_key, (), least, end, jnp.int32)
            place = jax.random.randint(place_key, (), 0, canvas - size, jnp.int32)
            return self.matrix(side, size, place, wide)

        height, width = axis(image.shape[0], top_key), axis(image.shape[1], left_key)
        changed = jnp.einsum("ih,hwc,jw->ijc", height, image.astype(wide), width, precision="highest")
        whether = jax.random.uniform(whether_key, (), jnp.float32) < self.probability
        return jnp.where(whether, changed.astype(image.dtype), image)

    def _resizing(self, row: jax.Array, size: jax.Array, side: int, dtype: jnp.dtype) -> jax.Array:
        """Return the rows [R, S] of the matrix that resizes an axis from S to `size`, without antialiasing."""
        source = jnp.arange(side)
        if self.variant == "original":
            # Of integers: a quotient of floats may fall short of a whole number.
            return (source == (row * side // size)[:, None]).astype(dtype)
        # Pixel centres lie at half-integers; beyond the outermost ones the edge is repeated.
        at = jnp.clip((row.astype(dtype) + 0.5) * side / size - 0.5, 0, side - 1)
        return jnp.maximum(0, 1 - jnp.abs(at[:, None] - source))
