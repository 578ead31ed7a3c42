"""The parts that both transformers are made of: attention, layer norm, the two activations, residual blocks."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from jrobust.models.layers import DType, Initializer, at_least_float32, torch_bias, torch_default

normal = nn.initializers.normal
zeros = nn.initializers.zeros_init()
# Xavier-uniform of the joint matrix (3 D, D) of query, key and value, PyTorch's start: U(+-sqrt(6 / (4 D))).
joint_xavier: Initializer = nn.initializers.variance_scaling(0.5, "fan_in", "uniform")


def quick_gelu(x: jax.Array) -> jax.Array:
    """Return `x sigmoid(1.702 x)`: not GELU, and OpenAI's weights need it."""
    return x * jax.nn.sigmoid(1.702 * x)


def gelu(x: jax.Array) -> jax.Array:
    """Return `x Phi(x)` with the exact normal distribution function, as some of open_clip's weights need it."""
    return jax.nn.gelu(x, approximate=False)


ACTIVATIONS = {"quick_gelu": quick_gelu, "gelu": gelu}


class LayerNorm(nn.Module):
    """Layer norm over the last axis, eps 1e-5: computed in float32 (or float64) whatever the type of the body."""

    dtype: DType

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map float[..., D] to `dtype`[..., D]."""
        wide = at_least_float32(self.dtype)
        scale = self.param("scale", nn.initializers.ones_init(), x.shape[-1:], wide)
        bias = self.param("bias", zeros, x.shape[-1:], wide)
        x = x.astype(wide)
        # The mean of squares less the squared mean would cancel: some of CLIP's channels are a hundred times the rest.
        centred = x - jnp.mean(x, -1, keepdims=True)
        variance = jnp.mean(jnp.square(centred), -1, keepdims=True)
        return (centred * jax.lax.rsqrt(variance + 1e-5) * scale + bias).astype(self.dtype)


class Attention(nn.Module):
    """Multi-head attention of `queries` to `tokens`, with separate projections that have biases.

        P = softmax(Q K^T / sqrt(D / heads) + mask),      out = concat(P V) W + b

    The softmax is computed in float32 at least. Its probabilities P float[B, heads, queries, tokens] are sown as
    "probabilities" in the collection "intermediates", and what the collection "perturbations" holds under that name
    is added to them: a gradient with respect to it is that with respect to P. Where the collection "factors" holds e
    under that name they are P (1 + e). Without those collections none of this costs.
    """

    heads: int
    features: int  # of the output
    dtype: DType
    in_init: Initializer = joint_xavier
    out_init: Initializer = torch_default
    bias_init: Initializer = zeros

    @nn.compact
    def __call__(self, queries: jax.Array, tokens: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        """Map float[B, Q, D] and float[B, T, D] to float[B, Q, features].

        `mask`, float[Q, T] or float[B, 1, 1, T], is added to the scores.
        """
        wide = at_least_float32(self.dtype)
        size = tokens.shape[-1] // self.heads

        def project(name: str) -> nn.DenseGeneral:
            return nn.DenseGeneral(
                (self.heads, size),
                dtype=self.dtype,
                param_dtype=wide,
                kernel_init=self.in_init,
                bias_init=self.bias_init,
                name=name,
            )

        query, key, value = project("query")(queries), project("key")(tokens), project("value")(tokens)
        scores = jnp.einsum("bqhd,bkhd->bhqk", query, key, preferred_element_type=wide) * size**-0.5
        probabilities = jax.nn.softmax(scores if mask is None else scores + mask, axis=-1)
        probabilities = self.perturb("probabilities", probabilities)
        if self.has_variable("factors", "probabilities"):
            probabilities = probabilities * (1 + self.get_variable("factors", "probabilities"))
        self.sow("intermediates", "probabilities", probabilities)
        mixed = jnp.einsum("bhqk,bkhd->bqhd", probabilities.astype(self.dtype), value)
        out = nn.DenseGeneral(
            self.features,
            axis=(-2, -1),
            dtype=self.dtype,
            param_dtype=wide,
            kernel_init=self.out_init,
            bias_init=self.bias_init,
            name="out",
        )
        return out(mixed)


class MLP(nn.Module):
    """D -> 4 D -> D with biases."""

    activation: str
    dtype: DType
    in_init: Initializer
    out_init: Initializer

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map float[..., D] to float[..., D]."""
        features, wide = x.shape[-1], at_least_float32(self.dtype)
        x = nn.Dense(4 * features, True, self.dtype, wide, None, self.in_init, torch_bias(features), name="fc1")(x)
        x = ACTIVATIONS[self.activation](x)
        bias = torch_bias(4 * features)
        return nn.Dense(features, True, self.dtype, wide, None, self.out_init, bias, name="fc2")(x)


class Block(nn.Module):
    """A residual block: `x = x + attn(ln_1(x))`, then `x = x + mlp(ln_2(x))`.

    `stds` are the standard deviations at the start of the query, key and value matrices, of the two matrices that add
    to the stream, and of the MLP's first; None is PyTorch's own start.
    """

    heads: int
    activation: str
    dtype: DType
    stds: tuple[float, float, float] | None = None

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        """Map float[B, T, D] to float[B, T, D]; `mask` as in `Attention`."""
        inits = tuple(map(normal, self.stds)) if self.stds else (joint_xavier, torch_default, torch_default)
        in_init, out_init, mlp_init = inits
        attention = Attention(self.heads, x.shape[-1], self.dtype, in_init, out_init, name="attn")
        normed = LayerNorm(self.dtype, name="ln_1")(x)
        x = x + attention(normed, normed, mask)
        mlp_out = out_init if self.stds else torch_default
        mlp = MLP(self.activation, self.dtype, mlp_init, mlp_out, name="mlp")
        return x + mlp(LayerNorm(self.dtype, name="ln_2")(x))


def projection(features: int, *, dtype: DType, std: float) -> nn.Dense:
    """Return the last layer `proj`, without bias, in at least float32; it starts as N(0, std^2)."""
    wide = at_least_float32(dtype)
    return nn.Dense(features, False, wide, wide, None, normal(std), name="proj")
