"""N Attack: its iteration against the formulas in NumPy, and the guarantees of every attack."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jrobust.attacks import NAttack, l2, linf, nattack
from jrobust.attacks.iterative import Problem
from jrobust.attacks.nattack import NAttackCarry
from jrobust.errors import InputError
from tests.attacks import toy

EPS = 0.01
with jax.enable_x64(True):
    IMAGES = np.asarray(toy.images())


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


def toy_problem():
    return Problem.of(IMAGES, toy.LABELS, linf(EPS), jax.random.key(0))


def toy_logits(x):
    """The toy on the host."""
    flat = x.transpose(0, 3, 1, 2).reshape(len(x), -1)
    return np.tanh((flat - 0.5) @ toy.W1.T + toy.B1) @ toy.W2.T + toy.B2


def margins(x, labels):
    logits = toy_logits(x)
    true = np.arange(10) == labels[:, None]
    return np.where(true, -np.inf, logits).max(1) - logits[true]


def compiled(function):
    """Compiled, with results on the host, where comparing them compiles nothing."""
    function = jax.jit(function)
    return lambda *arguments: jax.tree.map(np.asarray, function(*arguments))


def start_at(images, mean):
    none = np.zeros(len(images), np.int32)
    return NAttackCarry(mean, images, np.full(len(images), -1.0), none > 0, none)


def test_iteration(x64):
    """Five iterations from the same noise: the means, and the points where they are tested; samples in any chunks."""
    n, sigma, rate, steps = 7, 0.2, 0.5, 5
    rng = np.random.default_rng(0)
    images, labels = IMAGES, toy.LABELS
    noise = rng.normal(size=(steps, n, *images.shape))
    start = 0.01 * rng.normal(size=images.shape)

    def point(moves):
        moved = np.tanh(np.arctanh((1 - 1e-6) * (2 * images - 1)) + moves) / 2 + 0.5
        return np.clip(np.clip(moved, images - EPS, images + EPS), 0, 1)

    mean, tested = start.copy(), {}
    broken = np.zeros(16, bool)
    for t in range(steps):
        found = margins(point(mean), labels)
        if t in (0, 3, 4):  # every third, and the last
            tested[t] = found
            broken |= found > 0
        reward = -0.5 * np.clip([-margins(point(mean + sigma * e), labels) for e in noise[t]], 0, 1000)
        advantage = (reward - reward.mean(0)) / (reward.std(0) + 1e-7)
        step = rate / (n * sigma) * np.einsum("jb,jbhwc->bhwc", advantage, noise[t])
        mean = np.where(broken[:, None, None, None], mean, mean + step)

    attack = NAttack(num_steps=steps, samples=n, sigma=sigma, learning_rate=rate, test_every=3, chunk=3)
    attempt = compiled(functools.partial(attack.attempt, toy.logits))
    carry = start_at(images, start)
    for t in range(steps):
        carry = attempt(toy_problem(), carry, np.full(16, t), noise[t])
        if t in (0, 3):
            live = ~carry.success
            np.testing.assert_allclose(carry.margin[live], tested[t][live], atol=1e-12)
    np.testing.assert_array_equal(carry.success, broken)
    np.testing.assert_allclose(carry.mean[~broken], mean[~broken], atol=1e-8)
    np.testing.assert_allclose(carry.adv_images[~broken], point(mean - step)[~broken], atol=1e-8)
    assert 0 < broken.sum() < 16 and np.abs(mean - start).max() > 0.1


def test_guarantees(x64):
    """In the ball and the box, misclassified where it says so; wrong images come back."""
    labels = np.where(np.arange(16) % 5 == 0, (toy.LABELS + 1) % 10, toy.LABELS)
    wrong = labels != toy.LABELS
    attack = functools.partial(nattack, toy.logits, num_steps=40, samples=20)
    result = compiled(functools.partial(attack, threat=linf(EPS)))(IMAGES, labels, jax.random.key(0))
    distance = np.abs(result.adv_images - IMAGES).max((1, 2, 3))
    assert (distance <= EPS).all() and ((result.adv_images >= 0) & (result.adv_images <= 1)).all()
    assert result.success[wrong].all() and (distance[wrong] == 0).all() and (result.steps[wrong] == 0).all()
    assert 3 < result.success[~wrong].sum() < (~wrong).sum()  # and it finds something
    np.testing.assert_array_equal(toy_logits(result.adv_images).argmax(1) != labels, result.success)
    assert (distance[~result.success] == 0).all()
    assert (result.steps[result.success & ~wrong] % 10 == 0).all()
    np.testing.assert_allclose(
        result.loss[result.success], margins(result.adv_images, labels)[result.success], rtol=0, atol=1e-12
    )
    with pytest.raises(InputError, match="defined for Linf"):
        attack(IMAGES, labels, jax.random.key(0), threat=l2(0.5))


def test_rows_stand_alone(x64):
    """Noise and tests by each row's own key and iteration."""
    attack, problem, step = NAttack(samples=20, test_every=2), toy_problem(), np.arange(16) % 5

    def advance(problem, step):
        noise = attack.draw(problem, step)
        carry = start_at(problem.images, jnp.zeros_like(problem.images))
        return noise, attack.advance(toy.logits, problem, carry, step)

    advance = compiled(advance)
    (noise, mixed), (same, alone) = advance(problem, step), advance(problem, np.full(16, 2))
    assert noise.shape == (20, 16, 8, 8, 3) and abs(noise.mean()) < 0.01 and abs(noise.std() - 1) < 0.01
    assert len(np.unique(same[:, :, 0, 0, 0])) == 320
    np.testing.assert_array_equal(noise[:, step == 2], same[:, step == 2])
    for a, b in zip(mixed, alone, strict=True):
        np.testing.assert_array_equal(a[step == 2], b[step == 2])
    tested = step % 2 == 0
    assert (mixed.margin[~tested] == -1).all() and (mixed.margin[tested] != -1).all()
    np.testing.assert_array_equal(mixed.steps, np.where(tested, step, 0))


def test_pixels_at_the_edge_and_useless_logits():
    """Black and white pixels are no infinities; constant logits, and NaN for some samples, leave no NaN behind."""
    images = np.concatenate([np.zeros((1, 3, 3, 1)), np.ones((1, 3, 3, 1))]).astype(np.float32)
    logits = lambda x: jnp.stack([jnp.zeros(x.shape[0]), jnp.where(x[:, 0, 0, 0] > 0.995, jnp.nan, -1.0)], -1)
    attack = NAttack(num_steps=3, samples=4)
    problem = Problem.of(images, np.zeros(2, int), linf(0.02), jax.random.key(0))
    carry = start_at(images, np.zeros_like(images))
    noise = np.random.default_rng(0).normal(size=(4, *images.shape)).astype(np.float32)
    carry = compiled(functools.partial(attack.attempt, logits))(problem, carry, np.array([1, 1]), noise)
    assert np.isfinite(carry.mean).all() and (carry.mean[0] == 0).all()
