from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jrobust.attacks import l2, linf
from jrobust.attacks import model_checks as checks


def first_pixels(scale, images):
    return scale * images.reshape(images.shape[0], -1)[:, :3]


def names(flags):
    return {flag.name for flag in flags}


def test_a_look_at_the_images_in_batches_of_one_size():
    images = np.random.default_rng(0).uniform(size=(5, 2, 2, 1)).astype(np.float32)
    logits = 2 * images.reshape(5, -1)[:, :3]
    labels = logits.argmax(1).astype(np.int32)
    labels[4] = (labels[4] + 1) % 3
    sizes = []

    def counted(scale, images):
        sizes.append(images.shape[0])
        return first_pixels(scale, images)

    found = checks.look(counted, 2.0, images, labels, size=2)
    assert set(sizes) == {2}
    np.testing.assert_allclose(found.logits, logits, rtol=1e-6)
    assert found.correct.tolist() == [True] * 4 + [False] and not found.zero_gradient.any()
    ordered = np.sort(logits, -1)
    np.testing.assert_allclose(found.margin[:4], ordered[:4, 1] - ordered[:4, 2], rtol=1e-5)
    flat = checks.look(lambda w, x: jnp.round(w * first_pixels(1, x)), 9.0, images, labels, size=8)
    assert flat.zero_gradient.all()
    lost = checks.look(lambda w, x: first_pixels(jnp.nan, x), (), images, 0 * labels, size=8)
    assert not lost.correct.any() and names(checks.answer_flags(lost, targets=2)) >= {"not_finite"}


def test_keys_belong_to_images():
    images, labels = np.zeros((4, 2, 2, 1), np.float32), np.zeros(4, np.int32)

    def noise(_, x, keys):
        return jax.vmap(lambda key: jax.random.normal(key, (3,)))(keys) + first_pixels(1, x)

    def ask(order, size, seed=0):
        key = jax.random.key(seed)
        return checks.look(noise, (), images[order], labels[order], size=size, key=key, numbers=order).logits

    order = np.arange(4)
    np.testing.assert_allclose(ask(order, 4)[[2, 0]], ask(order[[2, 0]], 1), rtol=1e-6)
    assert checks.unlikeness(ask(order, 4), ask(order, 4, seed=1)) > 0.1


def test_unlikeness_is_that_of_directions():
    logits = np.array([[3.0, 4.0], [1.0, 0.0]])
    assert checks.unlikeness(logits, 7 * logits) < 1e-12
    assert checks.unlikeness(logits, logits, np.array([[4.0, 3.0], [1.0, 0.0]])) == pytest.approx(0.2)
    assert checks.unlikeness(np.zeros((1, 2)), np.zeros((1, 2))) == 0


def test_noise_of_python_shows_in_another_trace():
    images = np.full((2, 2, 2, 1), 0.5, np.float32)
    weights = jnp.arange(3.0)
    generator, numbers = np.random.default_rng(0), itertools.count()
    assert checks.retraced(lambda w, x: first_pixels(w, x) * weights, 1.0, images) == 0
    assert checks.retraced(lambda w, x: first_pixels(w, x) + generator.normal(size=3), 1.0, images) > 1e-2
    assert checks.retraced(lambda w, x: first_pixels(w, x) + generator.normal() * weights, 1.0, images) > 1e-2

    def keyed(w, x):
        return first_pixels(w, x) + jax.random.normal(jax.random.key(next(numbers)), (3,))

    assert checks.retraced(keyed, 1.0, images) > 1e-2

    def harmless(w, x):  # another number, the same answers
        return first_pixels(w, x) + 0 * next(numbers)

    assert checks.retraced(harmless, 1.0, images) < 1e-6


def test_probabilities():
    logits = np.random.default_rng(0).normal(size=(4, 5))
    softmax = np.asarray(jax.nn.softmax(logits), np.float32)
    assert checks.looks_like_probabilities(softmax).tolist() == [True] * 4
    for others in (logits, softmax / 2, np.log(softmax)):
        assert not checks.looks_like_probabilities(others).any()
    mixed = jax.numpy.stack([softmax[0], logits[0]])
    assert np.asarray(checks.looks_like_probabilities(mixed)).tolist() == [True, False]


def look_of(logits, labels=0):
    logits = np.asarray(logits, np.float32)
    ordered = np.sort(logits, -1)
    correct = logits.argmax(-1) == labels
    return checks.Look(logits, ordered[:, -2] - ordered[:, -1], correct, np.zeros(len(logits), bool))


def test_flags_of_answers():
    ten = look_of(np.random.default_rng(0).normal(size=(4, 10)))
    assert not checks.answer_flags(ten, targets=9)
    assert "5 classes: 4 targets" in checks.answer_flags(look_of(ten.logits[:, :5]), targets=4)[0].text
    assert "no targeted DLR" in checks.answer_flags(look_of(ten.logits[:, :3]), targets=2)[0].text
    assert "no DLR at all" in checks.answer_flags(look_of(ten.logits[:, :2]), targets=1)[0].text
    flat = ten._replace(zero_gradient=np.ones(4, bool), correct=np.array([True, True, True, False]))
    (flag,) = checks.answer_flags(flat, targets=9)
    assert flag.name == "zero_gradient" and "3 of 3 correct" in flag.text


def test_what_perturbed_images_are():
    images = np.full((2, 2, 2, 1), 0.5, np.float32)
    moved = images.copy()
    moved[0, 0, 0, 0] += 0.1
    moved[1] -= 0.04
    found = checks.perturbation_checks(images, moved, linf(0.1))
    assert found["largest_over_eps"] == pytest.approx(1) and found["inside_ball"] and found["nan"] == 0
    assert (found["lowest_pixel"], found["highest_pixel"]) == (pytest.approx(0.46), pytest.approx(0.6))
    assert checks.perturbation_checks(images, moved, l2(0.2))["largest_over_eps"] == pytest.approx(0.5)
    assert not checks.perturbation_checks(images, moved, linf(0.0999))["inside_ball"]
    moved[1, 0, 0, 0] = np.nan
    lost = checks.perturbation_checks(images, moved, linf(0.1))
    assert lost["nan"] == 1 and not lost["inside_ball"]
    assert checks.perturbation_checks(images[:0], moved[:0], linf(0.1))["inside_ball"]


def test_flags_of_outcomes():
    sound = {"inside_ball": True, "nan": 0, "lowest_pixel": 0.0, "highest_pixel": 1.0}

    def flags(square=0, unconfirmed=0, total=1000, **change):
        return names(checks.outcome_flags(sound | change, square=square, unconfirmed=unconfirmed, total=total))

    assert flags() == flags(square=2) == set()
    assert flags(square=3) == {"black_box"}
    assert flags(unconfirmed=1) == {"unconfirmed"}
    for change in ({"inside_ball": False}, {"nan": 1}, {"lowest_pixel": -0.1}, {"highest_pixel": 1.1}):
        assert flags(**change) == {"left_ball"}
