import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jrobust.attributions import grad_cam

HEAD = jnp.asarray(np.random.default_rng(0).normal(size=(4, 3)), jnp.float32)


def pooled(maps):
    """A classifier from the map on: the mean over it and a linear layer."""
    return lambda perturbation: ((maps + perturbation).mean((1, 2)) @ HEAD, maps + perturbation)


@functools.partial(jax.jit, static_argnums=2)
def pooled_cam(maps, classes, size):
    return grad_cam(pooled(maps), classes, size)


def maps_of(seed, count=5):
    return jnp.asarray(np.random.default_rng(seed).normal(size=(count, 3, 2, 4)), jnp.float32)


def unit_range(array):
    low, high = array.min((1, 2), keepdims=True), array.max((1, 2), keepdims=True)
    return (array - low) / (high - low)


def test_behind_a_mean_and_a_linear_layer_the_weights_are_those_of_the_class():
    maps, classes = maps_of(1), jnp.asarray([0, 1, 2, 2, 0])
    alpha = np.asarray(HEAD).T[classes] / (3 * 2)
    expected = unit_range(np.maximum(np.einsum("bijd,bd->bij", maps, alpha), 0))
    np.testing.assert_allclose(pooled_cam(maps, classes, (3, 2)), expected, atol=1e-6)


def test_the_weights_are_means_over_the_map_of_what_may_differ_from_place_to_place():
    rng = np.random.default_rng(2)
    maps, weights = jnp.asarray(rng.uniform(0.5, 1, (2, 3, 2, 4))), jnp.asarray(rng.normal(size=(3, 2, 4, 3)))
    curved = lambda p: (jnp.einsum("bijd,ijdc->bc", (maps + p) ** 2, weights), maps + p)
    alpha = (2 * maps[..., None] * weights).mean((1, 2))[:, :, 1]  # of class 1
    expected = unit_range(np.maximum(np.einsum("bijd,bd->bij", maps, alpha), 0))
    found = jax.jit(lambda c: grad_cam(curved, c, (3, 2)))(jnp.asarray([1, 1]))
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_an_example_knows_nothing_of_the_others():
    maps, classes = maps_of(3), jnp.asarray([2, 1, 0, 1, 2])
    together = pooled_cam(maps, classes, (9, 8))
    alone = [pooled_cam(m[None], c[None], (9, 8))[0] for m, c in zip(maps, classes, strict=True)]
    np.testing.assert_allclose(together, jnp.stack(alone), atol=1e-6)
    assert together.shape == (5, 9, 8)


def test_resizing_is_bilinear_with_half_pixel_centres():
    maps = jnp.zeros((1, 1, 2, 4)).at[0, 0, 1, 0].set(jnp.sign(HEAD[0, 0]))
    row = [0, 0.25, 0.75, 1]
    np.testing.assert_allclose(pooled_cam(maps, jnp.asarray([0]), (2, 4)), [[row, row]], atol=1e-6)


@pytest.mark.parametrize("value", [0.0, 1.0, -1.0])
def test_a_map_of_one_value_is_zero_and_not_nan(value):
    maps = jnp.full((1, 3, 2, 4), value) * jnp.sign(HEAD[:, 0])  # evidence everywhere alike, for or against the class
    np.testing.assert_array_equal(pooled_cam(maps, jnp.asarray([0]), (6, 4)), np.zeros((1, 6, 4)))


def test_maps_of_half_precision_are_weighed_in_float32():
    maps, classes = maps_of(4), jnp.asarray([0, 1, 2, 2, 0])
    half = maps.astype(jnp.bfloat16)

    def logits_and_map(perturbation):
        seen = half + perturbation
        assert seen.dtype == jnp.bfloat16
        return seen.astype(jnp.float32).mean((1, 2)) @ HEAD, seen

    found = jax.jit(lambda c: grad_cam(logits_and_map, c, (3, 2)))(classes)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, pooled_cam(half.astype(jnp.float32), classes, (3, 2)), atol=0.02)
