import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jrobust.attributions import agreement
from jrobust.errors import InputError


def f32(*values):
    return jnp.asarray(values, jnp.float32)


@pytest.mark.parametrize("kendall", [agreement.kendall, agreement.kendall_scipy])
def test_kendall_golden(kendall):
    np.testing.assert_allclose(kendall(f32(1, 2, 3, 4), f32(1, 3, 2, 4)), 2 / 3, rtol=1e-6)
    np.testing.assert_allclose(kendall(f32(1, 1, 2, 3), f32(1, 2, 2, 3)), 0.8, rtol=1e-6)
    ranks = jnp.asarray(np.random.default_rng(0).permutation(1024), jnp.float32)
    assert kendall(ranks, ranks) == pytest.approx(1, abs=1e-12)
    assert kendall(ranks, -ranks) == pytest.approx(-1, abs=1e-12)


def test_kendall_of_constant_or_broken_maps_is_nan():
    ranks, constant = f32(1, 2, 3), f32(2, 2, 2)
    broken = f32(1, np.nan, 3)
    for pair in itertools.permutations((ranks, constant, broken), 2):
        assert np.isnan(agreement.kendall(*pair)) and np.isnan(agreement.kendall_scipy(*pair))
    assert np.isnan(agreement.masked_kendall(jnp.zeros(5), f32(1, 2, 3, 4, 5), 2))
    assert np.isnan(agreement.masked_kendall(f32(1, 2, 3, 4, 5), jnp.zeros(5), 2))
    assert np.isnan(agreement.masked_kendall(f32(1, 2, 3, 4, 5), f32(1, 2, 3, np.nan, 5), 2))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=8, max_size=8))
def test_kendall_equals_scipy_with_ties(pairs):
    x, y = np.asarray(pairs, np.float32).T
    np.testing.assert_allclose(agreement.kendall(x, y), agreement.kendall_scipy(x, y), atol=2e-7)
    # The masked form: with zeros and ties inside the top k it is still tau-b of the two zeroed maps.
    kept = np.zeros(8, bool)
    kept[np.asarray(jax.lax.top_k(x, 3)[1])] = True
    expected = agreement.kendall_scipy(np.where(kept, x, 0), np.where(kept, y, 0))
    np.testing.assert_allclose(agreement.masked_kendall(x, y, 3), expected, atol=2e-7)


def test_kendall_counts_beyond_the_integers_of_float32():
    rng = np.random.default_rng(0)
    x = rng.permutation(6000).astype(np.float32)  # 17,997,000 pairs > 2**24
    y = x + rng.normal(size=6000).astype(np.float32) * 200
    np.testing.assert_allclose(agreement.kendall(x, y), agreement.kendall_scipy(x, y), rtol=3e-7)
    with pytest.raises(ValueError, match="kendall_scipy"):
        agreement.kendall(np.zeros(50_000), np.zeros(50_000))


def test_kendall_sees_differences_that_flush_to_zero():
    tiny = jnp.asarray([1.0, 1.5, 1.25, 1.75], jnp.float32) * 1.2e-38
    assert agreement.kendall(tiny, f32(1, 3, 2, 4)) == 1


@pytest.mark.parametrize(("n", "k"), [(1024, 100), (16384, 1000)])
def test_masked_kendall_closed_form(n, k):
    rng = np.random.default_rng(k)
    x, y = (rng.uniform(0.1, 1, n).astype(np.float32) for _ in range(2))
    top = np.argsort(-x)[:k]
    masked = [np.where(np.isin(np.arange(n), top), v, 0) for v in (x, y)]
    expected = agreement.kendall_scipy(*masked)
    np.testing.assert_allclose(agreement.masked_kendall(x, y, k), expected, rtol=1e-6)
    # S_k = concordant - discordant pairs inside T.
    sign = lambda v: np.sign(v[top][:, None] - v[top][None, :]).astype(int)
    inside = (sign(x) * sign(y)).sum() / 2
    closed = (k * (n - k) + inside) / (k * (n - k) + k * (k - 1) / 2)
    np.testing.assert_allclose(expected, closed, rtol=1e-12)
    reverse = np.where(np.isin(np.arange(n), top), 2 - x, 0)
    lowest = agreement.masked_kendall(x, reverse, k)
    if n == 1024:
        assert lowest == pytest.approx(0.8983, abs=5e-5)
    assert agreement.masked_kendall(x, x, k) == 1


