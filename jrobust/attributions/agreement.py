"""How alike two attribution maps are: overlap of the top k pixels, Kendall's rank correlation, cosine distance."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats

from jrobust.errors import InputError


def top_k_intersection(reference: jax.Array, other: jax.Array, k: int) -> jax.Array:
    """Return |top_k(reference) & top_k(other)| / k in [0, 1] (IN; Ghorbani et al. 2019).

    Ties go to the lowest index (`jax.lax.top_k`), so equal values, such as the zeros of black pixels, overlap as if
    they had been ranked.

    Args:
      reference, other: float[..., n].
      k: at most n.

    Returns:
      float32[...].
    """
    _check_k(k, reference.shape[-1])
    first, second = jax.lax.top_k(reference, k)[1], jax.lax.top_k(other, k)[1]
    return jnp.sum(first[..., :, None] == second[..., None, :], axis=(-2, -1)).astype(jnp.float32) / k


def kendall(reference: jax.Array, other: jax.Array) -> jax.Array:
    """Return Kendall's tau-b of two vectors on the device, in [-1, 1].

        tau_b = (concordant - discordant) / sqrt(pairs untied in reference * pairs untied in other)

    Work is n**2 for each pair of vectors, memory at most 2**20 signs; n is at most 46,000 (counts are int32). It equals
    1 exactly for maps of the same ranks. NaN where either vector is constant, or contains a NaN: there the correlation
    is undefined, and a mean over examples has to leave such examples out and say how many they were.

    Args:
      reference, other: float[..., n].

    Returns:
      float32[...] (float64 for float64 maps).
    """
    if reference.shape[-1] > 46_000:
        raise ValueError(f"kendall counts {reference.shape[-1]}**2 pairs in int32: use kendall_scipy for such maps")
    tau = _tau_b(_concordance(reference, other), _untied(reference), _untied(other), reference.dtype)
    broken = jnp.any(jnp.isnan(reference), -1) | jnp.any(jnp.isnan(other), -1)
    return jnp.where(broken, jnp.nan, tau)


def masked_kendall(reference: jax.Array, other: jax.Array, k: int) -> jax.Array:
    """Return tau-b of two non-negative maps after zeroing both outside T, the top k of `reference`.

    With S_k = concordant - discordant pairs inside T, and T free of ties and of zeros,

        tau = (k (n - k) + S_k) / (k (n - k) + k (k - 1) / 2),

    and the general case counts the zeros and ties of T as tau-b does; so only a k x k sign matrix is needed. The judge
    of the attack in the released code of Singh et al. 2020; for n = 1024 and k = 100 it lies in [0.8983, 1].

    Args:
      reference, other: float[..., n], non-negative.
      k: at most n.

    Returns:
      float32[...] (or float64); NaN as in `kendall`.
    """
    n = reference.shape[-1]
    _check_k(k, n)
    inside, indices = jax.lax.top_k(reference, k)
    moved = jnp.take_along_axis(other, indices, axis=-1)

    def with_outside(pairs: jax.Array, positive: jax.Array) -> jax.Array:
        # Of the pixels outside, all 0, each makes an untied pair with every positive one inside; 2: in both orders.
        return pairs + 2 * (n - k) * jnp.sum(positive, axis=-1, dtype=jnp.int32)

    tau = _tau_b(
        with_outside(_concordance(inside, moved), (inside > 0) & (moved > 0)),
        with_outside(_untied(inside), inside > 0),
        with_outside(_untied(moved), moved > 0),
        reference.dtype,
    )
    return jnp.where(jnp.any(jnp.isnan(inside), -1) | jnp.any(jnp.isnan(moved), -1), jnp.nan, tau)


def kendall_scipy(reference: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return tau-b by SciPy on the host, in n log n: float64[...] for arrays float[..., n]; NaN as `kendall`."""
    reference, other = np.asarray(reference, np.float64), np.asarray(other, np.float64)  # SciPy computes in their type
    pairs = zip(reference.reshape(-1, reference.shape[-1]), other.reshape(-1, other.shape[-1]), strict=True)
    tau = [float(scipy.stats.kendalltau(x, y).statistic) for x, y in pairs]
    return np.asarray(tau).reshape(reference.shape[:-1])


