"""CLIP's vision transformer."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from jrobust.models.clip.blocks import Block, LayerNorm, normal, projection
from jrobust.models.layers import DType, at_least_float32, torch_default


class PatchEmbedding(nn.Module):
    """A convolution whose kernel and stride are the patch, without bias: one product of matrices.

    Patches are in the order of reading. Written as a product because XLA's gradient of a convolution inside a loop is
    slow on CPU, and every attack is one.
    """

    patch: int
    width: int
    dtype: DType

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """Map float[B, H, W, C] to float[B, H W / patch^2, width]."""
        batch, height, width, channels = images.shape
        shape = (self.patch, self.patch, channels, self.width)
        kernel = self.param("kernel", torch_default, shape, at_least_float32(self.dtype))
        cells = images.reshape(batch, height // self.patch, self.patch, width // self.patch, self.patch, channels)
        cells = cells.transpose(0, 1, 3, 2, 4, 5).reshape(batch, -1, self.patch * self.patch * channels)
        return cells.astype(self.dtype) @ kernel.reshape(-1, self.width).astype(self.dtype)


def drop(x: jax.Array, keep: jax.Array, patches: int) -> tuple[jax.Array, jax.Array | None]:
    """Return tokens float[B, T, D], of which 1 .. `patches` are patches, without some, or a mask for their attention.

    For `keep` see `VisionTransformer`. No block mixes tokens but in its attention, so that to one token it is the same
    whether others are gone or are not looked at.
    """
    if keep.dtype == bool:
        seen = jnp.pad(keep, ((0, 0), (1, x.shape[1] - 1 - patches)), constant_values=True)
        return x, jnp.where(seen, 0.0, -jnp.inf).astype(at_least_float32(x.dtype))[:, None, None, :]
    kept = jnp.take_along_axis(x, 1 + keep[..., None], axis=1)
    return jnp.concatenate([x[:, :1], kept, x[:, 1 + patches :]], axis=1), None


class VisionTransformer(nn.Module):
    """Patches, class token, positions, `ln_pre`, blocks, `ln_post` of the class token, projection.

    Dosovitskiy et al., "An Image is Worth 16x16 Words", ICLR 2021, with CLIP's norm before the blocks. Parameters at
    224 pixels: B/32 87,849,216; B/16 86,192,640; L/14 303,966,208.
    """

    embed_dim: int
    patch: int
    width: int
    layers: int
    heads: int
    activation: str = "quick_gelu"
    dtype: DType = "float32"
    recompute: bool = False  # the inside of blocks in the backward pass, instead of keeping it in memory

    @nn.compact
    def __call__(self, images: jax.Array, prompts: jax.Array | None = None, keep: jax.Array | None = None) -> jax.Array:
        """Map normalised images float[B, n, n, 3] to features float32[B, embed_dim], which have no unit length.

        `prompts`, float[P, width], are tokens that every image gets after its patches, with no position of their own.
        `keep` drops patches: bool[B, N] where a patch is seen, or int[B, K] which K patches are, each once. The first
        leaves the tokens and takes them from what attention sees, the second shortens the sequence; the features are
        the same.
        """
        x = PatchEmbedding(self.patch, self.width, self.dtype, name="patch_embed")(images)
        wide, std, patches = at_least_float32(self.dtype), self.width**-0.5, x.shape[1]
        first = self.param("class_embedding", normal(std), (self.width,), wide).astype(self.dtype)
        x = jnp.concatenate([jnp.broadcast_to(first, (x.shape[0], 1, self.width)), x], axis=1)
        x = x + self.param("pos_embedding", normal(std), x.shape[1:], wide).astype(self.dtype)
        if prompts is not None:
            tokens = jnp.broadcast_to(prompts.astype(self.dtype), (x.shape[0], *prompts.shape))
            x = jnp.concatenate([x, tokens], axis=1)
        x = LayerNorm(self.dtype, name="ln_pre")(x)
        x, mask = (x, None) if keep is None else drop(x, keep, patches)
        block = nn.remat(Block) if self.recompute else Block
        for i in range(self.layers):
            x = block(self.heads, self.activation, self.dtype, name=f"blocks_{i}")(x, mask)
        x = LayerNorm(wide, name="ln_post")(x[:, 0])
        return projection(self.embed_dim, dtype=self.dtype, std=std)(x)