def test_top_k_intersection():
    x = f32(5, 4, 3, 2, 1, 0)
    assert agreement.top_k_intersection(x, x, 3) == 1
    assert agreement.top_k_intersection(x, -x, 3) == 0
    assert agreement.top_k_intersection(x, f32(9, 0, 8, 7, 0, 0), 3) == pytest.approx(2 / 3)
    # Ties go to the lowest index.
    assert agreement.top_k_intersection(f32(1, 2, 2, 2, 0), f32(0, 1, 1, 0, 0), 2) == 1
    with pytest.raises(InputError, match="from 1 to 6"):
        agreement.top_k_intersection(x, x, 7)


def test_random_permutations_overlap_by_chance():
    rng = np.random.default_rng(0)
    x, y = (np.stack([rng.permutation(1024) for _ in range(200)]).astype(np.float32) for _ in range(2))
    overlap = agreement.top_k_intersection(x, y, 100)
    assert overlap.shape == (200,) and overlap.dtype == jnp.float32
    assert np.mean(overlap) == pytest.approx(100 / 1024, abs=0.006)


def test_batch_axes_and_jit():
    rng = np.random.default_rng(1)
    x, y = (jnp.asarray(rng.uniform(size=(2, 3, 30)), jnp.float32) for _ in range(2))
    for measure in (
        agreement.kendall,
        lambda a, b: agreement.masked_kendall(a, b, 5),
        lambda a, b: agreement.top_k_intersection(a, b, 5),
    ):
        together = jax.jit(measure)(x, y)
        assert together.shape == (2, 3)
        np.testing.assert_allclose(together[1, 2], measure(x[1, 2], y[1, 2]), rtol=1e-6)
    assert agreement.kendall_scipy(x, y).shape == (2, 3)


def test_cosine_distance_golden():
    assert agreement.cosine_distance(f32(1, 0), f32(1, 0)) == pytest.approx(0, abs=1e-7)
    assert agreement.cosine_distance(f32(1, 0), f32(0, 5)) == pytest.approx(1)
    assert agreement.cosine_distance(f32(1, 2), f32(-2, -4)) == pytest.approx(2)
    assert agreement.cosine_distance(f32(3, 4), f32(4, 3)) == pytest.approx(0.04, abs=1e-6)


def test_triplet_loss_golden():
    """The loss of ART on a linear model, whose input gradients are its weights."""

    def loss(z, positive, negative):
        d = agreement.cosine_distance
        return jax.nn.softplus(d(positive, z) - d(negative, z))

    assert loss(f32(1, 0), f32(1, 0), f32(0, 1)) == pytest.approx(0.3132617, abs=1e-6)
    point = (f32(3, 4), f32(4, 3), f32(-4, 3))
    assert loss(*point) == pytest.approx(0.3241776, abs=1e-6)
    slopes = jax.grad(loss, argnums=(0, 1, 2))(*point)
    golden = ((-0.0567046, 0.0425285), (0.0093031, -0.0124041), (0.0332254, 0.0443005))
    np.testing.assert_allclose(slopes, golden, atol=1e-6)
    assert loss(3 * point[0], 7 * point[1], point[2]) == pytest.approx(0.3241776, abs=1e-6)


def test_cosine_distance_of_zero_vectors_and_dtypes():
    u = jnp.asarray([[0.0, 0.0], [3.0, 4.0]])
    v = jnp.asarray([[1.0, 2.0], [0.0, 0.0]])
    np.testing.assert_array_equal(agreement.cosine_distance(u, v), [1, 1])
    slopes = jax.grad(lambda u, v: agreement.cosine_distance(u, v).sum(), argnums=(0, 1))(u, v)
    np.testing.assert_array_equal(slopes, np.zeros((2, 2, 2)))
    images = jnp.ones((5, 4, 4, 3), jnp.bfloat16)
    distance = agreement.cosine_distance(images, images, axis=(1, 2, 3))
    assert distance.shape == (5,) and distance.dtype == jnp.float32
    np.testing.assert_allclose(distance, 0, atol=1e-6)
