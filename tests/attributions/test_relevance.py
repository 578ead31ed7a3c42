import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jrobust.attributions.gradients import logit_score
from jrobust.attributions.relevance import attention_relevance, head_mean, relevance_matrix, relevance_row, unit_peak


def products_of(seed, blocks=3, batch=2, heads=2, tokens=5):
    return list(np.random.default_rng(seed).normal(size=(blocks, batch, heads, tokens, tokens)).astype(np.float32))


def test_heads_are_cut_at_zero_before_their_mean():
    product = jnp.asarray([[[[1.0, -2.0], [0.0, 3.0]], [[-5.0, 4.0], [2.0, 1.0]]]])
    np.testing.assert_array_equal(head_mean(product), [[[0.5, 2.0], [1.0, 2.0]]])


def test_two_blocks_by_hand():
    """The later block counts first: the other way round the third token would not be reached."""
    earlier, later = np.zeros((2, 1, 1, 3, 3), np.float32)
    later[0, 0, 0, 1] = 1  # the class token looks at token 1 in the later block,
    earlier[0, 0, 1, 2] = 3  # which has looked at token 2 in the earlier one
    np.testing.assert_array_equal(relevance_row([earlier, later]), [[1, 1, 3]])
    np.testing.assert_array_equal(relevance_row([later, earlier]), [[1, 1, 0]])
    expected = [[1, 1, 3], [0, 1, 3], [0, 0, 1]]
    np.testing.assert_array_equal(relevance_matrix([earlier, later])[0], expected)


def test_the_row_is_that_of_the_matrix():
    products = products_of(0)
    row, matrix = relevance_row(products), relevance_matrix(products)
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


@pytest.fixture
def layer():
    """Attention probabilities [B, heads, T, T] of one block, weights and a head of three classes."""
    rng = np.random.default_rng(3)
    attention = jax.nn.softmax(jnp.asarray(rng.normal(size=(2, 2, 6, 6)), jnp.float32), axis=-1)
    weights, head = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((6, 4), (8, 3)))
    return attention, weights, head, jnp.asarray([2, 0])


def test_one_block_is_attention_times_its_gradient(layer):
    """s = sum_hkd P_h0k w_kd head_hd: G is known. Of six tokens four are patches, the last is none."""
    attention, weights, head, labels = layer
    score = logit_score(lambda f: f @ head, labels)
    zeros = (jnp.zeros_like(attention),)
    features, cam = attention_relevance(network(weights, [attention]), zeros, score, 2)
    gradient = np.einsum("kd,hdb->bhk", weights, np.asarray(head)[:, labels].reshape(2, 4, 2))
    raw = np.maximum(gradient * np.asarray(attention)[:, :, 0], 0).mean(1)[:, 1:5]
    assert cam.shape == (2, 2, 2) and cam.dtype == jnp.float32
    np.testing.assert_allclose(cam.reshape(2, 4), raw / raw.max(1, keepdims=True), rtol=1e-5)
    np.testing.assert_array_equal(features, network(weights, [attention])(zeros))


def test_features_are_differentiated_and_maps_are_not(layer):
    attention, weights, head, labels = layer
    score = logit_score(lambda f: f @ head, labels)

    def run(weights):
        return attention_relevance(network(weights, [attention]), (jnp.zeros_like(attention),), score, 2)

    def loss(weights, of_map):
        features, cam = run(weights)
        return jnp.sum(features**2) + of_map * jnp.sum(cam**2)

    plain = lambda w: jnp.sum(network(w, [attention])((0.0,)) ** 2)
    found = [jax.grad(loss)(weights, of_map) for of_map in (0.0, 1.0)]
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_allclose(found[0], jax.grad(plain)(weights), rtol=1e-5)
    assert np.abs(run(2 * weights + 1)[1] - run(weights)[1]).max() > 1e-2  # though the map depends on them


def test_half_precision_is_summed_in_float32():
    products = [jnp.asarray(p, jnp.bfloat16) for p in products_of(1)]
    assert relevance_row(products).dtype == relevance_matrix(products).dtype == jnp.float32
    np.testing.assert_allclose(
        relevance_row(products), relevance_row([p.astype(jnp.float32) for p in products]), rtol=1e-6
    )
