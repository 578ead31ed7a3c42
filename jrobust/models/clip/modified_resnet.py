"""CLIP's ResNet: a stem of three convolutions, average pools before strides, attention in place of the last mean."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from jrobust.models.clip.blocks import Attention, normal
from jrobust.models.layers import DType, at_least_float32, conv, pool, torch_bias, torch_default


def _norm(dtype: DType, name: str, *, zero: bool = False) -> nn.BatchNorm:
    """Return batch norm with its running statistics, eps 1e-5; its scale starts as 1, or as 0."""
    scale = nn.initializers.zeros_init() if zero else nn.initializers.ones_init()
    wide = at_least_float32(dtype)
    return nn.BatchNorm(True, epsilon=1e-5, dtype=dtype, param_dtype=wide, scale_init=scale, name=name)


def _pool(x: jax.Array, stride: int) -> jax.Array:
    return x if stride == 1 else nn.avg_pool(x, (stride, stride), (stride, stride))


class Stem(nn.Module):
    """Three 3x3 convolutions, the first with stride 2, each with batch norm and ReLU; average pool 2x2."""

    width: int
    dtype: DType

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map float[B, H, W, 3] to float[B, H / 4, W / 4, width]."""
        for i, features in enumerate((self.width // 2, self.width // 2, self.width), start=1):
            stride = 2 if i == 1 else 1
            x = conv(features, 3, stride, dtype=self.dtype, init=torch_default, name=f"conv{i}")(x)
            x = jax.nn.relu(_norm(self.dtype, f"bn{i}")(x))
        return _pool(x, 2)


class Bottleneck(nn.Module):
    """A residual block of 1x1, 3x3 and 1x1 convolutions, all of stride 1, to four times the width.

    A stride is an average pool before the last convolution, and before the one of the shortcut.
    """

    features: int
    stride: int
    dtype: DType

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map float[B, H, W, C] to float[B, H / stride, W / stride, 4 features]."""

        def convolution(features: int, kernel: int, name: str) -> nn.Conv:
            return conv(features, kernel, dtype=self.dtype, init=torch_default, name=name)

        out = jax.nn.relu(_norm(self.dtype, "bn1")(convolution(self.features, 1, "conv1")(x)))
        out = jax.nn.relu(_norm(self.dtype, "bn2")(convolution(self.features, 3, "conv2")(out)))
        out = convolution(4 * self.features, 1, "conv3")(_pool(out, self.stride))
        out = _norm(self.dtype, "bn3", zero=True)(out)
        if self.stride > 1 or x.shape[-1] != 4 * self.features:
            x = convolution(4 * self.features, 1, "down_conv")(_pool(x, self.stride))
            x = _norm(self.dtype, "down_bn")(x)
        return jax.nn.relu(x + out)


class AttentionPool(nn.Module):
    """The mean of the map asks, the mean and the cells answer: one layer of attention in place of the mean."""

    heads: int
    embed_dim: int
    dtype: DType

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map float[B, H, W, C] to float[B, embed_dim]; the cells are in the order of reading."""
        cells = x.reshape(x.shape[0], -1, x.shape[-1])
        tokens = jnp.concatenate([pool(x)[:, None].astype(x.dtype), cells], axis=1)
        std, wide = x.shape[-1] ** -0.5, at_least_float32(self.dtype)
        tokens = tokens + self.param("pos_embedding", normal(std), tokens.shape[1:], wide).astype(self.dtype)
        attention = Attention(
            self.heads,
            self.embed_dim,
            self.dtype,
            in_init=normal(std),
            out_init=normal(std),
            bias_init=torch_bias(x.shape[-1]),
        )
        nn.share_scope(self, attention)  # its leaves lie in this module's place: attnpool/query
        return attention(tokens[:, :1], tokens)[:, 0]


class ModifiedResNet(nn.Module):
    """Stem, four stages of bottlenecks of 1, 2, 4 and 8 times the width, attention pool.

    Batch norms always use their running statistics. Parameters at 224 pixels: RN50 38,316,896; RN101 56,259,936.
    """

    embed_dim: int
    layers: tuple[int, ...]
    width: int
    heads: int
    dtype: DType = "float32"

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """Map normalised images float[B, n, n, 3] to features float32[B, embed_dim], which have no unit length."""
        x = Stem(self.width, self.dtype, name="stem")(images.astype(self.dtype))
        for stage, blocks in enumerate(self.layers):
            for i in range(blocks):
                stride = 2 if stage > 0 and i == 0 else 1
                x = Bottleneck(self.width * 2**stage, stride, self.dtype, name=f"layer{stage + 1}_{i}")(x)
        x = AttentionPool(self.heads, self.embed_dim, self.dtype, name="attnpool")(x)
        return x.astype(at_least_float32(self.dtype))
