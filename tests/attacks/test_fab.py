"""FAB: golden values of the official code, what counts as a success, and rows that do not look at each other."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jrobust.attacks import FAB, fab, l2, linf
from jrobust.attacks.fab import FabCarry
from jrobust.attacks.iterative import Problem, run
from jrobust.attacks.threat import Threat
from jrobust.errors import InputError
from tests.attacks import toy

RADII = {"linf": 0.01, "l2": 0.06}
# (norm, rank of the target; 0 is untargeted): points of 16 that stay correct, norms of the first eight, sum of all.
GOLDEN = {
    ("linf", 2): (4, [0.007669, 0.005584, 0.000215, 0.001971, 0.010611, 0.007035, 0.007749, 0.007056], 0.1239835454),
    ("linf", 3): (14, [0.011637, 0.015303, 0.014291, 0.002368, 0.012884, 0.011959, 0.014646, 0.014956], 0.2676194638),
    ("l2", 2): (6, [0.057416, 0.042008, 0.001617, 0.014245, 0.091185, 0.043151, 0.047198, 0.049458], 0.8849273509),
    ("l2", 3): (14, None, 2.0849697397),
    ("linf", 0): (4, [0.007669, 0.005584, 0.000215, 0.001971, 0.010611, 0.007035, 0.007749, 0.007056], 0.1239835454),
    ("l2", 0): (6, [0.057416, 0.042008, 0.001617, 0.014245, 0.078764, 0.043151, 0.047198, 0.049458], 0.8725067576),
}


with jax.enable_x64(True):
    IMAGES = np.asarray(toy.images())


def toy_logits(x):
    """The toy on the host."""
    flat = np.asarray(x, np.float64).transpose(0, 3, 1, 2).reshape(len(x), -1)
    return np.tanh((flat - 0.5) @ toy.W1.T + toy.B1) @ toy.W2.T + toy.B2


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


@functools.cache
def program(attack, num_steps=None):
    """One run on the toy, as a program of the problem: radii and targets do not compile anew."""
    return compiled(lambda problem: run(attack, toy.logits, problem, num_steps=num_steps))


def compiled(function):
    """Compiled, with results on the host, where comparing them compiles nothing."""
    function = jax.jit(function)
    return lambda *arguments: jax.tree.map(np.asarray, function(*arguments))


def toy_problem(norm, rank=2, eps=None, labels=toy.LABELS):
    # Ranks of the logits in ascending order, as the official code takes them.
    targets = np.argsort(toy_logits(IMAGES), axis=-1)[:, -max(rank, 1)].astype(np.int32)
    eps = np.asarray(RADII[norm] if eps is None else eps)
    return Problem.of(IMAGES, np.asarray(labels), Threat(norm, eps), jax.random.key(0), targets=targets)


def lengths(delta, norm):
    flat = np.asarray(delta, np.float64).reshape(len(delta), -1)
    return np.abs(flat).max(1) if norm == "linf" else np.linalg.norm(flat, axis=1)


@pytest.mark.parametrize(("norm", "rank"), GOLDEN)
def test_golden(norm, rank, x64):
    correct, first, total = GOLDEN[norm, rank]
    problem = toy_problem(norm, rank)
    result = program(FAB(norm, targeted=rank > 0))(problem)
    assert int((~result.success).sum()) == correct
    assert abs(float(result.loss.sum()) - total) < 1e-9
    if first:
        np.testing.assert_allclose(result.loss[:8], first, atol=6e-7)
    # The norm is that of the image handed back, which is misclassified; where there is none it is the image.
    expected = np.where(result.success, result.loss, 0)
    np.testing.assert_allclose(lengths(result.adv_images - problem.images, norm), expected, rtol=0, atol=1e-15)
    predictions = np.argmax(toy_logits(result.adv_images), -1)
    np.testing.assert_array_equal(predictions != toy.LABELS, result.success)
    assert ((result.loss <= RADII[norm]) == result.success).all()


@pytest.mark.parametrize("norm", RADII)
def test_just_outside_is_no_success(norm, x64):
    """A radius one float smaller than the norm found rejects the point; that very norm takes it."""
    attack = program(FAB(norm))
    norms = np.asarray(attack(toy_problem(norm)).loss)
    for row in (0, 4):
        inside = attack(toy_problem(norm, eps=norms[row]))
        outside = attack(toy_problem(norm, eps=np.nextafter(norms[row], 0)))
        assert inside.success[row] and not outside.success[row]
        assert outside.loss[row] == norms[row]
        np.testing.assert_array_equal(outside.adv_images[row], IMAGES[row])
        assert (np.asarray(inside.success) >= np.asarray(outside.success)).all()  # and robustness falls with eps


def test_search_goes_on_after_the_first_success(x64):
    """Inside a large ball the first misclassified point is a success, and still not the last word."""
    problem = toy_problem("linf", eps=1.0)
    early, late = program(FAB("linf"), 1)(problem), program(FAB("linf"))(problem)
    first = np.asarray(early.success)
    assert first.sum() > 3 and late.success.all()
    assert (late.loss[first] < 0.99 * early.loss[first]).all() and (late.steps[first] > 1).all()
    # The radius decides on success alone.
    np.testing.assert_array_equal(late.loss, program(FAB("linf"))(toy_problem("linf")).loss)


def test_wrong_images_are_skipped(x64):
    labels = np.where(np.arange(16) % 3 == 0, (toy.LABELS + 1) % 10, toy.LABELS)
    problem = toy_problem("linf", labels=labels)
    result = program(FAB("linf"))(problem)
    wrong = labels != toy.LABELS
    assert result.success[wrong].all() and (result.loss[wrong] == 0).all() and (result.steps[wrong] == 0).all()
    np.testing.assert_array_equal(result.adv_images[wrong], problem.images[wrong])
    others = program(FAB("linf"))(toy_problem("linf"))
    np.testing.assert_allclose(result.loss[~wrong], others.loss[~wrong], rtol=0, atol=1e-12)


def on_a_line(num_steps=100, alpha_max=0.1, overshoot=1.05, backward=0.9):
    """The norm found where the margin is a plane and no pixel meets the box, in units of the distance to the plane."""
    at, best = 0.0, np.inf
    for _ in range(num_steps):
        near = max(abs(1 - at), 1e-8)
        alpha = min(near / (near + 1), alpha_max)
        at = (at + overshoot * (1 - at)) * (1 - alpha) + overshoot * alpha
        if at > 1:
            best, at = min(best, at), backward * at
    return best


@pytest.mark.parametrize(("classes", "norm", "targeted"), [(2, "linf", True), (3, "l2", False)])
def test_planes(classes, norm, targeted, x64):
    """Of planes the distance is known, and so is by how much FAB overshoots it."""
    rng = np.random.default_rng(classes)
    weights, bias = rng.normal(size=(12, classes)), 0.1 * rng.normal(size=classes)
    images = 0.5 + 0.01 * rng.normal(size=(5, 2, 2, 3))

    def logits(x):
        return (x.reshape(x.shape[0], -1) - 0.5) @ weights + bias

    found = logits(images)
    labels = found.argmax(1)
    gaps = found[np.arange(5), labels][:, None] - found
    steep = np.linalg.norm(weights.T[:, None] - weights.T[None], ord=1 if norm == "linf" else 2, axis=-1)[labels]
    distance = np.where(gaps > 0, gaps / np.maximum(steep, 1e-9), np.inf).min(1)
    attack = functools.partial(fab, logits, labels=labels, threat=Threat(norm, 0.1))
    result = compiled(functools.partial(attack, num_targets=classes - 1, targeted=targeted))(images)
    np.testing.assert_allclose(result.loss / distance, on_a_line(), rtol=1e-9)
    with pytest.raises(InputError, match=f"use 1 to {classes - 1} targets"):
        jax.eval_shape(functools.partial(attack, num_targets=classes), images)


@pytest.mark.parametrize(
    "settings", [{}, {"alpha_max": 0.3, "overshoot": 1.2, "backward": 0.7}], ids=["paper", "other"]
)
def test_one_iteration(settings, x64):
    """From a point away from the image, where the bias towards the image and its bound show; planes, L2, no box."""
    alpha_max, overshoot, backward = settings.values() or (0.1, 1.05, 0.9)
    attack = FAB("l2", **settings)
    rng = np.random.default_rng(0)
    w, x = rng.normal(size=4), np.full((2, 4), 0.5)
    x_1 = x + np.stack([0.05 * rng.normal(size=4), 0.2 * w / (w @ w)])
    plane = w @ x[0] + 0.1
    value = lambda u: u @ w - plane
    d_1, d_2 = (-value(u)[:, None] * w / (w @ w) for u in (x_1, x))
    a_1, a_2 = np.linalg.norm(d_1, axis=1), np.linalg.norm(d_2, axis=1)
    alpha = np.minimum(a_1 / (a_1 + a_2), alpha_max)[:, None]
    assert (a_1 / (a_1 + a_2) > alpha_max).all()
    new = (1 - alpha) * (x_1 + overshoot * d_1) + alpha * (x + overshoot * d_2)
    wrong = value(new) > 0

    logits = lambda u: jnp.stack([jnp.zeros(2), u.reshape(2, 4) @ w - plane], -1)

    def iterate(images, points):
        problem = Problem.of(images, jnp.array([0, 0]), l2(1.0), jax.random.key(0), targets=jnp.array([1, 1]))
        carry = attack.begin(logits, problem)._replace(points=points)
        return attack.advance(logits, problem, carry, jnp.array([4, 6]))

    carry = compiled(iterate)(*(u.reshape(2, 2, 2, 1) for u in (x, x_1)))
    distance = np.linalg.norm(new - x, axis=1)
    np.testing.assert_allclose(carry.norm, np.where(wrong, distance, np.inf), rtol=1e-12)
    points = np.where(wrong[:, None], x + backward * (new - x), new)
    np.testing.assert_allclose(carry.points.reshape(2, 4), points, rtol=1e-12)
    np.testing.assert_array_equal(carry.steps, np.where(wrong, [5, 7], 0))
    assert wrong.any()


def test_rows_stand_alone(x64):
    """Another batch, another place in it: the same iteration."""
    attack, whole, rows = FAB("linf"), toy_problem("linf"), np.array([11, 4, 2])
    part = Problem.of(IMAGES[rows], toy.LABELS[rows], whole.threat, jax.random.key(0), targets=whole.targets[rows])
    points = np.clip(IMAGES + 0.02 * np.random.default_rng(0).normal(size=IMAGES.shape), 0, 1)
    advance = compiled(functools.partial(attack.advance, toy.logits))

    def carry(rows):
        count = len(rows)
        norm, none = np.where(rows % 2, 0.001, np.inf), np.zeros(count, np.int32)
        return FabCarry(points[rows], IMAGES[rows], norm, none > 0, none)

    everything = advance(whole, carry(np.arange(16)), np.arange(16))
    for a, b in zip(advance(part, carry(rows), rows), everything, strict=True):
        np.testing.assert_allclose(a, b[rows], rtol=0, atol=1e-12)
    assert len(np.unique(everything.steps)) > 3


def test_nearest_of_the_targets(x64):
    """Targets are rows of one batch, of which the nearest is kept; inside the ball and the box."""
    runs = [program(FAB("l2"))(toy_problem("l2", rank)).loss for rank in (2, 3)]
    result = compiled(lambda x: fab(toy.logits, x, jnp.asarray(toy.LABELS), threat=l2(0.06), num_targets=2))(IMAGES)
    np.testing.assert_allclose(result.loss, np.minimum(*runs), rtol=0, atol=1e-12)
    assert (runs[1] < runs[0] - 1e-6).any() and 0 < result.success.sum() < 16
    assert (lengths(result.adv_images - IMAGES, "l2") <= 0.06).all()
    assert ((result.adv_images >= 0) & (result.adv_images <= 1)).all()


def test_restarts(x64):
    """Where the gradient is 0 at the image, and not near it, only the second run finds something."""
    images, labels = np.full((2, 2, 2, 1), 0.5), np.zeros(2, int)
    logits = lambda x: jnp.stack([jnp.full(x.shape[0], 0.01), jax.nn.relu(x - 0.5).sum((1, 2, 3))], -1)
    attack = functools.partial(fab, logits, threat=linf(0.1), num_targets=1, num_steps=8)
    result = compiled(functools.partial(attack, restarts=2))(images, labels, jax.random.key(0))
    assert result.success.all() and result.loss[0] != result.loss[1]
    with pytest.raises(ValueError, match="pass key"):
        attack(images, labels, restarts=2)


@pytest.mark.parametrize("norm", RADII)
def test_random_start(norm):
    """Half a radius from the image, in a direction of the row's own."""
    images = np.full((6, 4, 4, 3), 0.5, np.float32)
    logits = lambda x: jnp.zeros((x.shape[0], 3))

    def begin(images):
        problem = Problem.of(images, jnp.zeros(6, int), Threat(norm, RADII[norm]), jax.random.key(0))
        return FAB(norm, random_start=True).begin(logits, problem).points

    delta = compiled(begin)(images) - images
    np.testing.assert_allclose(lengths(delta, norm), RADII[norm] / 2, rtol=1e-5)
    assert len(np.unique(delta[:, 0, 0, 0])) == 6


