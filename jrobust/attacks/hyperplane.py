"""The nearest point of a hyperplane inside the pixel box: what FAB asks for twice an iteration."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def smallest_move(points: jax.Array, normals: jax.Array, excess: jax.Array, *, norm: str) -> jax.Array:
    """Return the shortest d with <w, t + d> = b and 0 <= t + d <= 1, for each point t of a batch.

        d_j = -sign(c w_j) min(l, r_j) (Linf)   or   -sign(c w_j) min(l |w_j|, r_j) (L2),   c = <w, t> - b,

    r_j the way that coordinate j can go in that direction before it meets the box, and l >= 0 the one number for which
    sum_j |w_j| |d_j| = |c| (Croce and Hein 2020, who sort the coordinates by the l at which they arrive).

    Where the box does not meet the hyperplane the move goes to the corner that comes closest. A coordinate with w_j = 0
    stays; so does a point that lies on the plane. Arithmetic is in float32 or wider and does not depend on the length
    of w; NaN in w or c counts as 0.

    Args:
      points: t, float[N, D] in [0, 1].
      normals: w, float[N, D].
      excess: c, float[N]. Not b: that would be the difference of two long sums, and of no use in float32.
      norm: "linf" or "l2", in which the move is the shortest.

    Returns:
      d, float[N, D].
    """
    dtype = jnp.promote_types(points.dtype, jnp.float32)
    w = jnp.clip(jnp.nan_to_num(normals.astype(dtype), nan=0.0), -1e30, 1e30)
    longest = jnp.max(jnp.abs(w), axis=-1)
    longest = jnp.where(longest > 0, longest, 1)
    w, c = w / longest[:, None], jnp.nan_to_num(excess.astype(dtype), nan=0.0) / longest
    size = jnp.abs(w)
    # The square of anything smaller is no number. (The official code takes |w_j| <= 1e-8 for 0, whatever the others.)
    moves = size > jnp.sqrt(jnp.finfo(dtype).tiny)
    direction = jnp.where(moves, -jnp.sign(w) * jnp.sign(c)[:, None], 0)
    room = jnp.where(moves, jnp.maximum(jnp.where(direction > 0, 1 - points, points), 0), 0)
    if norm == "linf":
        length = jnp.minimum(_level(room, jnp.where(moves, size, 0), jnp.abs(c))[:, None], room)
    else:
        limits = room / jnp.where(moves, size, 1)
        length = jnp.minimum(_level(limits, jnp.where(moves, size**2, 0), jnp.abs(c))[:, None] * size, room)
    return jnp.where(direction != 0, direction * length, 0)


def _level(limits: jax.Array, weights: jax.Array, total: jax.Array) -> jax.Array:
    """Return l >= 0 with sum_j weights_j min(l, limits_j) = total: float[N]; infinite where the sum cannot reach it.

    Newton's method from l = 0. The sum is concave and piecewise linear, so that l rises until it stands on the right
    piece, and is then exact. (Sorting the corners and adding them up gives the same; sorts are slow on CPU.)
    """

    def step(state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        level, _ = state
        under_way = limits > level[:, None]
        given = jnp.sum(jnp.where(under_way, 0, limits * weights), axis=-1)
        weight = jnp.sum(jnp.where(under_way, weights, 0), axis=-1)
        new = jnp.where(weight > 0, (total - given) / jnp.where(weight > 0, weight, 1), jnp.inf)
        new = jnp.maximum(new, level)  # rounding must not lead back: it ends because what is under way gets less
        return new, jnp.any(new > level)

    start = (jnp.zeros_like(total), jnp.array(True))
    return jax.lax.while_loop(lambda state: state[1], step, start)[0]
