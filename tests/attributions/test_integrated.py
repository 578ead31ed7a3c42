import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from jrobust.attributions import gradients, integrated
from jrobust.attributions.integrated import ig_ce, ig_logit, ig_probability, integrated_gradients
from jrobust.errors import InputError

A = np.array([[2.0, 1.0], [1.0, 3.0]])


def quadratic(images):
    """x' A x / 2 of images [B, 1, 2, 1]."""
    x = images.reshape(images.shape[0], 2)
    return 0.5 * jnp.einsum("bi,ij,bj->b", x, jnp.asarray(A, x.dtype), x)


POINT = np.array([1.0, 2.0]).reshape(1, 1, 2, 1)


@pytest.mark.parametrize(
    ("rule", "expected"),
    [("right", (2.02, 7.07)), ("trapezoid", (2.0, 7.0)), ("left", (1.98, 6.93)), ("midpoint", (2.0, 7.0))],
)
def test_quadratic(x64, rule, expected):
    result = integrated_gradients(quadratic, jnp.asarray(POINT), num_points=100, rule=rule)
    np.testing.assert_allclose(result.attribution.ravel(), expected, rtol=1e-12)
    np.testing.assert_allclose(result.completeness_error, sum(expected) - 9.0, atol=1e-12)


@pytest.mark.parametrize("num_points", [1, 3, 7])
@pytest.mark.parametrize("rule", ["right", "left", "midpoint", "trapezoid", "gauss_legendre"])
def test_linear_model_gives_weights_times_input(x64, num_points, rule):
    weights = jnp.asarray(np.random.default_rng(0).normal(size=(6, 3)))
    labels, images = jnp.asarray([2, 0]), jnp.asarray(np.random.default_rng(1).uniform(size=(2, 2, 3, 1)))
    score = gradients.logit_score(lambda x: x.reshape(x.shape[0], -1) @ weights, labels)
    result = integrated_gradients(score, images, num_points=num_points, rule=rule)
    np.testing.assert_allclose(result.attribution, weights.T[labels].reshape(images.shape) * images, rtol=1e-12)


def test_points_and_weights():
    for rule in ("right", "left", "midpoint", "trapezoid", "gauss_legendre"):
        points, weights = integrated.path_points(100, rule)
        assert len(points) == len(weights) == (101 if rule == "trapezoid" else 100)
        assert weights.sum() == pytest.approx(1) and points.min() >= 0 and points.max() <= 1
    assert integrated.path_points(100, "right")[0][0] == 0.01
    points, weights = integrated.path_points(3, "gauss_legendre")
    assert weights @ points**5 == pytest.approx(1 / 6)  # exact for degree 2 m - 1


@pytest.mark.parametrize("arguments", [{"num_points": 0}, {"chunk": 0}, {"rule": "simpson"}])
def test_bad_arguments(arguments):
    with pytest.raises(InputError):
        integrated_gradients(quadratic, jnp.asarray(POINT), **arguments)


@pytest.fixture
def problem(net_of, x64):
    net = net_of(0, 18)
    rng = np.random.default_rng(3)
    images = jnp.asarray(rng.uniform(size=(4, 3, 3, 2)))
    labels = jnp.asarray([0, 2, 1, 2])
    return net, images, labels


def test_completeness_shrinks_at_the_rate_of_the_rule(problem):
    net, images, labels = problem
    score = gradients.logit_score(net.logits, labels)

    def error(rule, num_points):
        run = jax.jit(lambda x: integrated_gradients(score, x, num_points=num_points, rule=rule).completeness_error)
        return np.abs(run(images))

    for rule, order in (("right", 1), ("left", 1), ("midpoint", 2), ("trapezoid", 2)):
        np.testing.assert_allclose(error(rule, 50) / error(rule, 200), 4.0**order, rtol=0.3 if order == 1 else 0.1)
    assert (error("gauss_legendre", 30) < 1e-8).all()


