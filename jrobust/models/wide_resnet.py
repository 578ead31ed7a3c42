"""Wide residual networks for small images, as ART trains them."""

from __future__ import annotations

from typing import Any, ClassVar

import flax.linen as nn
import jax

from jrobust.models.activation import activation
from jrobust.models.dropout import dropout
from jrobust.models.fsr import Separation, separator
from jrobust.models.layers import DType, conv, head, norm, pool


class WideBlock(nn.Module):
    """Two 3x3 convolutions, each after BN and activation, plus a shortcut.

        y = s + conv2(drop(act(bn2(conv1(act(bn1(x)))))))

    Where the width changes, s = conv1x1(act(bn1(x))), otherwise s = x.
    """

    features: int
    stride: int
    dropout: float
    number: int  # of the block in the network: separates the dropout masks
    dtype: DType
    axis_name: str | None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool, beta: float | None, keys: jax.Array | None) -> jax.Array:
        """Map float[B, H, W, C] to float[B, H / stride, W / stride, features]."""
        batch_norm = {"train": train, "dtype": self.dtype, "axis_name": self.axis_name}
        out = activation(norm(**batch_norm, name="bn1")(x), beta)
        if x.shape[-1] != self.features:
            x = conv(self.features, 1, self.stride, dtype=self.dtype, beta=beta, name="shortcut")(out)
        out = conv(self.features, 3, self.stride, dtype=self.dtype, beta=beta, name="conv1")(out)
        out = activation(norm(**batch_norm, name="bn2")(out), beta)
        if train and self.dropout > 0:
            out = dropout(out, self.dropout, keys, self.number)
        return x + conv(self.features, 3, dtype=self.dtype, name="conv2")(out)


class WideStage(nn.Module):
    """Blocks of one width; the first one has the stride."""

    features: int
    blocks: int
    stride: int
    dropout: float
    number: int  # of its first block
    dtype: DType
    axis_name: str | None
    remat: bool

    @nn.compact
    def __call__(self, x: jax.Array, train: bool, beta: float | None, keys: jax.Array | None) -> jax.Array:
        """Map float[B, H, W, C] to float[B, H / stride, W / stride, features]."""
        block = nn.remat(WideBlock, static_argnums=(2,)) if self.remat else WideBlock
        for i in range(self.blocks):
            stride, number = (self.stride if i == 0 else 1), self.number + i
            layer = block(self.features, stride, self.dropout, number, self.dtype, self.axis_name, name=str(i))
            x = layer(x, train, beta, keys)
        return x


class WideResNet(nn.Module):
    """WRN-d-k: conv 3x3, three groups of (d - 4) / 6 blocks of widths 16k, 32k, 64k, BN, activation, mean, linear.

    Zagoruyko and Komodakis, "Wide Residual Networks", BMVC 2016, in the pre-activation form of ART's released code.
    Convolutions without bias start as N(0, 2 / (k k c_out)), the linear weights as U(+-1/sqrt(fan_in)), its bias as 0.
    Parameters with 10 classes: WRN-28-10 36,479,194; WRN-34-10 46,160,474; WRN-40-2 2,243,546.
    """

    num_classes: int
    depth: int = 28
    width: int = 10
    dropout: float = 0.0
    dtype: DType = "float32"
    axis_name: str | None = None
    remat: bool = False  # recompute each block in the backward pass
    fsr: Separation | None = None  # modules after groups; the one of block3 stands behind the last BN and activation

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
        """Return logits float32[B, K] and the intermediates stem, layer1..3, feature_map (last activated), features."""
        separate = separator(self, train=train, beta=beta, keys=keys, mask_mode=mask_mode)
        blocks = (self.depth - 4) // 6
        seen: dict[str, Any] = {"stem": conv(16, 3, dtype=self.dtype, name="conv1")(x)}
        x = seen["stem"]
        for stage in range(3):
            layer = WideStage(
                features=16 * self.width * 2**stage,
                blocks=blocks,
                stride=1 if stage == 0 else 2,
                dropout=self.dropout,
                number=stage * blocks,
                dtype=self.dtype,
                axis_name=self.axis_name,
                remat=self.remat,
                name=f"layer{stage + 1}",
            )
            seen[f"layer{stage + 1}"] = x = layer(x, train, beta, keys)
            if stage < 2:
                x = separate(f"block{stage + 1}", x, seen)
        x = norm(train=train, dtype=self.dtype, axis_name=self.axis_name, name="bn1")(x)
        x = separate("block3", activation(x, beta), seen)
        seen["feature_map"] = x = self.perturb("feature_map", x)
        seen["features"] = x = pool(x)
        return head(self.num_classes, dtype=self.dtype)(x), seen
