"""Generalised cross-entropy against its closed forms, at both ends of q and for both forms of the gradient."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jrobust.methods.generalized_cross_entropy import generalized_cross_entropy

P = np.array([[0.1, 0.2, 0.7], [0.1, 0.2, 0.7], [0.98, 0.01, 0.01], [1 / 3, 1 / 3, 1 / 3]])
LABELS = np.array([0, 2, 0, 1])
P_Y = P[np.arange(4), LABELS]


@functools.partial(jax.jit, static_argnums=(2, 3))
def value_and_gradient(logits, labels, q, form):
    """The losses of the examples, and the gradient of their sum."""
    losses = lambda z: generalized_cross_entropy(z, labels, q, form)
    return losses(logits), jax.grad(lambda z: losses(z).sum())(logits)


@pytest.fixture
def logits():
    with jax.enable_x64(True):
        yield jnp.log(P) + jnp.array([[3.0], [-2.0], [0.0], [9.0]])  # shifts do not matter


def test_value_between_cross_entropy_and_distance_to_the_label(logits):
    value = lambda q: value_and_gradient(logits, LABELS, q, "value")[0]
    np.testing.assert_allclose(value(1e-6), -np.log(P_Y), atol=1e-4)
    np.testing.assert_allclose(value(1e-12), -np.log(P_Y), rtol=1e-10)  # no cancellation
    np.testing.assert_allclose(value(0.0), -np.log(P_Y), rtol=1e-12)
    half_distance = np.abs(P - np.eye(3)[LABELS]).sum(1) / 2
    np.testing.assert_allclose(value(1.0), half_distance, rtol=1e-12)
    np.testing.assert_allclose(value(0.7), (1 - P_Y**0.7) / 0.7, rtol=1e-12)


@pytest.mark.parametrize("form, factor", [("value", lambda q: 1.0), ("lff", lambda q: q)])
@pytest.mark.parametrize("q", [0.3, 0.7, 1.0])
def test_gradient_is_that_of_cross_entropy_times_a_power_of_the_probability(logits, form, factor, q):
    expected = factor(q) * P_Y[:, None] ** q * (P - np.eye(3)[LABELS])
    np.testing.assert_allclose(value_and_gradient(logits, LABELS, q, form)[1], expected, rtol=1e-10, atol=1e-14)


def test_the_form_of_the_released_code_is_a_weighted_cross_entropy(logits):
    np.testing.assert_allclose(
        generalized_cross_entropy(logits, LABELS, 0.7), -0.7 * P_Y**0.7 * np.log(P_Y), rtol=1e-12
    )
    assert generalized_cross_entropy(logits, LABELS, 0.7, "lff").shape == (4,)


@pytest.mark.parametrize("form", ["value", "lff"])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_finite_for_any_logits(form, dtype):
    logits = jnp.array([[1e4, -1e4, 0.0], [-1e4, 1e4, 0.0], [90.0, 0.0, 0.0], [0.0, 0.0, 0.0]], dtype)
    labels = jnp.array([0, 0, 1, 2])
    losses, gradients = value_and_gradient(logits, labels, 0.7, form)
    assert losses.dtype == jnp.float32
    assert np.isfinite(losses).all() and np.isfinite(gradients.astype(jnp.float32)).all()
    assert losses[0] == 0 and (losses >= 0).all()
    if form == "value":  # 1 / q where the label has no probability at all
        np.testing.assert_allclose(losses[1:3], 1 / 0.7, rtol=1e-6)
    assert jnp.abs(gradients[1]).max() == 0  # p_y^q is 0: what phi gets wrong it leaves alone


def test_what_is_easy_is_learnt_most():
    """At q = 0.7 the gradient of a hopeless example is smaller than one in between; that of cross-entropy grows."""
    logits = jnp.log(jnp.array([[0.01, 0.99], [0.4, 0.6], [0.99, 0.01]]))
    size = lambda q: np.abs(value_and_gradient(logits, jnp.zeros(3, int), q, "value")[1][:, 0])
    hopeless, middle, sure = size(0.7)
    assert middle > hopeless > sure
    assert (np.diff(size(0.0)) < 0).all()
