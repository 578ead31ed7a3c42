import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jrobust.attacks import linf
from jrobust.attacks.attribution import ifia, ifia_art, ifia_strict, targeted_dombrowski, targeted_topk
from jrobust.attributions import agreement, gradients, integrated
from jrobust.errors import InputError

K, POINTS, EPS = 6, 4, 0.08


class Net(NamedTuple):
    w1: jax.Array
    b1: jax.Array
    w2: jax.Array

    def logits(self, images, beta=None):
        hidden = images.reshape(images.shape[0], -1) @ self.w1 + self.b1
        return (jax.nn.relu(hidden) if beta is None else jax.nn.softplus(beta * hidden) / beta) @ self.w2


@pytest.fixture(scope="module")
def problem():
    rng = np.random.default_rng(0)
    net = Net(
        *(
            jnp.asarray(v, jnp.float32)
            for v in (rng.normal(size=(50, 24)) / 3, rng.normal(size=24), rng.normal(size=(24, 3)))
        )
    )
    images = jnp.asarray(rng.uniform(size=(6, 5, 5, 2)), jnp.float32)
    return net, images, jnp.argmax(net.logits(images), -1)


def maps_of(net, labels, settings, unroll=False):
    judge = integrated.ig_logit(net.logits, labels, num_points=POINTS, unroll=unroll)
    direction = integrated.ig_logit(
        lambda x: net.logits(x, 20.0),
        labels,
        num_points=POINTS,
        chunk=2,
        detach_factor=settings.detach_factor,
        unroll=unroll,
    )
    return jax.jit(judge), jax.jit(direction)


@pytest.fixture(scope="module")
def attack(problem):
    def run(settings, images=problem[1], labels=problem[2], index=None, logits_fn=None):
        @jax.jit
        def compiled(net, images, labels, index, eps):
            judge, direction = maps_of(net, labels, settings)
            return ifia(
                logits_fn or net.logits,
                images,
                labels,
                jax.random.key(0),
                judge=judge,
                direction=direction,
                agreement=agreement,
                settings=dataclasses.replace(settings, eps=eps),
                metrics={
                    "ig_logit": judge,
                    "ig_ce": integrated.ig_ce(net.logits, labels, num_points=POINTS, unroll=False),
                },
                index=index,
                unroll=False,
            )

        index = jnp.arange(len(images)) if index is None else index
        return compiled(problem[0], images, labels, index, jnp.float32(settings.eps))

    results = {}  # of whole batches: several tests look at the same one

    def remembered(settings, *args, **kwargs):
        if args or kwargs:
            return run(settings, *args, **kwargs)
        if settings not in results:
            results[settings] = run(settings)
        return results[settings]

    return remembered


ART = ifia_art(eps=EPS, step_size=0.02, num_steps=6, top_k=K)
STRICT = ifia_strict(eps=EPS, step_size=0.02, num_steps=6, top_k=K)


