import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jrobust.attributions import gradients
from jrobust.errors import InputError


def linear(weights):
    return lambda images: images.reshape(images.shape[0], -1) @ weights


def test_input_gradient_of_a_linear_logit_is_its_weights_whatever_the_batch():
    weights = jnp.asarray(np.random.default_rng(0).normal(size=(12, 3)), jnp.float32)
    labels = jnp.asarray([2, 0, 1, 1, 0])
    images = jnp.ones((5, 2, 2, 3))
    gradient = gradients.input_gradient(gradients.logit_score(linear(weights), labels), images)
    np.testing.assert_allclose(gradient, weights.T[labels].reshape(5, 2, 2, 3), rtol=1e-6)


def test_scores():
    logits = jnp.asarray([[2.0, 1.0, 0.5], [0.0, 3.0, 1.0]])
    labels = jnp.asarray([0, 2])
    probabilities = jax.nn.softmax(logits)[jnp.arange(2), labels]
    images = jnp.zeros((2, 1, 1, 1))
    np.testing.assert_allclose(gradients.logit_score(lambda _: logits, labels)(images), [2.0, 1.0])
    np.testing.assert_allclose(
        gradients.cross_entropy_score(lambda _: logits, labels)(images), -np.log(probabilities), rtol=1e-6
    )
    np.testing.assert_allclose(gradients.probability_score(lambda _: logits, labels)(images), probabilities, rtol=1e-6)


def test_saliency_golden():
    attribution = jnp.asarray([1.0, -2.0, 0.5, 0.5, -3.0, 0.0, 1.0, 0.0]).reshape(1, 2, 2, 2)
    # Absolute values summed over the last axis: 3, 1, 3, 1; scaled to sum 4.
    np.testing.assert_allclose(gradients.saliency(attribution), [[1.5, 0.5, 1.5, 0.5]])


@pytest.mark.parametrize("factor", [1.0, -7.0, 1e-12, 1e-30, 1e30])
def test_saliency_sums_to_pixels_and_ignores_factors_and_the_reduction(factor):
    attribution = jnp.asarray(np.random.default_rng(1).normal(size=(3, 4, 5, 3)), jnp.float32)
    saliency = jax.jit(gradients.saliency, static_argnames="reduce")
    maps = saliency(attribution)
    assert maps.shape == (3, 20)
    np.testing.assert_allclose(maps.sum(-1), 20, rtol=1e-6)
    for reduce in ("sum", "mean"):
        np.testing.assert_allclose(saliency(factor * attribution, reduce), maps, rtol=1e-5)
    gradient = jax.jit(jax.grad(lambda a: gradients.saliency(a)[0, 0]))
    slope = gradient(factor * attribution)
    assert np.isfinite(slope).all()
    np.testing.assert_allclose(factor * slope, gradient(attribution), rtol=1e-4, atol=1e-7)


def test_zero_map_stays_zero_is_flagged_and_has_no_derivative():
    attribution = jnp.zeros((2, 2, 2, 3)).at[1, 0, 1, 0].set(-4.0)
    maps = jax.jit(gradients.saliency)(attribution)
    np.testing.assert_array_equal(maps, [[0, 0, 0, 0], [0, 4, 0, 0]])
    np.testing.assert_array_equal(gradients.empty_maps(maps), [True, False])
    slope = jax.jit(jax.grad(lambda a: (gradients.saliency(a) ** 2).sum()))(attribution)
    assert np.isfinite(slope).all() and (slope[0] == 0).all()
    # A dead pixel contributes no derivative: |.| has slope 0 at 0.
    assert jax.jit(jax.grad(lambda a: gradients.saliency(a)[1, 1]))(attribution)[1, 0, 0, 0] == 0


def test_saturated_cross_entropy_has_an_empty_map():
    weights = jnp.asarray([[120.0, 0.0]])
    images, labels = jnp.ones((1, 1, 1, 1)), jnp.asarray([0])
    score = gradients.cross_entropy_score(linear(weights), labels)
    gradient = jax.jit(lambda x: gradients.input_gradient(score, x))(images)
    assert gradient[0, 0, 0, 0] == 0
    assert bool(gradients.empty_maps(gradients.saliency(gradient))[0])


def test_bfloat16_is_summed_in_float32():
    maps = gradients.saliency(jnp.full((1, 32, 32, 3), 0.1, jnp.bfloat16))
    assert maps.dtype == jnp.float32
    np.testing.assert_allclose(maps, 1.0, rtol=1e-6)


def test_unknown_reduction_is_named():
    with pytest.raises(InputError, match="did you mean 'mean'"):
        gradients.saliency(jnp.ones((1, 1, 1, 1)), "means")