def cosine_distance(u: jax.Array, v: jax.Array, axis: int | tuple[int, ...] = -1) -> jax.Array:
    """Return d(u, v) = 1 - <u, v> / (||u||_2 ||v||_2) in [0, 2], reduced over `axis` (Singh et al. 2020, Eq. 5).

    Computed in float32 or wider. Where a vector's squared norm is at most 1e-20 the distance is 1 and its derivatives
    are 0; elsewhere no epsilon enters, so that the distance does not depend on the scale of the vectors.
    """
    dtype = jnp.promote_types(jnp.promote_types(u.dtype, v.dtype), jnp.float32)
    u, v = u.astype(dtype), v.astype(dtype)
    return 1 - jnp.sum(u * v, axis) * _inverse_norm(u, axis) * _inverse_norm(v, axis)


def _inverse_norm(vector: jax.Array, axis: int | tuple[int, ...]) -> jax.Array:
    squared = jnp.sum(vector**2, axis)
    # The inner `where` matters: the derivative of rsqrt at 0 is infinite, and infinity times 0 is NaN.
    proper = squared > 1e-20
    return jnp.where(proper, jax.lax.rsqrt(jnp.where(proper, squared, 1)), 0)


def _concordance(x: jax.Array, y: jax.Array) -> jax.Array:
    """Return sum_ij sign(x_i - x_j) sign(y_i - y_j): int32[...], every pair counted in both orders."""

    def order(value: jax.Array, values: jax.Array) -> jax.Array:  # compared, as a difference may flush to zero
        value = value[..., None]
        return (value > values).astype(jnp.int32) - (value < values).astype(jnp.int32)

    def row(pair: tuple[jax.Array, jax.Array]) -> jax.Array:
        return jnp.sum(order(pair[0], x) * order(pair[1], y), axis=-1, dtype=jnp.int32)

    # All rows of the sign matrix at once up to n = 1024; a block of 2**20 signs at a time for larger maps.
    rows = (jnp.moveaxis(x, -1, 0), jnp.moveaxis(y, -1, 0))
    return jnp.sum(jax.lax.map(row, rows, batch_size=max(1, 2**20 // x.shape[-1])), axis=0, dtype=jnp.int32)


def _untied(values: jax.Array) -> jax.Array:
    """Return the number of pairs of different values: int32[...], every pair counted in both orders."""
    n = values.shape[-1]
    ordered = jnp.sort(values, axis=-1)
    position = jnp.arange(n, dtype=jnp.int32)
    new = jnp.concatenate([jnp.ones_like(ordered[..., :1], bool), ordered[..., 1:] != ordered[..., :-1]], axis=-1)
    first_equal = jax.lax.cummax(jnp.where(new, position, 0), axis=values.ndim - 1)
    return n * (n - 1) - 2 * jnp.sum(position - first_equal, axis=-1, dtype=jnp.int32)


def _tau_b(both: jax.Array, untied_x: jax.Array, untied_y: jax.Array, dtype: jnp.dtype) -> jax.Array:
    # Counts reach 2**28: exact in int32 but not in float32, and the product of two overflows int32.
    dtype = jnp.promote_types(dtype, jnp.float32)
    both, untied_x, untied_y = (count.astype(dtype) for count in (both, untied_x, untied_y))
    return both / untied_x * jnp.sqrt(untied_x / untied_y)  # 0/0 = NaN for a constant vector; exactly 1 if all agree


def _check_k(k: int, n: int) -> None:
    if not 1 <= k <= n:
        raise InputError(f"top_k={k} of a map of {n} pixels: expected a number from 1 to {n}; set a smaller top_k")