@pytest.mark.parametrize("settings", [ART, STRICT])
def test_guarantees(problem, attack, settings):
    net, images, labels = problem
    result = attack(settings)
    assert not result.failed.any()
    assert np.abs(result.adv_images - images).max() <= EPS + 1e-7
    assert result.adv_images.min() >= 0 and result.adv_images.max() <= 1
    np.testing.assert_array_equal(net.logits(result.adv_images).argmax(-1), labels)
    judge, _ = maps_of(net, labels, settings)
    clean, adv = judge(images), judge(result.adv_images)
    np.testing.assert_allclose(result.clean_maps["ig_logit"], clean, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(result.adv_maps["ig_logit"], adv, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(result.kendall["ig_logit"], agreement.kendall_scipy(clean, adv), atol=1e-6)
    np.testing.assert_allclose(
        result.top_k_intersection["ig_logit"], agreement.top_k_intersection(clean, adv, K), atol=1e-6
    )
    expected = agreement.kendall(clean, adv) if settings.judge == "full" else agreement.masked_kendall(clean, adv, K)
    np.testing.assert_allclose(result.tau, expected, atol=1e-6)
    assert set(result.kendall) == set(result.adv_maps) == {"ig_logit", "ig_ce"}
    assert result.clean_maps["ig_ce"].shape == (6, 25)


@pytest.mark.parametrize("settings", [ART, STRICT])
def test_no_radius_no_change(problem, attack, settings):
    result = attack(dataclasses.replace(settings, eps=0.0))
    np.testing.assert_array_equal(result.adv_images, problem[1])
    for name in ("ig_logit", "ig_ce"):
        np.testing.assert_array_equal(result.top_k_intersection[name], 1)
        np.testing.assert_array_equal(result.kendall[name], 1)
    np.testing.assert_array_equal(result.tau, 1)
    # The strict attack does not take the image for its own perturbation.
    assert bool(result.failed.all()) is (not settings.allow_unperturbed)


def trajectories(problem, settings, run_keys):
    """The attack written out: the candidates of all runs and their tau (infinite where inadmissible).

    A run starts at the image where its key is None.
    """
    net, images, labels = problem
    judge, direction = maps_of(net, labels, settings)
    clean = judge(images)
    top = jax.lax.top_k(clean, K)[1]
    low, high = jnp.maximum(images - EPS, 0), jnp.minimum(images + EPS, 1)
    measure = (lambda a, b: agreement.masked_kendall(a, b, K)) if settings.judge == "top_k" else agreement.kendall

    def step(x, _):
        tau = jnp.where(net.logits(x).argmax(-1) == labels, measure(clean, judge(x)), jnp.inf)
        if not settings.allow_unperturbed:
            tau = jnp.where(jnp.all(x == images, axis=(1, 2, 3)), jnp.inf, tau)
        gradient = jax.grad(lambda x: jnp.take_along_axis(direction(x), top, 1).sum())(x)
        return jnp.clip(x - settings.step_size * jnp.sign(gradient), low, high), (x, tau)

    starts = []
    for run_key in run_keys:
        keys = None if run_key is None else jax.vmap(lambda i, k=run_key: jax.random.fold_in(k, i))(jnp.arange(6))
        starts.append(images if keys is None else jax.vmap(linf(EPS).random_start)(keys, images))
    run = jax.jit(lambda x: jax.lax.scan(step, x, length=settings.num_steps + settings.judge_last)[1])
    return tuple(np.concatenate(part) for part in zip(*map(run, starts), strict=True))


def assert_chosen(result, iterates, tau):
    np.testing.assert_allclose(result.tau, tau.min(0), atol=1e-6)
    for i, image in enumerate(result.adv_images):  # of several iterates with the same tau any one will do
        best = iterates[tau[:, i] < tau[:, i].min() + 1e-6, i]
        assert np.abs(best - image).max(axis=(1, 2, 3)).min() < 1e-6


def test_art_returns_the_admissible_iterate_of_lowest_tau(problem, attack):
    iterates, tau = trajectories(problem, ART, [jax.random.key(0)])
    assert len(iterates) == ART.num_steps  # the result of the last step is no candidate
    assert_chosen(attack(ART), iterates, tau)
    assert len(set(tau.argmin(0))) > 1  # the choice is each example's own


def test_the_last_step_of_art_is_never_judged(problem, attack):
    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(0), i))(jnp.arange(6))
    starts = jax.vmap(linf(jnp.float32(EPS)).random_start)(keys, problem[1])
    one_step = attack(dataclasses.replace(ART, num_steps=1))
    np.testing.assert_allclose(one_step.adv_images, starts, atol=1e-7)


