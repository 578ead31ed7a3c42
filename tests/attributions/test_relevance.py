import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jrobust.attributions.gradients import logit_score
from jrobust.attributions.relevance import attention_relevance, head_mean, relevance_matrix, relevance_row, unit_peak


def products_of(seed, blocks=3, batch=2, heads=2, tokens=5):
    return list(np.random.default_rng(seed).normal(size=(blocks, batch, heads, tokens, tokens)).astype(np.float32))


@jax.jit
def row_and_matrix(products):
    return relevance_row(products), relevance_matrix(products)


def test_heads_are_cut_at_zero_before_their_mean():
    product = jnp.asarray([[[[1.0, -2.0], [0.0, 3.0]], [[-5.0, 4.0], [2.0, 1.0]]]])
    np.testing.assert_array_equal(head_mean(product), [[[0.5, 2.0], [1.0, 2.0]]])


def test_two_blocks_by_hand():
    """The later block counts first: the other way round the third token would not be reached."""
    earlier, later = np.zeros((2, 1, 1, 3, 3), np.float32)
    later[0, 0, 0, 1] = 1  # the class token looks at token 1 in the later block,
    earlier[0, 0, 1, 2] = 3  # which has looked at token 2 in the earlier one
    row, matrix = row_and_matrix([earlier, later])
    np.testing.assert_array_equal(row, [[1, 1, 3]])
    np.testing.assert_array_equal(matrix, [[[1, 1, 3], [0, 1, 3], [0, 0, 1]]])
    np.testing.assert_array_equal(row_and_matrix([later, earlier])[0], [[1, 1, 0]])


def test_the_row_is_that_of_the_matrix():
    products = products_of(0)
    row, matrix = row_and_matrix(products)
    assert row.shape == (2, 5) and matrix.shape == (2, 5, 5)
    np.testing.assert_allclose(row, matrix[:, 0], rtol=1e-5)
    expected = np.eye(5)
    for product in products:
        expected = expected + np.maximum(product, 0).mean(1) @ expected
    np.testing.assert_allclose(matrix, expected, rtol=1e-5)


def test_maps_have_a_peak_of_one():
    maps = unit_peak(jnp.asarray([[0.0, 3.0, 1.5], [0.0, 0.0, 0.0]]))
    np.testing.assert_allclose(maps, [[0, 1, 0.5], [0, 0, 0]], atol=1e-6)
    np.testing.assert_allclose(unit_peak(jnp.asarray([[1e-8, 0.0]])), [[0.5, 0.0]], rtol=1e-5)


def network(weights, attention):
    """Features that one block of attention with two heads mixes out of five tokens."""

    def features(factors):
        mixed = [jnp.einsum("bhqk,kd->bhqd", p * (1 + e), weights) for p, e in zip(attention, factors, strict=True)]
        return sum(m[:, :, 0] for m in mixed).reshape(len(attention[0]), -1)

    return features


@pytest.fixture(scope="module")
def layer():
    """Attention probabilities [B, heads, T, T] of one block, weights and a head of three classes."""
    rng = np.random.default_rng(3)
    attention = np.exp(rng.normal(size=(2, 2, 6, 6)))
    weights, head = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((6, 4), (8, 3)))
    return jnp.asarray(attention / attention.sum(-1, keepdims=True), jnp.float32), weights, head, jnp.asarray([2, 0])


@pytest.fixture(scope="module")
def run(layer):
    """Weights and a factor -> gradient of sum f^2 + factor sum cam^2, features and map."""
    attention, _, head, labels = layer
    score = logit_score(lambda f: f @ head, labels)

    def loss(weights, factor):
        zeros = (jnp.zeros_like(attention),)
        features, cam = attention_relevance(network(weights, [attention]), zeros, score, 2)
        return jnp.sum(features**2) + factor * jnp.sum(cam**2), (features, cam)

    return jax.jit(jax.grad(loss, has_aux=True))


def test_one_block_is_attention_times_its_gradient(layer, run):
    """s = sum_hkd P_h0k w_kd head_hd: G is known. Of six tokens four are patches, the last is none."""
    attention, weights, head, labels = layer
    features, cam = run(weights, 0.0)[1]
    gradient = np.einsum("kd,hdb->bhk", weights, np.asarray(head)[:, labels].reshape(2, 4, 2))
    raw = np.maximum(gradient * np.asarray(attention)[:, :, 0], 0).mean(1)[:, 1:5]
    assert cam.shape == (2, 2, 2) and cam.dtype == jnp.float32
    np.testing.assert_allclose(cam.reshape(2, 4), raw / raw.max(1, keepdims=True), rtol=1e-5)
    expected = np.einsum("bhk,kd->bhd", attention[:, :, 0], weights).reshape(2, 8)
    np.testing.assert_allclose(features, expected, rtol=1e-5, atol=1e-6)


def test_features_are_differentiated_and_maps_are_not(layer, run):
    attention, weights, _, _ = layer
    (gradient, (features, cam)), (other, _) = (run(weights, factor) for factor in (0.0, 1.0))
    np.testing.assert_array_equal(gradient, other)
    expected = np.einsum("bhd,bhk->kd", 2 * features.reshape(2, 2, 4), attention[:, :, 0])
    np.testing.assert_allclose(gradient, expected, rtol=1e-5)
    assert np.abs(run(2 * weights + 1, 0.0)[1][1] - cam).max() > 1e-2  # though the map depends on them


def test_half_precision_is_summed_in_float32():
    products = [jax.ShapeDtypeStruct((2, 2, 5, 5), jnp.bfloat16)] * 2
    row, matrix = jax.eval_shape(row_and_matrix, products)
    assert row.dtype == matrix.dtype == jnp.float32
