"""The attack of BiasAdv against closed forms on linear networks, whose best perturbation is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.methods.attack import SIGNS, B, attack, binary, direction, flat, images_


@pytest.fixture(autouse=True)
def x64(rolled_loops):
    with jax.enable_x64(True):
        yield


def loss(weights, images):
    z = (flat(images) - 0.5) @ np.asarray(weights).T
    return np.log1p(np.exp(-SIGNS[:, 0] * (z[:, 1] - z[:, 0])))


def test_linf_best_perturbation_of_one_linear_network():
    """T1: delta = -eps y sign(w), and the loss there log(1 + exp(-m + eps |w|_1))."""
    w, x = direction(1), images_()
    adv = attack(binary(w), binary(direction(2)), x, eps=0.1, num_steps=4, step_size=0.03)
    np.testing.assert_allclose(flat(adv - x), -0.1 * SIGNS * np.sign(w), rtol=0, atol=1e-15)
    margin = SIGNS[:, 0] * ((flat(x) - 0.5) @ w)
    np.testing.assert_allclose(loss(binary(w), adv), np.log1p(np.exp(-margin + 0.1 * abs(w).sum())), rtol=1e-12)


def test_where_the_steps_do_not_reach_the_radius_they_set_the_strength():
    """T1 under the default preset: four steps of 2/255 in a ball of 0.5 go 8/255 far, whatever eps is."""
    w, x = direction(1), images_()
    found = [attack(binary(w), binary(w), x, eps=eps, num_steps=4, step_size=2 / 255) for eps in (0.5, 0.1)]
    np.testing.assert_allclose(flat(found[0] - x), -8 / 255 * SIGNS * np.sign(w), rtol=0, atol=1e-14)
    np.testing.assert_array_equal(*found)


def test_l2_best_perturbation_of_one_linear_network():
    """T1: delta = -eps y w / |w|_2 and the loss log(1 + exp(-m + eps |w|_2)); steps that reach half of eps go half."""
    w, x = direction(1), images_()
    adv = attack(binary(w), binary(w), x, norm="l2", eps=0.2, step_size=0.11)
    unit = -SIGNS * w / np.linalg.norm(w)
    np.testing.assert_allclose(flat(adv - x), 0.2 * unit, rtol=0, atol=1e-9)
    margin = SIGNS[:, 0] * ((flat(x) - 0.5) @ w)
    np.testing.assert_allclose(loss(binary(w), adv), np.log1p(np.exp(-margin + 0.2 * np.linalg.norm(w))), rtol=1e-9)
    half = attack(binary(w), binary(w), x, norm="l2", eps=0.2, step_ratio=0.5)
    np.testing.assert_allclose(flat(half - x), 0.1 * unit, rtol=0, atol=1e-9)


@pytest.mark.parametrize("weight", [0.01, 1.0, 30.0])
def test_linf_with_disjoint_supports_fools_phi_and_helps_theta(weight):
    """T2: where phi looks the loss of phi rises, where theta looks that of theta falls, for every lambda > 0."""
    phi, theta, x = direction(1, slice(0, 5)), direction(2, slice(5, 12)), images_()
    adv = attack(binary(phi), binary(theta), x, debiased_weight=weight, eps=0.1)
    expected = -0.1 * SIGNS * np.sign(phi) + 0.1 * SIGNS * np.sign(theta)
    np.testing.assert_allclose(flat(adv - x), expected, rtol=0, atol=1e-15)
    assert (loss(binary(phi), adv) > loss(binary(phi), x)).all()
    assert (loss(binary(theta), adv) < loss(binary(theta), x)).all()
    free = attack(binary(phi), binary(theta), x, debiased_weight=0.0, eps=0.1)  # nothing to gain where theta looks
    np.testing.assert_array_equal(flat(free - x)[:, 5:], 0)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_best_perturbation_for_margin_losses(norm):
    """T3: with -y f for the cross-entropy delta follows -y (w_phi - lambda w_theta); with phi = theta nothing moves."""
    margin = lambda logits, labels: -(2 * labels - 1) * (logits[:, 1] - logits[:, 0])
    settings = {"eps": 0.1, "norm": norm, "loss": margin}
    phi, theta, x = direction(1), direction(2), images_()
    v = phi - 0.7 * theta
    along = np.sign(v) if norm == "linf" else v / np.linalg.norm(v)
    adv = attack(binary(phi), binary(theta), x, debiased_weight=0.7, **settings)
    np.testing.assert_allclose(flat(adv - x), -0.1 * SIGNS * along, rtol=0, atol=1e-9)
    same = attack(binary(phi), binary(phi), x, debiased_weight=1.0, **settings)
    np.testing.assert_array_equal(same, x)


def test_one_l2_step_is_along_the_gradient_of_softmax_networks():
    """T4: grad J = W_phi^T (p_phi - e_y) - lambda W_theta^T (p_theta - e_y), to the scale."""
    rng = np.random.default_rng(3)
    phi, theta, labels = rng.normal(size=(5, 12)), rng.normal(size=(5, 12)), np.arange(B) % 5
    x = images_()
    step = {"norm": "l2", "num_steps": 1, "eps": 0.1, "std": 0.5, "labels": labels}
    adv = attack(jnp.asarray(phi), jnp.asarray(theta), x, debiased_weight=0.8, **step)
    softmax = lambda w: np.exp(z := ((flat(x) - 0.5) / 0.5) @ w.T) / np.exp(z).sum(1, keepdims=True)
    error = lambda w: (softmax(w) - np.eye(5)[labels]) @ w
    expected = error(phi) - 0.8 * error(theta)
    expected *= 0.1 / np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(flat(adv - x), expected, rtol=0, atol=1e-8)


def test_l2_with_disjoint_supports_finds_the_best_angle():
    """T5: delta = eps (cos t a + sin t b) for the two gradients' directions a, b; a grid over t is the reference."""
    phi, theta, x = 3 * direction(1, slice(0, 5)), 2 * direction(2, slice(5, 12)), images_()
    adv = attack(binary(phi), binary(theta), x, debiased_weight=0.9, norm="l2", eps=0.4, num_steps=100, step_ratio=3.0)
    total = lambda images: loss(binary(phi), images) - 0.9 * loss(binary(theta), images)
    away, towards = -SIGNS * phi / np.linalg.norm(phi), SIGNS * theta / np.linalg.norm(theta)
    angles = np.linspace(0, np.pi / 2, 2001)[:, None, None]
    grid = flat(x) + 0.4 * (np.cos(angles) * away + np.sin(angles) * towards)
    best = np.max([total(np.asarray(points)) for points in grid], axis=0)
    np.testing.assert_allclose(total(adv), best, rtol=0, atol=1e-3)
    assert (total(adv) <= best + 1e-6).all()
