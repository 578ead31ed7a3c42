"""Two tiny networks for 8x8 digits and for tests."""

from __future__ import annotations

from typing import Any, ClassVar

import flax.linen as nn
import jax

from jrobust.models.activation import activation
from jrobust.models.dropout import dropout
from jrobust.models.fsr import Separation, separator
from jrobust.models.layers import DType, at_least_float32, conv, head, norm, pool, torch_bias, torch_default


class SmallCNN(nn.Module):
    """Three times conv 3x3, BN, activation with widths w, 2w, 2w and strides 1, 2, 1; mean over the map; linear."""

    num_classes: int
    width: int = 16
    dropout: float = 0.0
    dtype: DType = "float32"
    axis_name: str | None = None
    fsr: Separation | None = None  # modules after layers

    blocks: ClassVar[tuple[str, ...]] = ("block1", "block2", "block3")

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
        """Return logits float32[B, K] and the intermediates layer1..3, feature_map (the last map), features."""
        separate = separator(self, train=train, beta=beta, keys=keys, mask_mode=mask_mode)
        seen: dict[str, Any] = {}
        for i, (factor, stride) in enumerate(((1, 1), (2, 2), (2, 1)), start=1):
            x = conv(factor * self.width, 3, stride, dtype=self.dtype, beta=beta, name=f"conv{i}")(x)
            x = norm(train=train, dtype=self.dtype, axis_name=self.axis_name, name=f"bn{i}")(x)
            seen[f"layer{i}"] = x = activation(x, beta)
            x = separate(f"block{i}", x, seen)
        seen["feature_map"] = x = self.perturb("feature_map", x)
        seen["features"] = x = pool(x)
        if train and self.dropout > 0:
            x = dropout(x, self.dropout, keys, 0)
        return head(self.num_classes, dtype=self.dtype)(x), seen


class MLP(nn.Module):
    """`depth` hidden layers of `width` units without batch norm, and a linear head; PyTorch's default start."""

    num_classes: int
    depth: int = 2
    width: int = 64
    dropout: float = 0.0
    dtype: DType = "float32"
    axis_name: str | None = None  # unused: there are no batch statistics

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
        """Return logits float32[B, K] and the intermediates layer1.., features (the last hidden layer)."""
        del mask_mode  # there is no feature map to separate
        seen: dict[str, Any] = {}
        x = x.reshape(x.shape[0], -1)
        wide = at_least_float32(self.dtype)
        for i in range(1, self.depth + 1):
            bias = torch_bias(x.shape[-1])
            layer = nn.Dense(self.width, True, self.dtype, wide, None, torch_default, bias, name=f"fc{i}")
            seen[f"layer{i}"] = x = activation(layer(x), beta)
            if train and self.dropout > 0:
                x = dropout(x, self.dropout, keys, i)
        seen["features"] = x
        return head(self.num_classes, dtype=self.dtype, bias_init=torch_bias(x.shape[-1]))(x), seen
