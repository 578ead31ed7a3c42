"""Transfer attacks: golden values of torchattacks, closed forms, and the hooks of the kernel they hang on."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jrobust.attacks import Diversity, cross_entropy, di_fgsm, l2, linf, mi_fgsm, ni_fgsm, pgd, ti_fgsm, untargeted
from jrobust.attacks.momentum import momentum, smooth
from jrobust.errors import InputError
from tests.attacks import toy

LABELS = jnp.asarray(toy.LABELS)
SETTINGS = {"threat": linf("0.01"), "step_size": 0.0025, "num_steps": 10, "unroll": False}


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize(
    ("attack", "correct", "total", "values"),
    [
        (mi_fgsm, 7, 30.5625, [1.932615, 1.686071, 1.973770, 2.352218, 1.692894, 1.674732, 1.826556, 1.843593]),
        (ni_fgsm, 8, None, [1.930793, 1.683268, 1.970467, 2.351502, 1.690754, 1.671214, 1.824504, 1.842286]),
        # Without momentum, the plain attack.
        (functools.partial(mi_fgsm, decay=0.0), 7, 30.6425, [1.932649, 1.686080, 1.973794, 2.352369]),
    ],
    ids=["mi", "ni", "plain"],
)
def test_golden(x64, attack, correct, total, values):
    images = toy.images()
    result = jax.jit(lambda x: attack(toy.logits, x, LABELS, **SETTINGS))(images)
    loss = jax.jit(lambda x: cross_entropy(toy.logits(x), LABELS))(result.adv_images)
    np.testing.assert_allclose(loss[: len(values)], values, rtol=0, atol=6e-7)
    np.testing.assert_allclose(result.loss, loss, rtol=1e-12)
    assert int((~result.success).sum()) == correct
    if total:
        assert abs(float(jnp.abs(result.adv_images - images).sum()) - total) < 1e-8


def test_defaults_are_those_of_torchattacks():
    images = jnp.full((1, 2, 2, 1), 0.5)
    rising = lambda x: jnp.stack([-x.sum((1, 2, 3)), x.sum((1, 2, 3))], 1)
    result = jax.jit(lambda x: mi_fgsm(rising, x, jnp.zeros(1, int), unroll=False))(images)
    np.testing.assert_allclose(result.adv_images, 0.5 + 8 / 255, rtol=1e-6)
    few = jax.jit(lambda x: mi_fgsm(rising, x, jnp.zeros(1, int), num_steps=3, unroll=False))(images)
    np.testing.assert_allclose(few.adv_images, 0.5 + 6 / 255, rtol=1e-6)


def test_kernel_golden():
    point = jnp.zeros((1, 31, 31, 1)).at[0, 15, 15, 0].set(1)
    weights = smooth(point)[0, 8:23, 8:23, 0]
    np.testing.assert_allclose(weights[7, 7], 0.0293028, rtol=1e-5)
    np.testing.assert_allclose([weights[0, 7], weights[7, 14]], 3.25525e-4, rtol=1e-5)
    np.testing.assert_allclose([weights[0, 0], weights[14, 0]], 3.61626e-6, rtol=1e-5)
    np.testing.assert_allclose(weights.sum(), 1, rtol=1e-6)
    np.testing.assert_allclose(smooth(point).sum(), 1, rtol=1e-6)  # nothing lies beyond the 15 x 15 pixels


@pytest.mark.parametrize("shape", [(2, 20, 17, 3), (1, 6, 9, 2)])  # wider than the kernel, and not
def test_smoothing_is_a_convolution_that_ends_in_zeros(shape):
    gradient = jax.random.normal(jax.random.key(0), shape)
    line = np.exp(-(np.linspace(-3, 3, 15) ** 2) / 2)
    kernel = jnp.asarray(np.outer(line, line) / line.sum() ** 2, jnp.float32)[:, :, None, None]
    expected = jax.lax.conv_general_dilated(
        gradient,
        jnp.tile(kernel, (1, 1, 1, shape[-1])),
        (1, 1),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=shape[-1],
    )
    np.testing.assert_allclose(smooth(gradient), expected, atol=1e-6)


def written_out(logits_fn, images, labels, *, decay, lookahead, kernel, eps, step_size, num_steps):
    gradient = jax.jit(jax.grad(lambda x: cross_entropy(logits_fn(x), labels).sum()))
    x, memory = images, jnp.zeros_like(images)
    for _ in range(num_steps):
        g = gradient(x + decay * step_size * memory if lookahead else x)
        g = smooth(g, kernel) if kernel else g
        memory = decay * memory + g / jnp.abs(g).mean((1, 2, 3), keepdims=True)
        x = jnp.clip(jnp.clip(x + step_size * jnp.sign(memory), images - eps, images + eps), 0, 1)
    return x


@pytest.mark.parametrize(
    ("decay", "lookahead", "kernel"), [(1.0, False, None), (0.7, True, None), (0.0, False, 5), (1.0, True, 15)]
)
def test_the_algorithm_written_out(x64, decay, lookahead, kernel):
    images, parts = toy.images(), {"decay": decay, "lookahead": lookahead, "kernel": kernel}
    result = jax.jit(lambda x: mi_fgsm(toy.logits, x, LABELS, **parts, **SETTINGS))(images)
    expected = written_out(toy.logits, images, LABELS, **parts, eps=0.01, step_size=0.0025, num_steps=10)
    np.testing.assert_allclose(result.adv_images, expected, rtol=0, atol=1e-12)
    if lookahead and not kernel:
        same = jax.jit(lambda x: ni_fgsm(toy.logits, x, LABELS, decay=decay, **SETTINGS))(images)
        np.testing.assert_array_equal(same.adv_images, result.adv_images)


WEIGHTS = jax.random.normal(jax.random.key(7), (12 * 12, 5))


def network(x):
    return jnp.tanh(3 * x.astype(jnp.float32).reshape(x.shape[0], -1) - 1) @ WEIGHTS


def problem(count=5):
    images = jax.random.uniform(jax.random.key(0), (count, 12, 12, 1))
    return images, network(images).argmax(1)


TI_DIM = functools.partial(ti_fgsm, decay=1.0, diversity=Diversity(probability=0.7))


@pytest.mark.parametrize("attack", [TI_DIM, functools.partial(mi_fgsm, random_start=True)])
def test_an_example_does_not_see_its_neighbours(attack):
    images, labels = problem()
    chosen = jnp.array([4, 2])

    @jax.jit
    def run(x, y, index):
        return attack(network, x, y, jax.random.key(1), num_steps=4, threat=l2(1.0), index=index, unroll=False)

    whole, part = run(images, labels, jnp.arange(5)), run(images[chosen], labels[chosen], chosen)
    np.testing.assert_allclose(part.adv_images, whole.adv_images[chosen], atol=1e-5)
    other = run(images[chosen], labels[chosen], jnp.array([2, 4]))
    assert float(jnp.abs(other.adv_images - part.adv_images).max()) > 1e-3  # draws belong to the image's number


def test_diverse_inputs_are_for_the_gradient_only():
    """Loss and success are those of the image that is returned."""
    images, labels = problem()
    result = jax.jit(lambda k: di_fgsm(network, images, labels, k, num_steps=6, unroll=False))(jax.random.key(0))
    logits = network(result.adv_images)
    np.testing.assert_allclose(result.loss, cross_entropy(logits, labels), rtol=1e-5)
    np.testing.assert_array_equal(result.success, logits.argmax(1) != labels)
    assert result.state is None and (result.steps == 6).all()
    assert float(result.loss.mean()) > float(cross_entropy(network(images), labels).mean()) + 0.5


def test_diverse_inputs_are_drawn_anew_in_every_step():
    images = jnp.full((1, 12, 12, 1), 0.5)
    # The score looks at one column, which the transform puts somewhere else every time: its gradient walks.
    score = lambda x: jnp.stack([jnp.zeros(x.shape[0]), (x - 0.5)[:, :, 3, :].sum((1, 2))], 1)
    settings = {"diversity": Diversity(probability=1.0), "unroll": False}

    @functools.partial(jax.jit, static_argnums=0)
    def attack(n):
        return di_fgsm(score, images, jnp.zeros(1, int), jax.random.key(0), num_steps=n, **settings).adv_images

    columns = [np.flatnonzero((attack(n) != images)[0].any((0, 2))) for n in (1, 8)]
    assert 0 < len(columns[0]) < len(columns[1])


def nan_gradient(x):
    return jnp.stack([jnp.sqrt(-1 - x).sum((1, 2, 3)), x.sum((1, 2, 3))], 1)


def zero_gradient(x):
    return jnp.zeros((x.shape[0], 2))


def partly_nan(x):
    # The values are finite; the slope of the root that is not taken is NaN.
    return jnp.stack([jnp.where(x > 0.45, jnp.sqrt(x - 0.45), x).mean((1, 2, 3)), jnp.zeros(len(x), x.dtype)], 1)


@functools.partial(jax.jit, static_argnames=("attack", "logits_fn", "norm"))
def attacked(attack, logits_fn, norm, images, eps):
    labels, key = jnp.zeros(len(images), int), jax.random.key(0)
    return attack(
        logits_fn, images, labels, key, threat=norm(eps), step_size=0.3 * eps, num_steps=3, unroll=False
    ).adv_images


@pytest.mark.parametrize("attack", [mi_fgsm, ni_fgsm, TI_DIM])
@pytest.mark.parametrize(
    ("logits_fn", "norm", "dtype"),
    [(nan_gradient, linf, "float32"), (zero_gradient, l2, "float32"), (partly_nan, l2, "bfloat16")],
)
def test_guarantees(attack, logits_fn, norm, dtype):
    images = problem()[0].round(1).astype(dtype)
    for eps in (0.0, 0.1, 3.0):
        adv = attacked(attack, logits_fn, norm, images, eps)
        assert adv.dtype == dtype
        adv, clean = np.asarray(adv, np.float64), np.asarray(images, np.float64)
        assert np.isfinite(adv).all() and adv.min() >= 0 and adv.max() <= 1
        delta = (adv - clean).reshape(5, -1)
        size = np.abs(delta).max(1) if norm is linf else np.linalg.norm(delta, axis=1)
        assert (size <= eps * (1 + 1e-6)).all()
        if logits_fn is zero_gradient or eps == 0:
            np.testing.assert_array_equal(adv, clean)
        elif logits_fn is partly_nan and eps == 3 and attack is not TI_DIM:  # resizing mixes the coordinates
            assert (size > 0.1).all()  # coordinates without a gradient do not hold the others back


def test_refusals():
    images, labels = problem()
    with pytest.raises(ValueError, match="need a key"):
        di_fgsm(network, images, labels)
    with pytest.raises(ValueError, match="need a key"):
        mi_fgsm(network, images, labels, random_start=True)
    with pytest.raises(InputError, match="kernel=4"):
        ti_fgsm(network, images, labels, kernel=4)
    with pytest.raises(ValueError, match="pass transform"):
        pgd(network, images, threat=linf(0.1), step_size=0.1, num_steps=1, random_start=False, lookahead=lambda x, s: x)


# The hooks of the kernel, with transformations of Optax.


def bowl(x):
    value = -((x - 0.62) ** 2).sum((1, 2, 3))
    return value, value > -1e-3


def test_any_transformation_of_gradients():
    images = jnp.full((2, 1, 1, 1), 0.5)
    arguments = {"threat": l2("1"), "step_size": 0.02, "num_steps": 9, "random_start": False, "unroll": False}
    plain = jax.jit(lambda x: pgd(bowl, x, **arguments))(images)
    np.testing.assert_allclose(plain.adv_images, 0.62 + 0.02 * (9 % 2 == 1) * -1 + 0.02, atol=0.021)
    carried = jax.jit(lambda x: pgd(bowl, x, transform=optax.trace(0.9), **arguments))(images)
    assert float(carried.adv_images[0, 0, 0, 0]) == pytest.approx(0.68, abs=1e-5)  # momentum goes past the top
    still = jax.jit(lambda x: pgd(bowl, x, transform=optax.set_to_zero(), **arguments))(images)
    np.testing.assert_array_equal(still.adv_images, images)


def test_momentum_outlives_a_gradient_of_zero():
    """From one step to the next: 0, then up, then 0 again, where what is remembered goes on."""
    images = jnp.full((2, 2, 2, 1), 0.5)
    objective = lambda x, t: ((t == 1) * x.sum((1, 2, 3)), t + 1)
    settings = {"threat": linf("1"), "step_size": 0.1, "random_start": False, "unroll": False}

    @functools.partial(jax.jit, static_argnums=0)
    def moved(n, decay):
        result = pgd(objective, images, num_steps=n, state=jnp.int32(0), transform=momentum(decay), **settings)
        return result.adv_images - images

    for n, decay, expected in ((1, 1.0, 0.0), (3, 1.0, 0.2), (3, 0.0, 0.1)):
        np.testing.assert_allclose(moved(n, decay), expected, atol=1e-6)


def test_restarts_have_transformations_of_their_own():
    images = jax.random.uniform(jax.random.key(0), (4, 3, 3, 1))
    objective = lambda x: jnp.sin(30 * x).sum((1, 2, 3))
    arguments = {"threat": linf("0.2"), "step_size": 0.05, "num_steps": 4, "unroll": False}
    transform = optax.trace(0.9)
    key = jax.random.key(5)
    together = jax.jit(lambda k: pgd(objective, images, k, restarts=3, transform=transform, **arguments))(key)
    once = jax.jit(lambda k: pgd(objective, images, k, transform=transform, **arguments))
    losses = np.stack([once(jax.random.fold_in(key, r)).loss for r in range(3)])
    np.testing.assert_allclose(together.loss, losses.max(0), rtol=1e-5)


@pytest.mark.parametrize("select", ["best_loss", "any_adv"])
def test_iterates_are_judged_where_they_are_and_not_ahead(select):
    images = jnp.full((2, 1, 1, 1), 0.5)
    attack = lambda x: pgd(
        bowl,
        x,
        threat=linf("1"),
        step_size=0.04,
        num_steps=5,
        random_start=False,
        select=select,
        transform=optax.trace(0.9),
        lookahead=lambda x, state: x + 0.12,  # there the top is met at the start
        unroll=False,
    )
    result = jax.jit(attack)(images)
    loss, success = bowl(result.adv_images)
    np.testing.assert_allclose(result.loss, loss, atol=1e-7)
    np.testing.assert_array_equal(result.success, success)
    assert (result.steps == (0 if select == "best_loss" else 5)).all()


def test_the_objective_of_the_classifier_is_the_plain_one(x64):
    """A transformation that changes nothing gives the kernel's own iterates."""
    images, objective = toy.images(), untargeted(toy.logits, LABELS)
    arguments = {"threat": linf("0.01"), "step_size": 0.0025, "num_steps": 5, "random_start": False, "unroll": False}
    plain = jax.jit(lambda x: pgd(objective, x, **arguments))(images)
    same = jax.jit(lambda x: pgd(objective, x, transform=optax.identity(), **arguments))(images)
    np.testing.assert_allclose(same.adv_images, plain.adv_images, rtol=0, atol=1e-15)
