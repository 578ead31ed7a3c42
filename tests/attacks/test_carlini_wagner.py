"""C&W in Linf and L2: golden values, the union that FSR calls Ensemble, and what L2 guarantees."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jrobust.attacks import cross_entropy, cw_l2, cw_linf, fgsm, linf, margin, pgd, untargeted
from tests.attacks import toy

LABELS = jnp.asarray(toy.LABELS)
CW_30 = [1.873401, 1.643847, 1.930171, 2.181970, 1.634065, 1.610161, 1.639367, 1.766910]


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


def test_linf_golden_and_ensemble(x64):
    images, threat = toy.images(), linf("0.01")

    @jax.jit
    def attacks(x):
        objective = untargeted(toy.logits, LABELS)
        ascent = functools.partial(pgd, objective, x, threat=threat, step_size=0.001, random_start=False, unroll=False)
        return (
            cw_linf(toy.logits, x, LABELS, threat=threat, unroll=False),
            fgsm(objective, x, threat=threat),
            ascent(num_steps=20),
            ascent(num_steps=100),
        )

    results = attacks(images)
    loss = jax.jit(lambda x: cross_entropy(toy.logits(x), LABELS))(results[0].adv_images)
    np.testing.assert_allclose(loss[:8], CW_30, rtol=0, atol=6e-7)
    assert abs(float(loss.sum()) - 25.3195385587) < 1e-9
    assert [int((~result.success).sum()) for result in results] == [4, 8, 7, 7]
    broken = functools.reduce(jnp.logical_or, [result.success for result in results])
    assert int((~broken).sum()) == 4


def test_linf_stands_still_where_a_wrong_class_leads_by_the_confidence():
    images, labels = jnp.full((2, 2, 2, 1), 0.5), jnp.zeros(2, int)
    score = lambda lead: lambda x: jnp.stack([0 * x.sum((1, 2, 3)), lead + x.sum((1, 2, 3))], 1)
    attack = jax.jit(lambda lead: cw_linf(score(lead), images, labels, unroll=False))
    np.testing.assert_array_equal(attack(60.0).adv_images, images)
    np.testing.assert_allclose(attack(0.0).adv_images, 0.5 + 8 / 255, rtol=1e-6)
    wide = jax.jit(lambda: cw_linf(score(60.0), images, labels, confidence=80.0, unroll=False))()
    np.testing.assert_allclose(wide.adv_images, 0.5 + 8 / 255, rtol=1e-6)
    assert bool(wide.success.all())


def test_l2_finds_the_nearest_point_of_a_line():
    """Two classes with a linear boundary at a known distance, and images that start on either side."""
    weights = jnp.array([3.0, -1.0, 2.0, 0.5])
    images = jax.random.uniform(jax.random.key(0), (5, 2, 2, 1), minval=0.3, maxval=0.7)
    lead = jnp.array([-0.02, -0.05, 0.03, -0.1, -0.2])  # the signed distance from the boundary

    def logits(x):
        score = (x - images).reshape(5, 4) @ weights / jnp.linalg.norm(weights) + lead
        return jnp.stack([jnp.zeros(5), score], 1)

    result = jax.jit(lambda x: cw_l2(logits, x, jnp.zeros(5, int), num_steps=400, unroll=False))(images)
    length = jnp.linalg.norm((result.adv_images - images).reshape(5, -1), axis=1)
    assert bool(result.success.all()) and (margin(logits(result.adv_images), jnp.zeros(5, int)) > 0).all()
    np.testing.assert_allclose(length, jnp.maximum(-lead, 0), rtol=0.05, atol=1e-3)
    np.testing.assert_array_equal(result.adv_images[2], images[2])  # wrong from the outset, at distance 0
    assert int(result.steps[2]) == 0


def search_by_hand(images, num_steps, confidence, weight):
    """The search in Python, from the formula."""
    w = jnp.arctanh(2 * images - 1)
    adam = optax.adam(0.01)
    state = adam.init(w)

    @jax.jit
    @functools.partial(jax.grad, has_aux=True)
    def slope(w):
        x = (jnp.tanh(w) + 1) / 2
        logits = toy.logits(x)
        own = logits[jnp.arange(16), LABELS]
        other = jnp.sort(logits.at[jnp.arange(16), LABELS].set(-jnp.inf), 1)[:, -1]
        distance = ((x - images) ** 2).sum((1, 2, 3))
        cost = distance + weight * jnp.maximum(own - other, -confidence)
        return cost.sum(), (x, distance, other - own)

    found = [(np.inf, None, 0)] * 16
    for t in range(num_steps + 1):
        gradient, (x, distance, lead) = slope(w)
        for i in range(16):
            if lead[i] > 0 and lead[i] >= confidence and distance[i] < found[i][0]:
                found[i] = (float(distance[i]), np.asarray(x[i]), t)
        updates, state = adam.update(gradient, state)
        w = w + updates
    return found


@pytest.mark.parametrize(("confidence", "weight"), [(0.0, 1.0), (0.3, 0.5)])
def test_l2_is_the_search_that_the_docstring_writes_down(x64, confidence, weight):
    images = toy.images()
    settings = {"confidence": confidence, "weight": weight, "unroll": False}
    result = jax.jit(lambda x: cw_l2(toy.logits, x, LABELS, **settings))(images)
    found = search_by_hand(images, 50, confidence, weight)
    for i, (_, x, t) in enumerate(found):
        assert int(result.steps[i]) == t and bool(result.success[i]) == (x is not None)
        np.testing.assert_allclose(result.adv_images[i], images[i] if x is None else x, rtol=0, atol=1e-9)
    logits = jax.jit(toy.logits)(result.adv_images)
    np.testing.assert_allclose(result.loss, margin(logits, LABELS), rtol=0, atol=1e-9)
    assert len({t for *_, t in found}) > 1 and bool(result.success.any())
    part = jax.jit(lambda x: cw_l2(toy.logits, x, LABELS[3:5], **settings))(images[3:5])
    np.testing.assert_allclose(part.adv_images, result.adv_images[3:5], rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_l2_guarantees(dtype):
    images = jax.random.uniform(jax.random.key(0), (4, 3, 3, 1)).round(1).astype(dtype)  # black and white pixels too
    assert images.min() == 0 and images.max() == 1

    def logits(x):
        score = (x.astype(jnp.float32) - images.astype(jnp.float32)).sum((1, 2, 3)) - 0.02
        odd = jnp.array([0, jnp.nan, 0, 0.0])
        return jnp.stack([jnp.zeros(4), jnp.where(jnp.arange(4) % 2 == 1, odd, score)], 1)

    @functools.partial(jax.jit, static_argnums=1)
    def attack(x, num_steps):
        return cw_l2(logits, x, jnp.zeros(4, int), num_steps=num_steps, unroll=False)

    result = attack(images, 30)
    assert result.adv_images.dtype == dtype
    adv = np.asarray(result.adv_images, np.float32)
    assert np.isfinite(adv).all() and adv.min() >= 0 and adv.max() <= 1
    # The second has logits without a meaning; in the fourth both are the same, and the label is the first.
    assert result.success.tolist() == [True, False, True, False]
    np.testing.assert_array_equal(result.adv_images[1::2], images[1::2])
    np.testing.assert_array_equal(attack(images, 0).adv_images, images)
    gradient = jax.jit(jax.grad(lambda x: attack(x, 1).adv_images.sum()))(images)
    np.testing.assert_array_equal(gradient, 0)
