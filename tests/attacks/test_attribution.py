import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jrobust.attacks import ifia, ifia_art, ifia_strict, linf
from jrobust.attributions import agreement, integrated
from jrobust.errors import InputError

K, EPS = 6, 0.08


@pytest.fixture(scope="module")
def attack(problem):
    @functools.partial(jax.jit, static_argnames="settings")  # one program for all radii and for both kinds of network
    def compiled(net, images, labels, index, eps, trap, *, settings):
        judge, direction = problem.maps_of(net, labels, settings.detach_factor)

        def logits_fn(x):  # trapped: right on the clean images, wrong on everything else
            right = jnp.all(x == images, axis=(1, 2, 3))
            trapped = jax.nn.one_hot(jnp.where(right, labels, (labels + 1) % 3), 3)
            return jnp.where(trap, trapped, net.logits(x))

        return ifia(
            logits_fn,
            images,
            labels,
            jax.random.key(0),
            judge=judge,
            direction=direction,
            agreement=agreement,
            settings=dataclasses.replace(settings, eps=eps),
            metrics={
                "ig_logit": judge,
                "ig_ce": integrated.ig_ce(net.logits, labels, num_points=problem.points, unroll=False),
            },
            index=index,
            unroll=False,
        )

    @functools.cache  # several tests look at the same attack
    def run(settings, trap=False, chosen=None):
        images, labels, index = problem.images, problem.labels, jnp.arange(len(problem.images))
        if chosen is not None:
            images, labels, index = images[jnp.asarray(chosen)], labels[jnp.asarray(chosen)], jnp.asarray(chosen)
        eps, settings = jnp.float32(settings.eps), dataclasses.replace(settings, eps=0.0)
        return jax.tree.map(np.asarray, compiled(problem.net, images, labels, index, eps, trap, settings=settings))

    return run


ART = ifia_art(eps=EPS, step_size=0.02, num_steps=6, top_k=K)
STRICT = ifia_strict(eps=EPS, step_size=0.02, num_steps=6, top_k=K)


@pytest.mark.parametrize("settings", [ART, STRICT])
def test_guarantees(problem, attack, settings):
    net, images, labels = problem.net, problem.images, problem.labels
    result = attack(settings)
    assert not result.failed.any()
    assert np.abs(result.adv_images - images).max() <= EPS + 1e-7
    assert result.adv_images.min() >= 0 and result.adv_images.max() <= 1
    np.testing.assert_array_equal(net.logits(result.adv_images).argmax(-1), labels)
    judge, _ = problem.maps_of(net, labels, settings.detach_factor)
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
    np.testing.assert_array_equal(result.adv_images, problem.images)
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
    net, images, labels = problem.net, problem.images, problem.labels
    judge, direction = problem.maps_of(net, labels, settings.detach_factor)
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
    starts = jax.vmap(linf(jnp.float32(EPS)).random_start)(keys, problem.images)
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
    net, images, labels = problem.net, problem.images, problem.labels
    judge, _ = problem.maps_of(net, labels, ART.detach_factor)
    top = np.asarray(jax.lax.top_k(judge(images), K)[1])
    mass = lambda x: np.take_along_axis(np.asarray(judge(x)), top, 1).sum(1)
    noise = jax.random.uniform(jax.random.key(1), images.shape, minval=-EPS, maxval=EPS)
    attacked = attack(ART).adv_images
    assert mass(attacked).mean() < 0.95 * mass(jnp.clip(images + noise, 0, 1)).mean()


@pytest.mark.parametrize("settings", [ART, STRICT])
def test_no_admissible_iterate(problem, attack, settings):
    result = attack(settings, trap=True)
    assert result.failed.all()
    np.testing.assert_array_equal(result.adv_images, problem.images)
    np.testing.assert_array_equal(result.tau, 1)
    np.testing.assert_array_equal(result.kendall["ig_ce"], 1)
    np.testing.assert_array_equal(result.top_k_intersection["ig_ce"], 1)


def test_an_image_does_not_depend_on_its_neighbours(problem, attack):
    chosen = (4, 1)
    whole, part = attack(STRICT), attack(STRICT, chosen=chosen)
    np.testing.assert_allclose(part.adv_images, whole.adv_images[[*chosen]], atol=1e-6)
    np.testing.assert_allclose(part.kendall["ig_ce"], whole.kendall["ig_ce"][[*chosen]], atol=1e-6)


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
