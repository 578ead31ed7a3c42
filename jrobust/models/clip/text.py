"""CLIP's text transformer."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from jrobust.errors import InputError
from jrobust.models.clip.blocks import Block, LayerNorm, normal, projection
from jrobust.models.layers import DType, at_least_float32


class TextTransformer(nn.Module):
    """Token and position embeddings, blocks under a causal mask, `ln_final` at the end token, projection.

    The end token is the largest id there is: the first place of the largest id in a row is where the text is read out.
    No place sees a later one, so what stands after the end token (smaller ids) changes nothing.
    """

    embed_dim: int
    width: int
    layers: int
    heads: int
    vocabulary: int
    context: int
    activation: str = "quick_gelu"
    dtype: DType = "float32"

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Map ids int[N, T], T at most `context`, to features float32[N, embed_dim], which have no unit length.

        Raises:
          InputError: a row is longer than the context.
        """
        length = tokens.shape[1]
        if length > self.context:
            raise InputError(f"texts have {length} tokens: this model reads at most {self.context}; cut them")
        wide, width = at_least_float32(self.dtype), self.width
        embedding = nn.Embed(self.vocabulary, width, self.dtype, wide, normal(0.02), name="token_embedding")
        positions = self.param("pos_embedding", normal(0.01), (self.context, width), wide)
        x = embedding(tokens) + positions[:length].astype(self.dtype)
        mask = jnp.where(jnp.tri(length, dtype=bool), 0.0, -jnp.inf).astype(wide)
        stds = (width**-0.5, width**-0.5 * (2 * self.layers) ** -0.5, (2 * width) ** -0.5)
        for i in range(self.layers):
            x = Block(self.heads, self.activation, self.dtype, stds, name=f"blocks_{i}")(x, mask)
        x = x[jnp.arange(x.shape[0]), jnp.argmax(tokens, axis=1)]
        x = LayerNorm(wide, name="ln_final")(x)
        return projection(self.embed_dim, dtype=self.dtype, std=width**-0.5)(x)
