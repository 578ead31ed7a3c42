"""Residual networks: torchvision's ResNet-18 and 50 for large images, and two families for CIFAR."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jrobust.models.activation import activation
from jrobust.models.fsr import Separation, separator
from jrobust.models.layers import DType, Initializer, conv, head, norm, pool, torch_bias, torch_default


class Downsample(nn.Module):
    """The shortcut where stride or width change: strided 1x1 convolution and batch norm, named 0 and 1."""

    features: int
    stride: int
    dtype: DType
    axis_name: str | None
    kernel_init: Initializer

    @nn.compact
    def __call__(self, x: jax.Array, train: bool, beta: float | None) -> jax.Array:
        """Map float[B, H, W, C] to float[B, H / stride, W / stride, features]."""
        x = conv(self.features, 1, self.stride, dtype=self.dtype, init=self.kernel_init, beta=beta, name="0")(x)
        return norm(train=train, dtype=self.dtype, axis_name=self.axis_name, name="1")(x)


def pad_shortcut(x: jax.Array, features: int, stride: int) -> jax.Array:
    """Return every `stride`-th pixel, with zero channels added equally on both sides (option A of He et al.)."""
    missing = features - x.shape[-1]
    return jnp.pad(x[:, ::stride, ::stride], ((0, 0), (0, 0), (0, 0), (missing // 2, missing - missing // 2)))


class Block(nn.Module):
    """A residual block: 3x3 and 3x3 convolutions, or with `bottleneck` 1x1, 3x3 and 1x1 to four times the width.

        y = act(s + bn(conv(act(bn(conv(x))))))

    The stride of a bottleneck is on its 3x3 convolution, as in torchvision (on the first 1x1 in He et al.).
    """

    features: int
    stride: int
    bottleneck: bool
    shortcut: str
    dtype: DType
    axis_name: str | None
    kernel_init: Initializer

    @nn.compact
    def __call__(self, x: jax.Array, train: bool, beta: float | None) -> jax.Array:
        """Map float[B, H, W, C] to float[B, H / stride, W / stride, features or 4 features]."""
        width, stride = self.features, self.stride
        plan = [(width, 3, stride), (width, 3, 1)]  # width, kernel, stride
        if self.bottleneck:
            plan = [(width, 1, 1), (width, 3, stride), (4 * width, 1, 1)]
        out = x
        for i, (features, kernel, step) in enumerate(plan, start=1):
            out = activation(out, beta) if i > 1 else out
            out = conv(features, kernel, step, dtype=self.dtype, init=self.kernel_init, beta=beta, name=f"conv{i}")(out)
            out = norm(train=train, dtype=self.dtype, axis_name=self.axis_name, name=f"bn{i}")(out)
        if stride != 1 or x.shape[-1] != features:
            if self.shortcut == "pad":
                x = pad_shortcut(x, features, stride)
            else:
                x = Downsample(features, stride, self.dtype, self.axis_name, self.kernel_init, name="downsample")(
                    x, train, beta
                )
        return activation(x + out, beta)


class Stage(nn.Module):
    """Blocks of one width, named 0, 1, ...; the first one has the stride."""

    features: int
    blocks: int
    stride: int
    bottleneck: bool
    shortcut: str
    dtype: DType
    axis_name: str | None
    kernel_init: Initializer
    remat: bool

    @nn.compact
    def __call__(self, x: jax.Array, train: bool, beta: float | None) -> jax.Array:
        """Map float[B, H, W, C] to float[B, H / stride, W / stride, features or 4 features]."""
        block = nn.remat(Block, static_argnums=(2,)) if self.remat else Block
        settings = (self.bottleneck, self.shortcut, self.dtype, self.axis_name, self.kernel_init)
        for i in range(self.blocks):
            x = block(self.features, self.stride if i == 0 else 1, *settings, name=str(i))(x, train, beta)
        return x


class ResNet(nn.Module):
    """Stem, stages of widths w, 2w, 4w, ..., mean over the map, linear layer `fc`; names as in torchvision.

    He et al., "Deep Residual Learning for Image Recognition", CVPR 2016. The stem is conv 7x7 / 2, BN, activation and
    max-pool 3x3 / 2 for large images ("imagenet"), or conv 3x3, BN, activation ("cifar"). The max-pool stays on path P.
    Parameters: resnet50 25,557,032 and resnet18 11,689,512 with 1000 classes; resnet18_cifar 11,173,962 with 10.
    """

    num_classes: int
    stages: tuple[int, ...]  # blocks in each
    width: int = 64
    bottleneck: bool = False
    stem: str = "imagenet"
    shortcut: str = "conv"  # or "pad", without parameters
    last_stride: int = 2  # 1 keeps the map of layer4 at 14x14 for 224x224 images
    kernel_init: Initializer = torch_default  # of convolutions
    head_init: Initializer = torch_default
    dtype: DType = "float32"
    axis_name: str | None = None
    remat: bool = False  # recompute each block in the backward pass
    fsr: Separation | None = None  # modules after stages

    @property
    def blocks(self) -> tuple[str, ...]:
        """The positions there are for an FSR module: block1 is layer1."""
        return tuple(f"block{i + 1}" for i in range(len(self.stages)))

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
        """Return logits float32[B, K] and the intermediates stem, layer1..., feature_map (the last map), features.

        "stem" is the map that enters layer1. `keys` serve an FSR module alone: there is no dropout.
        """
        starts = {"kernel_init": self.kernel_init, "head_init": self.head_init, "bias_init": torch_bias}
        separate = separator(self, train=train, beta=beta, keys=keys, mask_mode=mask_mode, **starts)
        large = self.stem == "imagenet"
        kernel, stride = (7, 2) if large else (3, 1)
        x = conv(self.width, kernel, stride, dtype=self.dtype, init=self.kernel_init, beta=beta, name="conv1")(x)
        x = norm(train=train, dtype=self.dtype, axis_name=self.axis_name, name="bn1")(x)
        x = activation(x, beta)
        if large:
            x = nn.max_pool(x, (3, 3), (2, 2), padding=((1, 1), (1, 1)))
        seen: dict[str, Any] = {"stem": x}
        for i, blocks in enumerate(self.stages):
            stride = 1 if i == 0 else self.last_stride if i == len(self.stages) - 1 else 2
            layer = Stage(
                features=self.width * 2**i,
                blocks=blocks,
                stride=stride,
                bottleneck=self.bottleneck,
                shortcut=self.shortcut,
                dtype=self.dtype,
                axis_name=self.axis_name,
                kernel_init=self.kernel_init,
                remat=self.remat,
                name=f"layer{i + 1}",
            )
            seen[f"layer{i + 1}"] = x = layer(x, train, beta)
            x = separate(f"block{i + 1}", x, seen)
        seen["feature_map"] = x = self.perturb("feature_map", x)
        seen["features"] = x = pool(x)
        bias = torch_bias(x.shape[-1])
        return head(self.num_classes, dtype=self.dtype, init=self.head_init, bias_init=bias)(x), seen
