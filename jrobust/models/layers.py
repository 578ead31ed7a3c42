"""The convolution, batch norm, head and initialisers that the networks share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jrobust.models import strided

DType = Any
Initializer = Callable[..., jax.Array]

# N(0, 2 / (k k c_out)): wide ResNets and torchvision's ResNets.
he_fan_out: Initializer = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
# N(0, 2 / (k k c_in)): the CIFAR ResNets of He et al.
he_fan_in: Initializer = nn.initializers.variance_scaling(2.0, "fan_in", "normal")
# U(-1/sqrt(fan_in), 1/sqrt(fan_in)): PyTorch's default for convolutions and linear layers.
torch_default: Initializer = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


def at_least_float32(dtype: DType) -> DType:
    """Return the type of parameters, logits and statistics under compute type `dtype`: float32, or float64."""
    return jnp.promote_types(dtype, jnp.float32)


def conv(
    features: int,
    kernel: int,
    stride: int = 1,
    *,
    dtype: DType,
    init: Initializer = he_fan_out,
    bias: bool = False,
    beta: float | jax.Array | None = None,
    name: str,
) -> nn.Conv:
    """Return a square convolution, zero-padded by (kernel - 1) / 2 on all four sides as in PyTorch.

    Flax's "SAME" pads a strided convolution at the far side only, which shifts the image by a pixel. `beta` is that of
    the network: on path P, whose gradients are differentiated again, strides take on a CPU the form of `strided`.
    """
    pad = (kernel - 1) // 2
    parts = stride > 1 and beta is not None and jax.default_backend() == "cpu"
    return nn.Conv(
        features,
        (kernel, kernel),
        (stride, stride),
        padding=((pad, pad), (pad, pad)),
        use_bias=bias,
        dtype=dtype,
        param_dtype=at_least_float32(dtype),
        kernel_init=init,
        conv_general_dilated_cls=_strided if parts else None,
        name=name,
    )


def norm(*, train: bool, dtype: DType, axis_name: str | None, name: str) -> nn.BatchNorm:
    """Return batch norm: eps 1e-5, running statistics `0.9 old + 0.1 new`, computed and kept in float32.

    In train mode the statistics are those of the batch, averaged over `axis_name` where that is given. The running
    variance is the biased one (PyTorch keeps the unbiased one, a factor n / (n - 1)).
    """
    return nn.BatchNorm(
        use_running_average=not train,
        momentum=0.9,
        epsilon=1e-5,
        dtype=dtype,
        param_dtype=at_least_float32(dtype),
        axis_name=axis_name if train else None,
        name=name,
    )


def pool(x: jax.Array) -> jax.Array:
    """Return the mean of float[B, H, W, C] over H and W, in at least float32."""
    return jnp.mean(x, axis=(1, 2), dtype=at_least_float32(x.dtype))


def head(
    num_classes: int, *, dtype: DType, init: Initializer = torch_default, bias_init: Initializer | None = None
) -> nn.Dense:
    """Return the linear layer `fc` to the logits, in at least float32; weights start as U(+-1/sqrt(fan_in)), bias 0."""
    return nn.Dense(
        num_classes,
        dtype=at_least_float32(dtype),
        param_dtype=at_least_float32(dtype),
        kernel_init=init,
        bias_init=bias_init or nn.initializers.zeros_init(),
        name="fc",
    )


def torch_bias(fan_in: int) -> Initializer:
    """Return PyTorch's default start of a bias: U(-1/sqrt(fan_in), 1/sqrt(fan_in))."""
    bound = fan_in**-0.5

    def init(key: jax.Array, shape: tuple[int, ...], dtype: DType = jnp.float32, **_: Any) -> jax.Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def _strided() -> Callable[..., jax.Array]:
    return strided.convolve