def test_baselines(problem):
    net, images, labels = problem
    score = gradients.logit_score(net.logits, labels)
    mean = jnp.asarray([0.4, 0.6])
    path = jax.jit(lambda x, baseline: integrated_gradients(score, x, baseline=baseline, num_points=9))
    by_channel = path(images, mean)
    by_image = path(images, jnp.broadcast_to(mean, images.shape[1:]))
    by_example = path(images, jnp.broadcast_to(mean, images.shape))
    np.testing.assert_allclose(by_channel.attribution, by_image.attribution, rtol=1e-12)
    np.testing.assert_allclose(by_channel.attribution, by_example.attribution, rtol=1e-12)
    np.testing.assert_array_equal(path(images, images).attribution, 0)

    # The zero of normalised space is the mean: integrating there equals integrating in pixels from the mean.
    std = jnp.asarray([0.2, 0.3])
    in_pixels = lambda z: score(z * std + mean)
    normalised = jax.jit(lambda z: integrated_gradients(in_pixels, z, num_points=9))((images - mean) / std)
    np.testing.assert_allclose(normalised.attribution, by_channel.attribution, rtol=1e-10)


def loss_of(net, images, labels, **arguments):
    score = gradients.logit_score(net.logits, labels)
    attribution = integrated_gradients(score, images, **arguments).attribution
    return jnp.sum(jnp.sin(3 * attribution))


@pytest.mark.parametrize("detach_factor", [False, True])
def test_value_and_derivatives_do_not_depend_on_the_chunk(problem, detach_factor):
    net, images, labels = problem

    def run(**arguments):
        loss = lambda net, images: loss_of(net, images, labels, num_points=11, detach_factor=detach_factor, **arguments)
        return jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(net, images)

    whole = jax.tree.leaves(run())
    for chunk, unroll in itertools.product((1, 3, 4, 11, 50), (False, True)):
        for got, expected in zip(jax.tree.leaves(run(chunk=chunk, unroll=unroll)), whole, strict=True):
            tolerance = 1e-12 * np.abs(expected).max()
            np.testing.assert_allclose(got, expected, rtol=1e-12, atol=tolerance, err_msg=f"{chunk=}, {unroll=}")


