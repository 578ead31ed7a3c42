"""VGG16: torchvision's for large images, and one with batch norm for CIFAR."""

from __future__ import annotations

from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jrobust.models.activation import activation
from jrobust.models.dropout import dropout
from jrobust.models.fsr import Separation, separator
from jrobust.models.layers import DType, Initializer, at_least_float32, conv, head, norm, pool

# Convolutions of each group and their width, in units of the first one's.
GROUPS = ((2, 1), (2, 2), (3, 4), (3, 8), (3, 8))
linear_init: Initializer = nn.initializers.normal(0.01)


class Group(nn.Module):
    """Convolutions 3x3 with bias, each before BN (if there is any) and activation, named conv1, bn1, conv2, ..."""

    features: int
    convolutions: int
    batch_norm: bool
    dtype: DType
    axis_name: str | None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool, beta: float | None) -> jax.Array:
        """Map float[B, H, W, C] to float[B, H, W, features]."""
        for i in range(1, self.convolutions + 1):
            x = conv(self.features, 3, bias=True, dtype=self.dtype, name=f"conv{i}")(x)
            if self.batch_norm:
                x = norm(train=train, dtype=self.dtype, axis_name=self.axis_name, name=f"bn{i}")(x)
            x = activation(x, beta)
        return x


def grid_means(x: jax.Array, cells: int) -> jax.Array:
    """Return the means of float[B, H, W, C] over `cells` by `cells` windows, in at least float32.

    Window i of n pixels goes from floor(i n / cells) to ceil((i + 1) n / cells), as in PyTorch's adaptive pooling:
    windows overlap where n is no multiple of `cells`, and with n = `cells` the map stays as it is.
    """
    x = x.astype(at_least_float32(x.dtype))
    for axis in (1, 2):
        size = x.shape[axis]
        if size != cells:
            weights = np.zeros((cells, size))
            for i in range(cells):
                start, end = i * size // cells, -(-(i + 1) * size // cells)
                weights[i, start:end] = 1 / (end - start)
            product = jnp.tensordot(jnp.asarray(weights, x.dtype), x, (1, axis), precision=jax.lax.Precision.HIGHEST)
            x = jnp.moveaxis(product, 0, axis)
    return x


class VGG(nn.Module):
    """VGG16: five groups of convolutions, each before a max-pool 2x2; means over the map; three linear layers.

    Simonyan and Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition", ICLR 2015. As it
    stands, the form for CIFAR that FSR's released code trains: batch norm, the mean over the whole map, hidden linear
    layers fc1 and fc2 of 512 units, no dropout; 15,253,578 parameters with 10 classes. With `batch_norm=False, grid=7,
    hidden=4096, dropout=0.5` it is torchvision's for ImageNet, 138,357,544 parameters with 1000 classes. Images may
    have any size from 32x32. Convolutions start as N(0, 2 / (k k c_out)), linear weights as N(0, 0.01^2), every bias
    as 0.
    """

    num_classes: int
    width: int = 64  # of the first group; the last has eight times that
    batch_norm: bool = True
    grid: int = 1  # the map is averaged to this many cells on a side, as channels x rows x columns
    hidden: int | None = None  # units of fc1 and fc2; None for those of the last group
    dropout: float = 0.0  # behind each of them
    dtype: DType = "float32"
    axis_name: str | None = None
    fsr: Separation | None = None  # modules between a group and its max-pool

    blocks: ClassVar[tuple[str, ...]] = ("block1", "block2", "block3", "block4", "block5")

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        *,
        train: bool = False,
        beta: float | None = None,
        keys: jax.Array | None = None,
        mask_mode: str | None = None,
    ) -> tuple[jax.Array, dict[str, Any]]:
        """Return logits float32[B, K] and the intermediates layer1..5, feature_map (after layer5), features.

        "features" is what fc2 gives, before dropout. `keys` serve dropout and an FSR module.
        """
        separate = separator(self, train=train, beta=beta, keys=keys, mask_mode=mask_mode, head_init=linear_init)
        seen: dict[str, Any] = {}
        for i, (convolutions, factor) in enumerate(GROUPS, start=1):
            settings = (self.batch_norm, self.dtype, self.axis_name)
            group = Group(factor * self.width, convolutions, *settings, name=f"layer{i}")
            seen[f"layer{i}"] = x = group(x, train, beta)
            x = separate(f"block{i}", x, seen)
            if i == len(GROUPS):
                seen["feature_map"] = x = self.perturb("feature_map", x)
            x = nn.max_pool(x, (2, 2), (2, 2))
        # PyTorch's order of what the first linear layer reads.
        x = pool(x) if self.grid == 1 else grid_means(x, self.grid).transpose(0, 3, 1, 2).reshape(x.shape[0], -1)
        for i in (1, 2):
            wide, units = at_least_float32(self.dtype), self.hidden or 8 * self.width
            layer = nn.Dense(units, True, self.dtype, wide, None, linear_init, name=f"fc{i}")
            seen["features"] = x = activation(layer(x), beta)
            if train and self.dropout > 0:
                x = dropout(x, self.dropout, keys, i)
        return head(self.num_classes, dtype=self.dtype, init=linear_init)(x), seen
