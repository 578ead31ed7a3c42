"""N Attack: its iteration against the formulas in NumPy, and the guarantees of every attack."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jrobust.attacks import NAttack, l2, linf, nattack
from jrobust.attacks.iterative import Problem, run
from jrobust.attacks.nattack import NAttackCarry
from jrobust.errors import InputError
from tests.attacks import toy

EPS = 0.01


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


def toy_problem(rows=..., labels=toy.LABELS):
    index = jnp.arange(16)[rows]
    return Problem.of(toy.images()[rows], jnp.asarray(labels)[rows], linf(EPS), jax.random.key(0), index=index)


def margins(points, labels):
    logits = np.array(toy.logits(jnp.asarray(points)))
    rows = np.arange(len(labels))
    own = logits[rows, labels].copy()
    logits[rows, labels] = -np.inf
    return logits.max(1) - own


@pytest.mark.parametrize("chunk", [None, 3])
def test_iteration(chunk, x64):
    """Five iterations from the same noise: the means, and the points where they are tested; samples in any chunks."""
    n, sigma, rate, steps = 7, 0.2, 0.5, 5
    rng = np.random.default_rng(0)
    images, labels = np.asarray(toy.images()), toy.LABELS
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

    attack = NAttack(num_steps=steps, samples=n, sigma=sigma, learning_rate=rate, test_every=3, chunk=chunk)
    attempt = jax.jit(functools.partial(attack.attempt, toy.logits))
    none = jnp.zeros(16, jnp.int32)
    carry = NAttackCarry(jnp.asarray(start), jnp.asarray(images), jnp.full(16, -1.0), none > 0, none)
    for t in range(steps):
        carry = attempt(toy_problem(), carry, jnp.full(16, t), jnp.asarray(noise[t]))
        if t in (0, 3):
            live = ~np.asarray(carry.success)
            np.testing.assert_allclose(carry.margin[live], tested[t][live], atol=1e-12)
    np.testing.assert_array_equal(carry.success, broken)
    np.testing.assert_allclose(carry.mean[~broken], mean[~broken], atol=1e-8)
    np.testing.assert_allclose(carry.adv_images[~broken], point(mean - step)[~broken], atol=1e-8)
    assert 0 < broken.sum() < 16 and np.abs(mean - start).max() > 0.1


@functools.cache
def program(attack):
    return jax.jit(lambda problem: run(attack, toy.logits, problem, until_broken=True))


def test_guarantees(x64):
    """In the ball and the box, misclassified where it says so; wrong images come back."""
    labels = np.where(np.arange(16) % 5 == 0, (toy.LABELS + 1) % 10, toy.LABELS)
    problem, wrong = toy_problem(labels=labels), labels != toy.LABELS
    attack = NAttack(num_steps=40, samples=20)
    result = program(attack)(problem)
    distance = np.abs(result.adv_images - problem.images).max((1, 2, 3))
    assert (distance <= EPS).all() and ((result.adv_images >= 0) & (result.adv_images <= 1)).all()
    assert result.success[wrong].all() and (distance[wrong] == 0).all() and (result.steps[wrong] == 0).all()
    assert 3 < int(result.success[~wrong].sum()) < (~wrong).sum()  # and it finds something
    np.testing.assert_array_equal(np.argmax(toy.logits(result.adv_images), -1) != labels, result.success)
    assert (distance[~np.asarray(result.success)] == 0).all()
    assert (result.steps[result.success & ~wrong] % 10 == 0).all()


def test_rows_stand_alone(x64):
    attack, rows = NAttack(num_steps=40, samples=20), jnp.array([11, 4, 2, 3])
    whole, part = program(attack)(toy_problem()), program(attack)(toy_problem(rows))
    for a, b in zip(part[:4], whole[:4], strict=True):
        np.testing.assert_allclose(a, b[rows], rtol=0, atol=1e-9)

    problem, step = toy_problem(), jnp.arange(16) % 5
    draw = jax.jit(attack.draw)
    noise = draw(problem, step)
    assert noise.shape == (20, 16, 8, 8, 3) and abs(noise.mean()) < 0.01 and abs(noise.std() - 1) < 0.01
    np.testing.assert_array_equal(noise[:, step == 2], draw(problem, jnp.full(16, 2))[:, step == 2])
    none = jnp.zeros(16, jnp.int32)
    carry = NAttackCarry(jnp.zeros_like(problem.images), problem.images, jnp.full(16, -1.0), none > 0, none)
    attempt = functools.partial(NAttack(samples=20, test_every=2).attempt, toy.logits)
    found = jax.jit(attempt)(problem, carry, step, noise)
    tested = np.asarray(step % 2 == 0)
    assert (found.margin[~tested] == -1).all() and (found.margin[tested] != -1).all()
    np.testing.assert_array_equal(found.steps, np.where(tested, step, 0))


def test_pixels_at_the_edge_and_useless_logits():
    """Black and white pixels are no infinities; constant logits, and NaN for some samples, leave no NaN behind."""
    images = jnp.concatenate([jnp.zeros((1, 3, 3, 1)), jnp.ones((1, 3, 3, 1))])
    logits = lambda x: jnp.stack([jnp.zeros(x.shape[0]), jnp.where(x[:, 0, 0, 0] > 0.995, jnp.nan, -1.0)], -1)
    attack = NAttack(num_steps=3, samples=4)
    problem = Problem.of(images, jnp.zeros(2, int), linf(0.02), jax.random.key(0))
    carry = NAttackCarry(jnp.zeros_like(images), images, -jnp.ones(2), jnp.zeros(2, bool), jnp.zeros(2, jnp.int32))
    carry = jax.jit(functools.partial(attack.advance, logits))(problem, carry, jnp.array([1, 1]))
    assert np.isfinite(carry.mean).all() and (carry.mean[0] == 0).all()


def test_public_function():
    images, labels = jnp.full((2, 3, 3, 1), 0.5), jnp.zeros(2, int)
    logits = lambda x: jnp.stack([jnp.full(x.shape[0], 0.505), x.mean((1, 2, 3))], -1)
    attack = jax.jit(
        lambda x, key: nattack(
            logits, x, labels, key, threat=linf(0.03), num_steps=60, samples=10, sigma=0.02, learning_rate=0.05
        )
    )
    result = attack(images, jax.random.key(0))
    assert result.success.all() and (result.loss > 0).all() and (result.steps > 0).all()
    assert (jnp.abs(result.adv_images - images) <= 0.03).all()
    with pytest.raises(InputError, match="defined for Linf"):
        nattack(logits, images, labels, jax.random.key(0), threat=l2(0.5))
