"""A strided convolution as a sum of convolutions without stride: what a CPU compiles well in gradients of gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax

DIMENSIONS = ("NHWC", "HWIO", "NHWC")


def convolve(
    x: jax.Array,
    kernel: jax.Array,
    strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
    *,
    precision: Any = None,
    preferred_element_type: Any = None,
    **_: Any,
) -> jax.Array:
    """Return `lax.conv_general_dilated` of float[B, H, W, C] and float[h, w, C, K] without dilations and groups.

        y[o] = sum_t x[s o + t - pad] k[t] = sum_r sum_{t: t - pad = s q + r} x_r[o + q] k[t],   x_r[i] = x[s i + r]

    For each phase r in {0, .., s - 1}^2 the pixels x_r meet the taps of the kernel that ever meet them. The products
    are the same and only the order of the sums differs. Every derivative, of any order and mode, is made of
    convolutions without stride, in which the two operands are of about the same size in space.

    Why: the gradient in k of the gradient in x of a strided convolution comes out of automatic differentiation as a
    convolution of the output's cotangent, dilated by s, with a larger window. On a CPU XLA swaps the two, which gives
    a reversed window, and that goes to nested loops and not to Eigen. On accelerators there is nothing to mend.
    """
    sizes = [
        _out_size(n, t, s, pad) for n, t, s, pad in zip(x.shape[1:3], kernel.shape[:2], strides, padding, strict=True)
    ]
    rows, columns = (
        _phases(taps, stride, low) for taps, stride, (low, _) in zip(kernel.shape[:2], strides, padding, strict=True)
    )
    total = None
    for row, tops, up in rows:
        for column, lefts, left in columns:
            pixels = x[:, row :: strides[0], column :: strides[1]]
            taps = kernel[tops, lefts]
            around = [
                (low, out - 1 - low + count - size)
                for low, out, count, size in zip((up, left), sizes, taps.shape[:2], pixels.shape[1:3], strict=True)
            ]
            part = jax.lax.conv_general_dilated(
                pixels,
                taps,
                (1, 1),
                around,
                dimension_numbers=DIMENSIONS,
                precision=precision,
                preferred_element_type=preferred_element_type,
            )
            total = part if total is None else total + part
    assert total is not None, "a kernel has at least one tap"
    return total


def _phases(taps: int, stride: int, pad: int) -> list[tuple[int, slice, int]]:
    """Return for each phase that has taps: its number, the taps t, and the -q of the first of them."""
    firsts = [((t - pad) % stride, t) for t in range(min(taps, stride))]
    return [(phase, slice(t, None, stride), -((t - pad) // stride)) for phase, t in firsts]


def _out_size(size: int, taps: int, stride: int, pad: tuple[int, int]) -> int:
    return (size + sum(pad) - taps) // stride + 1