@pytest.mark.parametrize("detach_factor", [False, True])
def test_checkpointed_derivative_is_that_of_plain_autodiff_and_of_the_two_pass_formula(problem, detach_factor):
    net, images, labels = problem
    score = gradients.logit_score(net.logits, labels)
    points, m = np.arange(1, 8) / 7, 7

    def mean_gradient(x):
        return sum(gradients.input_gradient(score, a * x) for a in points) / m

    def plain(x):
        factor = jax.lax.stop_gradient(x) if detach_factor else x
        return jnp.sum(jnp.sin(3 * factor * mean_gradient(x)))

    loss = lambda x: loss_of(net, x, labels, num_points=7, chunk=2, detach_factor=detach_factor, unroll=False)
    got = jax.jit(jax.grad(loss))(images)
    np.testing.assert_allclose(got, jax.jit(jax.grad(plain))(images), rtol=1e-11, atol=1e-13)

    # Pass 1: the mean gradient; u = dL/dGbar. Pass 2: sum_i a_i H(a_i x) u / m, plus dL/dx at fixed Gbar.
    head = lambda x, g: jnp.sum(jnp.sin(3 * x * g))
    direct, u = jax.grad(head, argnums=(0, 1))(images, jax.jit(mean_gradient)(images))
    product = jax.jit(lambda x, u: jax.jvp(lambda x: gradients.input_gradient(score, x), (x,), (u,))[1])
    expected = sum(a * product(a * images, u) / m for a in points) + (0 if detach_factor else direct)
    np.testing.assert_allclose(got, expected, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize(("detach_factor", "expected"), [(False, (3.03, 0.505)), (True, (1.01, 0.505))])
def test_direction_golden(x64, detach_factor, expected):
    def first(images):
        return integrated_gradients(quadratic, images, detach_factor=detach_factor, chunk=7).attribution[0, 0, 0, 0]

    np.testing.assert_allclose(jax.jit(jax.grad(first))(jnp.asarray(POINT)).ravel(), expected, rtol=1e-12)


def memory(net_of, derivative_in, num_points, chunk, unroll):
    """Return the bytes of temporaries of the map (None) or of a loss of it by its argument."""
    net = jax.tree.map(lambda w: w.astype(jnp.float32), net_of(0, 3072, hidden=512))

    def loss(net, images):
        labels = jnp.zeros(4, int)
        return loss_of(net, images, labels, num_points=num_points, chunk=chunk, unroll=unroll)

    function = loss if derivative_in is None else jax.grad(loss, argnums=derivative_in)
    compiled = jax.jit(function).lower(net, jnp.ones((4, 32, 32, 3))).compile()
    return compiled.memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize("unroll", [False, True])
@pytest.mark.parametrize("derivative_in", [None, 0, 1])
def test_memory_does_not_grow_with_the_points(net_of, derivative_in, unroll):
    few, many = (memory(net_of, derivative_in, num_points, 4, unroll) for num_points in (16, 32))
    assert many < 1.02 * few
    if derivative_in != 0:  # there it is what sums gradients as large as the weights
        assert memory(net_of, derivative_in, 32, 32, unroll) > 4 * many


def test_derivatives_of_derivatives_and_of_a_mapped_function(problem):
    net, images, labels = problem
    run = functools.partial(loss_of, num_points=5)

    def slope(chunk):
        def first(images, labels):
            return jnp.sum(jax.grad(lambda x: run(net, x[None], labels[None], chunk=chunk))(images) ** 2)

        return jax.jit(jax.vmap(jax.grad(first)))(images, labels)

    whole, parts = slope(5), slope(2)
    assert np.abs(whole).max() > 0
    np.testing.assert_allclose(parts, whole, rtol=1e-10, atol=1e-12)


def test_maps(problem):
    net, images, labels = problem
    by_logit = jax.jit(ig_logit(net.logits, labels, unroll=False))(images)
    path = functools.partial(integrated_gradients, rule="right", unroll=False)
    score = gradients.logit_score(net.logits, labels)
    result = jax.jit(lambda x: path(score, x, num_points=100))(images)
    np.testing.assert_allclose(by_logit, gradients.saliency(result.attribution, "mean"), rtol=1e-12)
    by_ce = jax.jit(ig_ce(net.logits, labels, chunk=10, unroll=False))(images)
    points = np.arange(101) / 100
    slope = jax.jit(lambda x: gradients.input_gradient(gradients.cross_entropy_score(net.logits, labels), x))
    slopes = np.stack([slope(a * images) for a in points])
    attribution = images * ((slopes[1:] + slopes[:-1]) / 2).mean(0)  # the mean of the 100 neighbour averages
    np.testing.assert_allclose(by_ce, gradients.saliency(attribution), rtol=1e-10)
    np.testing.assert_allclose(by_ce.sum(-1), 9, rtol=1e-12)
    thirty = jax.jit(ig_probability(net.logits, labels, baseline=0.5, unroll=False))(images)
    score = gradients.probability_score(net.logits, labels)
    result = jax.jit(lambda x: path(score, x, baseline=0.5, num_points=30))(images)
    np.testing.assert_allclose(thirty, gradients.saliency(result.attribution), rtol=1e-12)


def test_logit_and_cross_entropy_maps_rank_pixels_differently(net_of, x64):
    @jax.jit
    def both(net, image):
        label = jnp.argmax(net.logits(image), -1)
        return [ig(net.logits, label, num_points=50)(image)[0] for ig in (ig_logit, ig_ce)]

    taus = []
    for seed in range(30):
        net = net_of(seed, 12, hidden=16, classes=3)
        image = jnp.asarray(np.random.default_rng(100 + seed).uniform(size=(1, 3, 4, 1)))
        taus.append(scipy.stats.kendalltau(*both(net, image)).statistic)
    assert max(taus) < 1 and 0.3 < np.mean(taus) < 0.9