@pytest.mark.parametrize(("norm", "targeted"), [("linf", True), ("l2", False)])
def test_no_gradient_no_harm(norm, targeted):
    """Constant logits, and gradients that are NaN: the images come back, and nothing is NaN."""
    images = np.random.default_rng(0).uniform(size=(3, 2, 2, 3)).astype(np.float32)
    scale = np.array([0.0, np.nan, 1.0], np.float32)  # of the gradient, row by row

    @jax.custom_vjp
    def shaken(x):
        return x

    shaken.defvjp(lambda x: (x, None), lambda _, g: (g * scale[:, None, None, None],))

    def logits(x):
        return jnp.stack([jnp.full(x.shape[0], 0.2), shaken(x).mean((1, 2, 3)) - 0.5], -1)

    labels = (images.mean((1, 2, 3)) - 0.5 > 0.2).astype(int)
    threat = Threat(norm, 1.0)
    result = compiled(lambda x: fab(logits, x, labels, threat=threat, num_targets=1, num_steps=8, targeted=targeted))(
        images
    )
    assert np.isfinite(result.adv_images).all() and not np.isnan(result.loss).any()
    np.testing.assert_array_equal(result.success, [False, False, True])
    np.testing.assert_array_equal(result.adv_images[:2], images[:2])


def test_half_precision_images(x64):
    """In bfloat16 what is judged is what is returned."""
    images = IMAGES.astype(jnp.bfloat16)
    logits = lambda x: toy.logits(x.astype(jnp.float64))
    labels = toy_logits(images).argmax(1)
    result = compiled(lambda x: fab(logits, x, labels, threat=linf(0.02), num_targets=1, num_steps=8))(images)
    assert result.adv_images.dtype == jnp.bfloat16 and result.success.any()
    np.testing.assert_array_equal(toy_logits(result.adv_images).argmax(1) != labels, result.success)
    found = lengths(result.adv_images.astype(np.float64) - images.astype(np.float64), "linf")
    np.testing.assert_array_equal(found[result.success], result.loss[result.success])
    assert (found <= 0.02).all()


def test_cost_and_gradient(x64):
    """An iteration is a forward and backward pass and a forward pass, and nothing of it is differentiated again."""
    calls = []

    def logits(x, shift=0.0):
        calls.append(x.shape)
        return toy.logits(x) + shift

    attack, problem = FAB("linf"), toy_problem("linf")
    carry = jax.eval_shape(functools.partial(attack.begin, logits), problem)
    assert calls == [(16, 8, 8, 3)]
    jax.eval_shape(functools.partial(attack.advance, logits), problem, carry, problem.labels)
    assert calls == [(16, 8, 8, 3)] * 3

    def total(shift, x):
        result = fab(lambda x: logits(x, shift), x, problem.labels, threat=linf(0.01), num_targets=1, num_steps=2)
        return result.adv_images.sum() + result.loss.sum()

    gradients = compiled(jax.grad(total, argnums=(0, 1)))(np.zeros(10), IMAGES)
    assert all((g == 0).all() for g in gradients)