def test_strict_returns_the_lowest_tau_of_all_its_runs(problem, attack):
    key = jax.random.key(0)
    iterates, tau = trajectories(problem, STRICT, [None, *(jax.random.fold_in(key, r) for r in range(3))])
    length = STRICT.num_steps + 1
    assert len(iterates) == 4 * length
    assert np.isinf(tau[0]).all()  # the clean start itself is no candidate
    assert_chosen(attack(STRICT), iterates, tau)
    assert len(set(tau.argmin(0) // length)) > 1  # more than one of the starts is needed


def test_strict_is_the_stronger_attack(attack):
    art, strict = attack(ART), attack(STRICT)
    assert (strict.kendall["ig_logit"] <= art.kendall["ig_logit"] + 0.02).all()
    assert strict.kendall["ig_logit"].mean() < art.kendall["ig_logit"].mean() < 1


def test_importance_leaves_the_top(problem, attack):
    net, images, labels = problem
    judge, _ = maps_of(net, labels, ART)
    top = np.asarray(jax.lax.top_k(judge(images), K)[1])
    mass = lambda x: np.take_along_axis(np.asarray(judge(x)), top, 1).sum(1)
    noise = jax.random.uniform(jax.random.key(1), images.shape, minval=-EPS, maxval=EPS)
    attacked = attack(ART).adv_images
    assert mass(attacked).mean() < 0.95 * mass(jnp.clip(images + noise, 0, 1)).mean()


@pytest.mark.parametrize("settings", [ART, STRICT])
def test_no_admissible_iterate(problem, attack, settings):
    _, images, labels = problem

    def only_the_images_themselves(x):  # right on the clean images, wrong on everything else
        right = jnp.all(x == images, axis=(1, 2, 3))
        return jax.nn.one_hot(jnp.where(right, labels, (labels + 1) % 3), 3)

    result = attack(dataclasses.replace(settings, num_steps=2), logits_fn=only_the_images_themselves)
    assert result.failed.all()
    np.testing.assert_array_equal(result.adv_images, images)
    np.testing.assert_array_equal(result.tau, 1)
    np.testing.assert_array_equal(result.kendall["ig_ce"], 1)
    np.testing.assert_array_equal(result.top_k_intersection["ig_ce"], 1)


def test_an_image_does_not_depend_on_its_neighbours(problem, attack):
    _, images, labels = problem
    chosen = jnp.asarray([4, 1])
    whole, part = attack(STRICT), attack(STRICT, images[chosen], labels[chosen], index=chosen)
    np.testing.assert_allclose(part.adv_images, whole.adv_images[chosen], atol=1e-6)
    np.testing.assert_allclose(part.kendall["ig_ce"], whole.kendall["ig_ce"][chosen], atol=1e-6)


def test_presets():
    assert ifia_art() == ifia_art(eps="8/255", step_size="1/255", num_steps=50, top_k=100)
    art, strict = ifia_art(top_k=1000), ifia_strict(num_steps=100)
    assert (art.top_k, art.random_starts, art.clean_start, art.judge, art.judge_last) == (
        1000,
        1,
        False,
        "top_k",
        False,
    )
    assert art.detach_factor and not art.count_failures
    assert (strict.num_steps, strict.random_starts, strict.clean_start) == (100, 3, True)
    assert strict.judge == "full" and strict.judge_last and strict.count_failures and not strict.detach_factor


@pytest.mark.parametrize("change", [{"top_k": 0}, {"top_k": 26}, {"num_steps": 0}, {"random_starts": 0}])
def test_settings_without_meaning(attack, change):
    with pytest.raises(InputError):
        attack(dataclasses.replace(ART, **change))


def test_targeted_topk(problem):
    net, images, _ = problem
    labels = net.logits(images).argmax(-1)
    settings = dataclasses.replace(STRICT, eps=0.2)
    judge, direction = maps_of(net, labels, settings)
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
    net, images, _ = problem
    _, direction = maps_of(net, net.logits(images).argmax(-1), STRICT)

    def logits_fn(x):
        return jax.nn.one_hot(jnp.where(jnp.all(x == images, axis=(1, 2, 3)), 0, 1), 3)

    for random_start in (False, True):
        result = targeted_topk(
            logits_fn,
            images,
            direction(images[::-1]),
            jax.random.key(0),
            direction=direction,
            threat=linf(0.1),
            step_size=0.02,
            num_steps=2,
            top_k=K,
            random_start=random_start,
            unroll=False,
        )
        np.testing.assert_array_equal(result.adv_images, images)
        assert (result.success != random_start).all()


MEAN, STD = (0.4, 0.5), (0.2, 0.25)


def dombrowski(problem, **arguments):
    @jax.jit
    def run(net, images):
        labels = net.logits(images).argmax(-1)

        def maps(x, beta):
            score = lambda x: net.logits(x, beta)
            return integrated.ig_probability(score, labels, baseline=jnp.asarray(MEAN), num_points=POINTS)(x)

        return targeted_dombrowski(net.logits, maps, images, maps(images[::-1], None), mean=MEAN, std=STD, **arguments)

    return run(*problem[:2])


def test_targeted_dombrowski(problem):
    _, images, _ = problem
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
    net, images, _ = problem
    labels = net.logits(images).argmax(-1)
    mean, std = jnp.asarray(MEAN), jnp.asarray(STD)

    def h(x, beta):
        path = integrated.ig_probability(
            lambda x: net.logits(x, beta), labels, baseline=mean, num_points=POINTS, unroll=False
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
