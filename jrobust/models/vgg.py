"""VGG16 with batch norm for small images."""

from __future__ import annotations

from typing import Any, ClassVar

import flax.linen as nn
import jax

from jrobust.models.activation import activation
from jrobust.models.fsr import Separation, separator
from jrobust.models.layers import DType, Initializer, at_least_float32, conv, head, norm, pool

# Convolutions of each group and their width, in units of the first one's.
GROUPS = ((2, 1), (2, 2), (3, 4), (3, 8), (3, 8))
linear_init: Initializer = nn.initializers.normal(0.01)


class Group(nn.Module):
    """Convolutions 3x3 with bias, each before BN and activation, named conv1, bn1, conv2, ..."""

    features: int
    convolutions: int
    dtype: DType
    axis_name: str | None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool, beta: float | None) -> jax.Array:
        """Map float[B, H, W, C] to float[B, H, W, features]."""
        for i in range(1, self.convolutions + 1):
            x = conv(self.features, 3, bias=True, dtype=self.dtype, name=f"conv{i}")(x)
            x = activation(norm(train=train, dtype=self.dtype, axis_name=self.axis_name, name=f"bn{i}")(x), beta)
        return x


class VGG(nn.Module):
    """VGG16: five groups of convolutions, each before a max-pool 2x2; mean over the map; three linear layers.

    Simonyan and Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition", ICLR 2015, in the form
    for CIFAR that FSR's released code trains: batch norm, hidden linear layers fc1 and fc2 of 512 units, no dropout.
    The mean after the last max-pool takes images of any size from 32x32. Convolutions start as N(0, 2 / (k k c_out)),
    linear weights as N(0, 0.01^2), every bias as 0. Parameters with 10 classes: 15,253,578.
    """

    num_classes: int
    width: int = 64  # of the first group; the last and the hidden linear layers have eight times that
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

        "features" is what the last linear layer sees. `keys` serve an FSR module alone.
        """
        separate = separator(self, train=train, beta=beta, keys=keys, mask_mode=mask_mode, head_init=linear_init)
        seen: dict[str, Any] = {}
        for i, (convolutions, factor) in enumerate(GROUPS, start=1):
            group = Group(factor * self.width, convolutions, self.dtype, self.axis_name, name=f"layer{i}")
            seen[f"layer{i}"] = x = group(x, train, beta)
            x = separate(f"block{i}", x, seen)
            if i == len(GROUPS):
                seen["feature_map"] = x = self.perturb("feature_map", x)
            x = nn.max_pool(x, (2, 2), (2, 2))
        x = pool(x)
        for i in (1, 2):
            wide = at_least_float32(self.dtype)
            layer = nn.Dense(8 * self.width, True, self.dtype, wide, None, linear_init, name=f"fc{i}")
            x = activation(layer(x), beta)
        seen["features"] = x
        return head(self.num_classes, dtype=self.dtype, init=linear_init)(x), seen
