"""The windows of Square Attack, and what it puts into them in L2 (Andriushchenko et al. 2020, section 3.4)."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jrobust.attacks.iterative import Problem


class Proposal(NamedTuple):
    """What B rows draw in an iteration.

    Attributes:
      side: int32[B], of the window.
      corner: int32[B, 2], its first row and column.
      signs: [B, C], one a channel, 1 or -1.
      other_corner: int32[B, 2], of the window that L2 takes length from; not used in Linf.
      transposed: bool[B], whether the bump of L2 is; not used in Linf.
    """

    side: jax.Array
    corner: jax.Array
    signs: jax.Array
    other_corner: jax.Array
    transposed: jax.Array


def window(shape: tuple[int, ...], corner: jax.Array, side: jax.Array) -> jax.Array:
    """Return which pixels lie in the squares: bool[B, H, W, 1] for corner int32[B, 2] and side int32[B]."""
    rows, columns = (
        (jnp.arange(n) >= corner[:, axis, None]) & (jnp.arange(n) < (corner[:, axis] + side)[:, None])
        for axis, n in enumerate(shape[1:3])
    )
    return (rows[:, :, None] & columns[:, None, :])[..., None]


def bump(side: int) -> np.ndarray:
    """Return eta of the paper, float[side, side] of length 1: a hill in the upper half, a valley in the lower one."""
    hill, valley = _hill(side // 2, side), _hill(side - side // 2, side)
    both = np.concatenate([hill, -valley])
    return both / np.linalg.norm(both)


def start(start_keys: jax.Array, problem: Problem) -> jax.Array:
    """Return x plus a 5 x 5 grid of bumps, upright or transposed, with a sign a channel, of length eps together."""
    images = problem.images
    height, width, channels = images.shape[1:]
    side = max(min(height, width) // 5, 1)
    # As many more along the longer axis as it has room for.
    rows, columns = (min(n // side, 5) if n == min(height, width) else n // side for n in (height, width))
    upright = jnp.asarray(bump(side), jnp.promote_types(images.dtype, jnp.float32))

    def one(key: jax.Array) -> jax.Array:
        chances = jax.random.uniform(key, (rows, columns, 1 + channels), jnp.float32) < 0.5
        tiles = jnp.where(chances[..., :1, None], upright.T, upright)
        return grid(tiles, jnp.where(chances[..., 1:], -1, 1))

    def grid(tiles: jax.Array, signs: jax.Array) -> jax.Array:
        """Lay float[rows, columns, side, side] times float[rows, columns, C] into the middle of an image."""
        delta = tiles[..., None] * signs[:, :, None, None, :]
        delta = delta.transpose(0, 2, 1, 3, 4).reshape(rows * side, columns * side, channels)
        spare = height - rows * side, width - columns * side
        return jnp.pad(delta, [(n // 2, n - n // 2) for n in spare] + [(0, 0)])

    return _at_length_eps(problem, jax.vmap(one)(start_keys))


def propose(problem: Problem, best: jax.Array, proposal: Proposal, sides: tuple[int, ...]) -> jax.Array:
    """Return the points after moving length from one window to another (Algorithm 3 of the paper).

    The change inside the window becomes the sum of a bump and of what was there, scaled in each channel to the length
    that both windows had, and an equal part of what the whole change is short of eps; the other window becomes x. The
    change is then scaled to length eps and cut to the box, which is why it may be shorter.

    Args:
      problem: the rows.
      best: float[B, H, W, C].
      proposal: what was drawn.
      sides: all sides that a window may have.
    """
    dtype = jnp.promote_types(best.dtype, jnp.float32)
    images = problem.images.astype(dtype)
    delta = best.astype(dtype) - images
    inside = window(best.shape, proposal.corner, proposal.side)
    other = window(best.shape, proposal.other_corner, proposal.side)

    hill = _placed(proposal, best.shape, sides).astype(dtype) * proposal.signs[:, None, None, :].astype(dtype)
    there = jnp.where(inside, delta, 0)
    mixture = hill + there / (1e-12 + _length(there, (1, 2)))
    spare = jnp.maximum(jnp.asarray(problem.threat.eps, dtype) ** 2 - _length(delta, (1, 2, 3)) ** 2, 0)
    length = jnp.sqrt(spare / best.shape[-1] + _length(jnp.where(inside | other, delta, 0), (1, 2)) ** 2)
    mixture = mixture / (1e-12 + _length(mixture, (1, 2))) * length
    return _at_length_eps(problem, jnp.where(inside, mixture, jnp.where(other, 0, delta)))


def _placed(proposal: Proposal, shape: tuple[int, ...], sides: tuple[int, ...]) -> jax.Array:
    """Return the bumps of the windows in images of zeros: float[B, H, W, 1]."""
    largest = max(sides)
    table = np.zeros((len(sides), largest, largest))
    for i, side in enumerate(sides):
        table[i, :side, :side] = bump(side)
    # Looked up pixel by pixel, relative to the window's corner.
    which = jnp.searchsorted(jnp.asarray(sides), proposal.side)[:, None, None]
    rows, columns = (jnp.arange(n) - proposal.corner[:, axis, None] for axis, n in enumerate(shape[1:3]))
    down, right = rows[:, :, None], columns[:, None, :]
    flip = proposal.transposed[:, None, None]
    down, right = jnp.where(flip, right, down), jnp.where(flip, down, right)
    within = (down >= 0) & (down < largest) & (right >= 0) & (right < largest)
    values = jnp.asarray(table)[which, jnp.clip(down, 0, largest - 1), jnp.clip(right, 0, largest - 1)]
    return jnp.where(within, values, 0)[..., None]


def _hill(height: int, width: int) -> np.ndarray:
    """Return a pyramid of length 1: squares around the middle, the one of radius r of height 1 / (r + 1)^2, stacked."""
    rows, columns = np.abs(np.arange(height) - height // 2), np.abs(np.arange(width) - width // 2)
    distance = np.maximum(rows[:, None], columns[None, :])
    squares = 1 / np.arange(1.0, max(height // 2, width // 2) + 2) ** 2
    hill = np.append(np.cumsum(squares[::-1])[::-1], 0.0)[np.minimum(distance, len(squares))]
    return hill / max(np.linalg.norm(hill), np.finfo(float).tiny)


def _at_length_eps(problem: Problem, delta: jax.Array) -> jax.Array:
    images, threat = problem.images, problem.threat
    eps = jnp.asarray(threat.eps, delta.dtype)
    moved = images.astype(delta.dtype) + delta / (_length(delta, (1, 2, 3)) + 1e-12) * eps
    return jax.vmap(threat.project)(moved, images)


def _length(delta: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    return jnp.sqrt(jnp.sum(delta**2, axis=axes, keepdims=True))
