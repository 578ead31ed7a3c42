"""Losses: golden values of the reference packages, closed forms, gradients, and refusals."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jrobust.attacks import (
    cross_entropy,
    cw_loss,
    dlr,
    kl,
    l2,
    linf,
    margin,
    pgd,
    ranked_targets,
    targeted,
    targeted_cross_entropy,
    targeted_dlr,
)
from jrobust.errors import InputError
from tests.attacks import toy

LOGITS = [[2, 1, 0.5, -1, 0], [0.1, 0.4, 0.3, 0.2, -0.5]]
OTHER = [[1.5, 1.2, 0.5, -1, 0], [0.3, 0.2, 0.3, 0.2, -0.4]]
LABELS, TARGETS = [0, 2], [1, 1]


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        (cross_entropy, [0.574437940, 1.453501518]),
        (margin, [-1, 0.1]),
        (cw_loss, [-51, -49.9]),
        (functools.partial(cw_loss, confidence=0.0), [-1, 0]),
        (dlr, [-2 / 3, 0.5]),
        (lambda z, y: targeted_dlr(z, y, jnp.array(TARGETS)), [-4 / 7, 0.4]),
        (lambda z, y: targeted_cross_entropy(z, y, jnp.array(TARGETS)), [-1.574437940, -1.353501518]),
        (lambda z, y: kl(z, jnp.array(OTHER, z.dtype)), [0.046896897, 0.009456310]),
    ],
    ids=["ce", "margin", "cw", "cw_0", "dlr", "targeted_dlr", "targeted_ce", "kl"],
)
def test_golden(x64, loss, expected):
    logits, labels = jnp.array(LOGITS), jnp.array(LABELS)
    value = jax.jit(loss)(logits, labels)
    assert value.dtype == jnp.float64
    np.testing.assert_allclose(value, expected, rtol=0, atol=1e-9)
    assert jax.eval_shape(loss, logits.astype(jnp.bfloat16), labels).dtype == jnp.float32


def test_kl_is_not_symmetric_and_vanishes_at_the_reference(x64):
    p, q = jnp.array(LOGITS), jnp.array(OTHER)
    assert float(jnp.abs(kl(p, q) - kl(q, p)).max()) > 1e-4
    by_hand = (jax.nn.softmax(p) * (jax.nn.log_softmax(p) - jax.nn.log_softmax(q))).sum(-1)
    np.testing.assert_allclose(kl(p, q), by_hand, atol=1e-15)
    np.testing.assert_array_equal(kl(p, p), 0)
    gradients = jax.jit(jax.grad(lambda p, q: kl(p, q).sum(), argnums=(0, 1)))
    np.testing.assert_allclose(gradients(p, p), 0, atol=1e-16)
    for gradient in gradients(p, q):  # the clean branch of TRADES learns too
        assert float(jnp.abs(gradient).max()) > 1e-3


def test_cw_is_flat_where_a_wrong_class_leads_by_the_confidence():
    logits = jnp.array([[0.0, 49.0, 3.0], [0.0, 51.0, 3.0]])
    labels = jnp.array([0, 0])
    value, gradient = cw_loss(logits, labels), jax.grad(lambda z: cw_loss(z, labels).sum())(logits)
    np.testing.assert_array_equal(value, [-1, 0])
    np.testing.assert_array_equal(gradient, [[-1, 1, 0], [0, 0, 0]])


def test_wrong_logits_below_zero():
    """Products with a mask would take the masked class's 0 for the largest wrong logit."""
    logits, labels = jnp.array([[-1.0, -2.0, -3.0]]), jnp.array([0])
    np.testing.assert_array_equal(margin(logits, labels), [-1])
    np.testing.assert_array_equal(cw_loss(logits, labels), [-51])
    np.testing.assert_allclose(dlr(logits, labels), [-0.5])


def test_ratios_do_not_see_shift_and_scale(x64):
    z = jax.random.normal(jax.random.key(0), (6, 7))
    y, t = jnp.array([0, 1, 2, 3, 4, 5]), jnp.array([6, 5, 3, 2, 1, 0])
    for loss in (dlr, lambda z, y: targeted_dlr(z, y, t)):
        value, slope = jax.jit(loss), jax.jit(jax.grad(lambda z, f=loss: f(z, y).sum()))
        np.testing.assert_allclose(value(100 * z - 5, y), value(z, y), rtol=1e-9)
        assert jnp.isfinite(slope(jnp.zeros_like(z))).all()


def test_too_few_classes():
    logits, labels = jnp.zeros((1, 2)), jnp.zeros(1, int)
    with pytest.raises(InputError, match=r"2 classes: DLR needs at least 3 classes: use loss='ce'"):
        dlr(logits, labels)
    with pytest.raises(InputError, match=r"3 classes: targeted DLR needs at least 4 classes: use"):
        targeted_dlr(jnp.zeros((1, 3)), labels, labels)
    with pytest.raises(InputError, match=r"9 target classes, where there are 3 wrong ones: use 1 to 3 targets"):
        ranked_targets(jnp.zeros((1, 4)), 9)
    assert dlr(jnp.array([[1.0, 0.5, 0.0]]), labels)[0] == -0.5
    assert ranked_targets(logits, 1).tolist() == [[1]]


def test_ranked_targets():
    logits = jnp.array([[0.0, 3.0, 1.0, 2.0], [1.0, 1.0, 5.0, 1.0]])
    assert ranked_targets(logits, 3).tolist() == [[3, 2, 0], [0, 1, 3]]
    assert ranked_targets(logits, 2).dtype == jnp.int32


def test_objectives_call_any_misclassification_a_success(x64):
    images, labels = toy.images(), jnp.asarray(toy.LABELS)
    targets = (labels + 1) % 10
    aimed = targeted(toy.logits, labels, targets, targeted_dlr)
    loss, success = jax.jit(aimed)(images)
    logits = jax.jit(toy.logits)(images)
    np.testing.assert_allclose(loss, targeted_dlr(logits, labels, targets))
    assert not success.any()
    # Classified as neither label nor target.
    other, wrong = jax.jit(targeted(toy.logits, (labels + 5) % 10, targets))(images)
    assert bool(wrong.all())
    np.testing.assert_allclose(other, -cross_entropy(logits, targets))

    attack = lambda x: pgd(aimed, x, threat=linf(0.05), step_size=0.01, num_steps=8, random_start=False, unroll=False)
    assert float(jax.jit(attack)(images).loss.mean()) > float(loss.mean()) + 0.5


def test_kl_from_the_image_itself_makes_no_progress(x64):
    """Its gradient there is rounding: a step along it goes nowhere (L2), or along its sign, which is noise (Linf)."""
    images = toy.images()
    reference = jax.jit(toy.logits)(images)
    objective = lambda x: kl(reference, toy.logits(x))

    @jax.jit
    def step(start):
        return pgd(objective, images, threat=l2(0.1), step_size=0.05, num_steps=1, start=start)

    at_images = jax.jit(jax.grad(lambda x: objective(x).sum()))(images)
    assert float(jnp.abs(at_images).max()) < 1e-14
    nudged = images + 0.001 * jnp.sin(jnp.arange(images.size)).reshape(images.shape)
    assert float(jnp.abs(step(images).adv_images - images).max()) < 1e-5
    assert float(step(images).loss.max()) < 1e-8 < 1e-4 < float(step(nudged).loss.min())
