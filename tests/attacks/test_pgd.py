"""The kernel: golden values of the reference packages, closed forms, and the guarantees of its docstring."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jrobust.attacks import cross_entropy, fgsm, l2, linf, margin, pgd, untargeted
from tests.attacks import toy

FGSM = [1.931692, 1.686071, 1.973747, 2.352064, 1.692221, 1.674349, 1.826488, 1.842371]
PGD_10 = [1.932649, 1.686080, 1.973794, 2.352369, 1.693135, 1.674760, 1.826659, 1.843682]
PGD_20 = [1.932635, 1.686076, 1.973784, 2.352349, 1.693059, 1.674754, 1.826640, 1.843659]
PGD_L2 = [1.849614, 1.593776, 1.877334, 2.227971, 1.631875, 1.614475, 1.807509, 1.767772]


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


def jitted(attack, objective, **arguments):
    """The attack as one program of its arrays: eagerly each of its operations would compile on its own."""
    return jax.jit(functools.partial(attack, objective, **arguments))


def run_toy(attack):
    images, labels = toy.images(), jnp.asarray(toy.LABELS)
    result = jax.jit(lambda x: attack(untargeted(toy.logits, labels), x))(images)
    loss = jax.jit(lambda x: cross_entropy(toy.logits(x), labels))(result.adv_images)
    np.testing.assert_allclose(result.loss, loss, rtol=1e-12)
    return images, result, np.asarray(loss)


def test_toy_is_the_published_one(x64):
    images = toy.images()
    assert abs(images.sum() - 1537.6588987103) < 1e-9
    logits = jax.jit(toy.logits)(images)
    assert abs(logits.sum() - 37.4069954972) < 1e-9
    np.testing.assert_allclose(-margin(logits, jnp.asarray(toy.LABELS))[:3], [0.430601, 0.313839, 0.012102], atol=1e-6)


def test_fgsm_golden(x64):
    _, result, loss = run_toy(lambda f, x: fgsm(f, x, threat=linf("0.01")))
    np.testing.assert_allclose(loss[:8], FGSM, atol=6e-7)
    assert abs(loss.sum() - 26.5049603750) < 1e-9
    assert int((~result.success).sum()) == 8


@pytest.mark.parametrize(
    ("step_size", "num_steps", "expected", "total"),
    [
        (0.001, 20, PGD_20, 26.5134304757),
        (0.001, 100, None, 26.5139971232),
        (0.0025, 10, PGD_10, None),
    ],
)
def test_pgd_linf_golden(x64, step_size, num_steps, expected, total):
    arguments = {"step_size": step_size, "num_steps": num_steps, "random_start": False, "unroll": False}
    images, result, loss = run_toy(lambda f, x: pgd(f, x, threat=linf("0.01"), **arguments))
    if expected:
        np.testing.assert_allclose(loss[:8], expected, atol=6e-7)
    if total:
        assert abs(loss.sum() - total) < 1e-9
    if num_steps == 10:
        assert abs(jnp.abs(result.adv_images - images).sum() - 30.6425) < 1e-8
    assert int((~result.success).sum()) == 7


def test_pgd_l2_golden(x64):
    images, result, loss = run_toy(
        lambda f, x: pgd(f, x, threat=l2("0.06"), step_size=0.015, num_steps=10, random_start=False, unroll=False)
    )
    np.testing.assert_allclose(loss[:8], PGD_L2, atol=6e-7)
    assert abs(jnp.abs(result.adv_images - images).sum() - 6.95131540) < 1e-8
    assert int((~result.success).sum()) == 9


# A linear two-class model: the best perturbation is known, eps * sign(w) in Linf and eps * w / ||w|| in L2.
WEIGHTS = jnp.array([1.0, -2.0, 0.5, 0.0])


def linear(x):
    score = x.reshape(x.shape[0], -1) @ WEIGHTS
    return jnp.stack([jnp.zeros_like(score), score], -1)


@pytest.mark.parametrize("threat", [linf("0.1"), l2("0.1")], ids=["linf", "l2"])
def test_one_step_solves_a_linear_model(threat):
    images = jnp.full((3, 2, 2, 1), 0.5)
    result = jitted(fgsm, untargeted(linear, jnp.zeros(3, int)), threat=threat)(images)
    direction = jnp.sign(WEIGHTS) if threat.norm == "linf" else WEIGHTS / jnp.linalg.norm(WEIGHTS)
    np.testing.assert_allclose(
        (result.adv_images - images).reshape(3, -1), jnp.tile(0.1 * direction, (3, 1)), atol=1e-6
    )


def norms(result, images, norm):
    delta = np.asarray(result.adv_images, np.float32) - np.asarray(images, np.float32)
    delta = delta.reshape(len(delta), -1)
    return np.abs(delta).max(1) if norm == "linf" else np.linalg.norm(delta.astype(np.float64), axis=1)


def nan_gradient(x):
    return jnp.sqrt(-1 - x).sum((1, 2, 3))


def zero_gradient(x):
    return jnp.zeros(x.shape[0])


def rough(x):
    return jnp.sin(40 * x.astype(jnp.float32)).sum((1, 2, 3))


def mixed(x):
    return jnp.where(x > 0.5, jnp.log(x - 0.7), x).sum((1, 2, 3))


@functools.partial(jax.jit, static_argnames=("norm", "objective"))
def attacked(norm, objective, images, key, eps):
    return pgd(objective, images, key, threat=norm(eps), step_size=0.3 * eps, num_steps=3, unroll=False)


@pytest.mark.parametrize("objective", [nan_gradient, zero_gradient, rough, mixed])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("norm", [linf, l2])
@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 10_000), eps=st.sampled_from(["0", "2/255", "8/255", "0.5", "3"]))
def test_guarantees(objective, dtype, norm, seed, eps):
    values = np.random.default_rng(seed).uniform(size=(4, 3, 3, 2)).round(seed % 3)
    images, threat = jnp.asarray(values, dtype), norm(eps)
    result = attacked(norm, objective, images, jax.random.key(seed), threat.eps)
    assert result.adv_images.dtype == dtype
    adv = np.asarray(result.adv_images, np.float32)
    assert np.isfinite(adv).all() and adv.min() >= 0 and adv.max() <= 1
    slack = 1 if norm is linf else 1 + 1e-6  # Linf holds to the last bit, L2 to the rounding of the norm
    assert (norms(result, images, threat.norm) <= np.float32(threat.eps) * slack).all()


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("threat", [linf("8/255"), l2("0.5")], ids=["linf", "l2"])
def test_no_steps_give_the_images_back(threat, dtype):
    images = jax.random.uniform(jax.random.key(0), (5, 4, 4, 3)).astype(dtype)
    result = jitted(pgd, rough, threat=threat, step_size=0.1, num_steps=0, random_start=False)(images)
    np.testing.assert_array_equal(result.adv_images, images)
    empty = type(threat)(threat.norm, 0.0)
    again = jitted(pgd, rough, threat=empty, step_size=0.1, num_steps=3, random_start=False, unroll=False)(images)
    np.testing.assert_array_equal(again.adv_images, images)


def test_random_start_fills_the_ball():
    images = jnp.full((64, 4, 4, 3), 0.5)
    for threat in (linf("8/255"), l2("0.5")):
        result = jitted(pgd, zero_gradient, threat=threat, step_size=0.1, num_steps=1)(images, jax.random.key(1))
        size = norms(result, images, threat.norm) / threat.eps
        assert size.max() <= 1 and size.max() > 0.9
        assert (size.min() > 0.9) == (threat.norm == "linf")  # L2 radii are U(0, 1)
    assert abs(float((result.adv_images - images).mean())) < 0.01


def test_an_example_does_not_see_its_neighbours():
    images = jax.random.uniform(jax.random.key(0), (6, 4, 4, 3))
    attack = jitted(pgd, rough, threat=linf("0.1"), step_size=0.03, num_steps=3, restarts=2, unroll=False)
    whole = attack(images, jax.random.key(3), index=jnp.arange(6))
    part = attack(images[jnp.array([4, 2])], jax.random.key(3), index=jnp.array([4, 2]))
    np.testing.assert_array_equal(whole.adv_images[jnp.array([4, 2])], part.adv_images)


def test_vmapped_restarts_equal_a_loop_and_keep_the_best():
    images = jax.random.uniform(jax.random.key(0), (8, 4, 4, 3))
    arguments = {"threat": linf("0.2"), "step_size": 0.05, "num_steps": 4, "unroll": False}
    key = jax.random.key(5)
    together = jitted(pgd, rough, restarts=3, **arguments)(images, key)
    once = jitted(pgd, rough, **arguments)
    alone = [once(images, jax.random.fold_in(key, r)) for r in range(3)]
    losses = np.stack([run.loss for run in alone])
    assert len(set(losses.argmax(0))) > 1
    np.testing.assert_allclose(together.loss, losses.max(0), rtol=1e-6)


def test_restarts_prefer_success_to_loss():
    def objective(x):  # the highest loss is no success
        value = x.sum((1, 2, 3))
        return value, value < 2.0

    images = jnp.full((16, 2, 2, 1), 0.5)
    attack = jitted(pgd, objective, threat=linf("0.3"), step_size=0.0, num_steps=1, restarts=8)
    result = attack(images, jax.random.key(0))
    assert bool(result.success.all()) and float(result.loss.max()) < 2.0


def overshooting(x):
    """Rises to x = 0.6 and falls after: steps of 0.08 from 0.5 pass the top."""
    value = -((x - 0.6) ** 2).sum((1, 2, 3))
    return value, jnp.abs(x - 0.58).max((1, 2, 3)) < 1e-6


@pytest.mark.parametrize(
    ("select", "steps", "value"),
    [("last", 3, 0.58), ("best_loss", 1, 0.58), ("any_adv", 3, 0.58), (lambda x: x[:, 0, 0, 0], 2, 0.66)],
)
def test_selection(select, steps, value):
    images = jnp.full((2, 1, 1, 1), 0.5)
    attack = jitted(
        pgd,
        overshooting,
        threat=linf("1"),
        step_size=0.08,
        num_steps=3,
        random_start=False,
        select=select,
        unroll=False,
    )
    result = attack(images)
    np.testing.assert_allclose(result.adv_images, value, atol=1e-6)
    assert result.steps.tolist() == [steps, steps]


def test_inadmissible_iterates_give_the_image_back():
    images = jnp.full((2, 1, 1, 1), 0.5)
    never = lambda x: jnp.full(x.shape[0], -jnp.inf)
    arguments = {"threat": linf("1"), "step_size": 0.1, "num_steps": 2, "random_start": False, "select": never}
    result = jitted(pgd, overshooting, **arguments)(images)
    np.testing.assert_array_equal(result.adv_images, images)
    assert not result.success.any()


def test_mask_and_start():
    images = jnp.full((2, 2, 2, 1), 0.5)
    mask = jnp.zeros((2, 2, 1)).at[0, 1].set(1)
    moved = jitted(pgd, rough, threat=linf("0.1"), step_size=0.1, num_steps=2, mask=mask)(images, jax.random.key(0))
    changed = moved.adv_images != images
    assert bool(changed[:, 0, 1].all()) and int(changed.sum()) == 2
    begun = jitted(pgd, rough, threat=linf("0.1"), step_size=0.0, num_steps=1)(images, start=images + 0.5)
    np.testing.assert_allclose(begun.adv_images, 0.6, rtol=1e-6)


def test_state_is_threaded_and_result_carries_no_gradient():
    def objective(x, count):
        return (count + 1) * x.sum((1, 2, 3)), count + 1

    def attack(x):
        return pgd(
            objective, x, threat=linf("0.1"), step_size=0.05, num_steps=3, random_start=False, state=jnp.int32(0)
        )

    images = jnp.full((2, 2, 2, 1), 0.5)
    assert int(jax.jit(attack)(images).state) == 3
    gradient = jax.jit(jax.grad(lambda x: attack(x).adv_images.sum()))(images)
    np.testing.assert_array_equal(gradient, 0)


def test_radii_are_a_vmap_axis_without_recompilation():
    images = jnp.full((2, 2, 2, 1), 0.5)
    traces = []

    @jax.jit
    def sweep(eps):
        traces.append(1)
        return jax.vmap(lambda e: fgsm(lambda x: x.sum((1, 2, 3)), images, threat=linf(e)).adv_images.max())(eps)

    np.testing.assert_allclose(sweep(jnp.array([0.1, 0.2])), [0.6, 0.7], rtol=1e-6)
    np.testing.assert_allclose(sweep(jnp.array([0.3, 0.4])), [0.8, 0.9], rtol=1e-6)
    assert len(traces) == 1


def test_meaningless_arguments_are_refused():
    images = jnp.zeros((1, 2, 2, 1))
    arguments = {"threat": linf("0.1"), "step_size": 0.1, "num_steps": 1}
    with pytest.raises(ValueError, match="needs a key"):
        pgd(rough, images, **arguments)
    with pytest.raises(ValueError, match="restarts"):
        pgd(rough, images, jax.random.key(0), restarts=2, random_start=False, **arguments)
    with pytest.raises(ValueError, match="unknown select"):
        pgd(rough, images, random_start=False, select="first", **arguments)


def test_no_weight_gradient_in_the_attack():
    """Ten steps and the final judgement of a dense net cost 10 x (forward + input gradient) + 1 forward, no more."""
    weights = [jnp.zeros((48, 256)), jnp.zeros((256, 256)), jnp.zeros((256, 10))]

    def logits(weights, x):
        h = x.reshape(x.shape[0], -1)
        for w in weights[:-1]:
            h = jax.nn.relu(h @ w)
        return h @ weights[-1]

    def attack(weights, x, y):
        objective = untargeted(lambda v: logits(weights, v), y)
        return pgd(objective, x, threat=linf("0.1"), step_size=0.01, num_steps=10, random_start=False, unroll=True)

    batch = 64
    compiled = jax.jit(attack).lower(weights, jnp.zeros((batch, 4, 4, 3)), jnp.zeros(batch, int)).compile()
    forward = 2 * batch * sum(w.size for w in weights)
    assert compiled.cost_analysis()["flops"] == pytest.approx(21 * forward, rel=0.05)
