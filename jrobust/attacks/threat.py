"""Threat models: the ball around an image inside which an attack may move, always cut with the pixel box [0, 1]."""

from __future__ import annotations

import dataclasses
from fractions import Fraction

import jax
import jax.numpy as jnp

from jrobust import units


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Threat:
    """The set {x' : ||x' - x||_norm <= eps, 0 <= x' <= 1} around one image x.

    A pytree whose leaf is `eps`, so radii can be traced, batched with `vmap` or passed as arguments. The methods take
    ONE image of any shape; the attacks map them over the batch. Made by `linf` and `l2`.

    Attributes:
      norm: "linf" or "l2".
      eps: the radius in pixel units of [0, 1].
    """

    norm: str = dataclasses.field(metadata={"static": True})
    eps: float | jax.Array

    def project(self, point: jax.Array, center: jax.Array, floor: float = 0.0) -> jax.Array:
        """Return the projection of `point` onto the ball around `center`, then onto [0, 1], in the dtype of `center`.

        Linf clips every coordinate; L2 shrinks the difference to length eps. Arithmetic is in float32 or wider and the
        result is rounded towards the centre, so that it lies in the ball in the returned dtype too, bfloat16 included.
        A NaN in `point` gives the centre's value. In L2 a `floor` shrinks every difference d by ||d|| / (||d|| + floor)
        more: some packages divide so.
        """
        wide = _wide(center)
        delta = finite(point.astype(wide.dtype) - wide)
        eps = jnp.asarray(self.eps, wide.dtype)
        if self.norm == "linf":
            delta = jnp.clip(delta, -eps, eps)
        else:
            # A few units in the last place inside the sphere, so that rounding the norm does not leave the ball.
            radius = eps * (1 - 4 * jnp.finfo(wide.dtype).eps)
            length = _length(delta)
            if floor:
                delta = delta * (jnp.minimum(length, radius) / (length + floor))
            else:
                delta = delta * jnp.minimum(1.0, radius / jnp.maximum(length, jnp.finfo(wide.dtype).tiny))
        return _round_towards(center, jnp.clip(wide + delta, 0, 1), jnp.abs(delta))

    def random_start(self, key: jax.Array, center: jax.Array) -> jax.Array:
        """Return a random point of the ball.

        Linf: every coordinate U(-eps, eps). L2: a uniform direction, at a distance of eps * U(0, 1).
        """
        wide = _wide(center)
        eps = jnp.asarray(self.eps, wide.dtype)
        if self.norm == "linf":
            delta = jax.random.uniform(key, center.shape, wide.dtype, -1, 1) * eps
        else:
            direction_key, distance_key = jax.random.split(key)
            delta = self.ascend(jax.random.normal(direction_key, center.shape, wide.dtype))
            delta = delta * eps * jax.random.uniform(distance_key, (), wide.dtype)
        return self.project(wide + delta, center)

    def ascend(self, gradient: jax.Array, floor: float = 1e-10) -> jax.Array:
        """Return the direction of steepest ascent of unit norm: sign(g) for Linf, g / (||g||_2 + floor) for L2.

        Coordinates whose gradient is NaN do not move: one of them would otherwise poison the image.
        """
        gradient = finite(gradient)
        return jnp.sign(gradient) if self.norm == "linf" else gradient / (_length(gradient) + floor)


def linf(eps: str | float | Fraction | jax.Array) -> Threat:
    """Return the Linf ball of radius `eps`, a number or a text such as "8/255", in pixel units of [0, 1].

    >>> linf("8/255").eps == 8 / 255
    True
    """
    return Threat("linf", _radius(eps))


def l2(eps: str | float | Fraction | jax.Array) -> Threat:
    """Return the L2 ball of radius `eps`, a number or a text such as "0.5", in pixel units of [0, 1]."""
    return Threat("l2", _radius(eps))


def _radius(eps):
    return eps if isinstance(eps, jax.Array) else units.number(eps)


def _wide(array: jax.Array) -> jax.Array:
    return array.astype(jnp.promote_types(array.dtype, jnp.float32))


def finite(array: jax.Array) -> jax.Array:
    """Return the array in float32 or wider, 0 for NaN and numbers beyond 1e30 cut there."""
    # Not the largest float: its reciprocal is subnormal, which accelerators and XLA on CPU flush to zero.
    return jnp.clip(jnp.nan_to_num(_wide(array), nan=0.0), -1e30, 1e30)


def _length(array: jax.Array) -> jax.Array:
    # Scaled by the largest entry: squares of gradients near 1e-30 would vanish in float32.
    scale = jnp.maximum(jnp.max(jnp.abs(array)), jnp.finfo(array.dtype).tiny)
    return scale * jnp.sqrt(jnp.sum((array / scale) ** 2))


def _round_towards(center: jax.Array, point: jax.Array, reach: jax.Array) -> jax.Array:
    """Cast `point` to the dtype of `center`; where that reaches further than `reach`, take the next number inwards."""
    rounded = point.astype(center.dtype)
    overshoot = jnp.abs(rounded.astype(reach.dtype) - center.astype(reach.dtype)) > reach
    return jnp.where(overshoot, jnp.nextafter(rounded, center), rounded)
