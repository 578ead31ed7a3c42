import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jrobust.attacks import linf, targeted_dombrowski, targeted_topk
from jrobust.attributions import gradients, integrated

K = 6


def test_targeted_topk(problem):
    net, images, labels = problem.net, problem.images, problem.labels
    judge, direction = problem.maps_of(net, labels, detach_factor=False)
    target_maps = judge(images[::-1])
    top = np.asarray(jax.lax.top_k(target_maps, K)[1])
    share = lambda x: np.take_along_axis(np.asarray(direction(x)), top, 1).sum(1) / 25

    def run(num_steps):
        attack = lambda x: targeted_topk(
            net.logits,
            x,
            target_maps,
            direction=direction,
            threat=linf(0.2),
            step_size="5/255",
            num_steps=num_steps,
            top_k=K,
            unroll=False,
        )
        return jax.jit(attack)(images)

    none, some = run(0), run(10)
    np.testing.assert_array_equal(none.adv_images, images)
    np.testing.assert_allclose(none.loss, share(images), rtol=1e-4)
    np.testing.assert_allclose(some.loss, share(some.adv_images), rtol=1e-3)
    assert (share(some.adv_images) > share(images)).all()
    assert share(some.adv_images).mean() > 1.2 * share(images).mean()
    assert np.abs(some.adv_images - images).max() <= 0.2 + 1e-6
    np.testing.assert_array_equal(net.logits(some.adv_images).argmax(-1), labels)

    def step(x, _):
        gradient = jax.grad(lambda x: jnp.take_along_axis(direction(x), top, 1).sum())(x)
        low, high = jnp.maximum(images - 0.2, 0), jnp.minimum(images + 0.2, 1)
        return jnp.clip(x + 5 / 255 * jnp.sign(gradient), low, high), net.logits(x).argmax(-1) == labels

    kept = jax.jit(lambda x: jax.lax.scan(step, x, length=11)[1])(images)
    last = 10 - kept[::-1].argmax(0)  # of the iterates 0 .. 10 the last that keeps the prediction
    assert 0 < last.min() < 10
    np.testing.assert_array_equal(some.steps, last)


def test_targeted_topk_hands_the_image_back(problem):
    images = problem.images
    _, direction = problem.maps_of(problem.net, problem.labels, detach_factor=False)

    def logits_fn(x):
        return jax.nn.one_hot(jnp.where(jnp.all(x == images, axis=(1, 2, 3)), 0, 1), 3)

    for random_start in (False, True):
        attack = functools.partial(
            targeted_topk,
            logits_fn,
            direction=direction,
            threat=linf(0.1),
            step_size=0.02,
            num_steps=2,
            top_k=K,
            random_start=random_start,
            unroll=False,
        )
        result = jax.jit(attack)(images, direction(images[::-1]), jax.random.key(0))
        np.testing.assert_array_equal(result.adv_images, images)
        assert (result.success != random_start).all()


MEAN, STD = (0.4, 0.5), (0.2, 0.25)


def dombrowski(problem, **arguments):
    @jax.jit
    def run(net, images):
        labels = net.logits(images).argmax(-1)

        def maps(x, beta):
            score = lambda x: net.logits(x, beta)
            return integrated.ig_probability(
                score, labels, baseline=jnp.asarray(MEAN), num_points=problem.points, unroll=False
            )(x)

        return targeted_dombrowski(net.logits, maps, images, maps(images[::-1], None), mean=MEAN, std=STD, **arguments)

    return run(problem.net, problem.images)


def test_targeted_dombrowski(problem):
    images = problem.images
    start = dombrowski(problem, num_steps=0)
    np.testing.assert_array_equal(start.adv_images, images)
    np.testing.assert_allclose(start.output_error, 0, atol=1e-14)
    # The published weights are for 224 x 224 maps of sum 1, whose squared errors are far smaller than here.
    end = dombrowski(problem, num_steps=60, learning_rate=0.02, map_weight=1e8)
    assert end.map_error.mean() < 0.5 * start.map_error.mean()
    assert end.output_error.max() < 1e-3
    assert end.adv_images.min() >= 0 and end.adv_images.max() <= 1

    # Adam's first step is the learning rate along the sign, in units of the normalisation.
    moved = np.abs(dombrowski(problem, num_steps=1, learning_rate=1e-3).adv_images - images)
    inside = (images > 0.01) & (images < 0.99)
    typical = np.median(moved[..., 0][inside[..., 0]]), np.median(moved[..., 1][inside[..., 1]])
    np.testing.assert_allclose(typical, 1e-3 * np.asarray(STD), rtol=1e-2)


def test_targeted_dombrowski_sharpens_the_softplus():
    seen = []

    def logits_fn(images, beta):
        if beta is not None:
            jax.debug.callback(lambda value: seen.append(float(value)), beta)
        return images.reshape(images.shape[0], -1)

    images = jnp.full((1, 2, 1, 1), 0.5)
    saliency = lambda x, beta: gradients.saliency(x * 1.0)
    targeted_dombrowski(logits_fn, saliency, images, jnp.ones((1, 2)), mean=(0.5,), std=(0.5,), num_steps=4)
    jax.effects_barrier()
    np.testing.assert_allclose(sorted(set(seen)), 10 * 10 ** (np.arange(4) / 4), rtol=1e-5)


def test_targeted_dombrowski_is_the_optimiser_it_says(problem):
    """Three steps by hand, with Optax on the written objective."""
    net, images, labels = problem.net, problem.images, problem.labels
    mean, std = jnp.asarray(MEAN), jnp.asarray(STD)

    def h(x, beta):
        path = integrated.ig_probability(
            lambda x: net.logits(x, beta), labels, baseline=mean, num_points=problem.points, unroll=False
        )
        return path(x) / 25

    p = lambda x, beta: jax.nn.softmax(net.logits(x, beta))
    h_target, p_clean = jax.jit(lambda x: h(x, None))(images[::-1]), p(images, None)
    z = (images - mean) / std
    adam = optax.adam(2e-4)
    state = adam.init(z)

    @jax.jit
    @jax.grad
    def slope(z, beta):
        x = z * std + mean
        error = 1e11 * ((h(x, beta) - h_target) ** 2).mean(1) + 1e6 * ((p(x, beta) - p_clean) ** 2).mean(1)
        return error.sum()

    for i in range(3):
        updates, state = adam.update(slope(z, 10.0 * 10 ** (i / 3)), state)
        z = jnp.clip(z + updates, -mean / std, (1 - mean) / std)
    # Two coordinates with a gradient near zero may move the other way.
    difference = np.abs(dombrowski(problem, num_steps=3).adv_images - (z * std + mean))
    assert np.quantile(difference, 0.98) < 1e-6
