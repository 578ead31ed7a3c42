"""Square: golden values of the official code with its random numbers put in by hand, its schedule, and its draws."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jrobust.attacks import Square, l2, linf, square, windows
from jrobust.attacks.iterative import Problem, run
from jrobust.attacks.square import SquareCarry
from jrobust.attacks.threat import Threat
from jrobust.attacks.windows import Proposal
from tests.attacks import toy

RADII = {"linf": 0.01, "l2": 0.06}
with jax.enable_x64(True):
    IMAGES = np.asarray(toy.images())


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


def toy_logits(x):
    """The toy on the host."""
    flat = np.asarray(x, np.float64).transpose(0, 3, 1, 2).reshape(len(x), -1)
    return np.tanh((flat - 0.5) @ toy.W1.T + toy.B1) @ toy.W2.T + toy.B2


def margins(x, labels):
    logits = toy_logits(x)
    true = np.arange(10) == labels[:, None]
    return np.where(true, -np.inf, logits).max(1) - logits[true]


def toy_problem(norm, rows=slice(None), labels=toy.LABELS):
    threat = Threat(norm, np.asarray(RADII[norm]))
    return Problem.of(IMAGES[rows], labels[rows], threat, jax.random.key(0), index=np.arange(16)[rows])


def compiled(function):
    """Compiled, with results on the host, where comparing them compiles nothing."""
    function = jax.jit(function)
    return lambda *arguments: jax.tree.map(np.asarray, function(*arguments))


@functools.cache
def program(attack):
    return compiled(lambda problem: run(attack, toy.logits, problem, until_broken=True))


def injected(attack, start, draw, num_steps):
    """The attack on the toy with `start` float[B, H, W, C] and `draw(t, side) -> Proposal`."""
    sides = jnp.asarray(attack.sides(8, 8))

    def whole(problem):
        carry = attack.begin_at(toy.logits, problem, start)

        def body(t, carry):
            return attack.attempt(toy.logits, problem, carry, jnp.full(16, t), draw(t, sides[t]))

        return jax.lax.fori_loop(0, num_steps, body, carry)

    problem = toy_problem(attack.norm)
    return problem, compiled(whole)(problem)


def at(row, column, side):
    """The same window for all images, as in the official code."""
    return jnp.tile(jnp.stack([row, column]) % jnp.maximum(8 - side, 1), (16, 1))


def check_golden(problem, carry, broken, first, total):
    np.testing.assert_array_equal(np.flatnonzero(carry.success), broken)
    np.testing.assert_allclose(-carry.margin[:8], first, atol=6e-7)
    assert abs(-carry.margin.sum() - total) < 1e-9
    np.testing.assert_allclose(carry.margin, margins(carry.adv_images, toy.LABELS), rtol=0, atol=1e-13)


def test_golden_linf(x64):
    attack = Square("linf")
    n, w, c = np.meshgrid(np.arange(16), np.arange(8), np.arange(3), indexing="ij")
    stripes = np.sign(np.sin(0.37 * (24 * n + 8 * c + w) + 0.2))[:, None]

    def draw(t, side):
        signs = jnp.tile(jnp.sign(jnp.sin(1.7 * t + jnp.arange(3) + 0.3)), (16, 1))
        corner = at(7 * t + 3, 11 * t + 5, side)
        return Proposal(jnp.full(16, side), corner, signs, corner, jnp.zeros(16, bool))

    problem, carry = injected(attack, np.clip(IMAGES + 0.01 * stripes, 0, 1), draw, 5000)
    first = [0.203280, 0.166027, -0.103896, -0.064254, 0.495089, 0.242613, 0.365212, 0.109879]
    check_golden(problem, carry, [2, 3, 10], first, 4.4788714541)
    np.testing.assert_array_equal(carry.steps[[2, 3, 10]], [0, 19, 13])


def test_golden_l2(x64):
    attack = Square("l2")
    # The official code's start at 8 x 8: 7 x 7 pixels, of which the first row and column are left out.
    n, r, c, k = np.meshgrid(np.arange(16), np.arange(7), np.arange(7), np.arange(3), indexing="ij")
    tiles = -np.sign(np.sin(0.9 * (8 * r + c) + 1.3 * n + 2.1 * k + 0.2))
    delta = np.pad(tiles, [(0, 0), (1, 0), (1, 0), (0, 0)])
    start = np.clip(IMAGES + 0.06 * delta / np.sqrt(147), 0, 1)

    def draw(t, side):
        signs = jnp.sign(jnp.sin(1.7 * t + 1.1 * jnp.arange(16)[:, None] + jnp.arange(3) + 0.3))
        corner, other = at(7 * t + 3, 11 * t + 5, side), at(5 * t + 1, 13 * t + 2, side)
        return Proposal(jnp.full(16, side), corner, signs, other, jnp.full(16, t % 3 == 1))

    problem, carry = injected(attack, start, draw, 400)
    first = [0.347305, 0.229499, -0.001433, 0.021453, 0.596048, 0.327670, 0.369525, 0.338833]
    check_golden(problem, carry, [2, 10], first, 5.9706436088)
    lengths = np.linalg.norm((carry.adv_images - problem.images).reshape(16, -1), axis=1)
    assert (lengths <= 0.06).all() and (lengths > 0.06 - 1e-9).all()


def test_schedule():
    """Sides as published for three sizes, each held until its last iteration; and the schedule of 10,000 iterations."""
    bounds = [0, 10, 11, 50, 51, 200, 201, 500, 501, 1000, 1001, 2000, 2001, 4000, 4001, 4999]
    for size, sides in {
        32: [29, 20, 14, 10, 7, 5, 4, 3],
        64: [57, 40, 29, 20, 14, 10, 7, 5],
        224: [200, 142, 100, 71, 50, 35, 25, 18],
    }.items():
        np.testing.assert_array_equal(Square("linf").sides(size, size)[bounds], np.repeat(sides, 2))
    longer = Square("linf", 10_000).sides(224, 224)[[6000, 6001, 8000, 8001]]
    np.testing.assert_array_equal(longer, [18, 13, 13, 9])

    rescaled = Square("linf", rescale_schedule=True).sides(224, 224)
    changes = np.flatnonzero(np.diff(rescaled)) + 1
    # Iteration i is number 2i of 10,000, and a bound's own number still has the side before it.
    np.testing.assert_array_equal(changes, [6, 26, 101, 251, 501, 1001, 2001, 3001, 4001])
    assert (Square("linf").sides(3, 5) <= 3).all() and Square("linf").sides(1, 1).min() == 1
    # L2: odd, at least 3, not larger than the image.
    np.testing.assert_array_equal(Square("l2").sides(32, 32)[bounds[::2]], [29, 21, 15, 11, 7, 5, 5, 3])
    np.testing.assert_array_equal(Square("l2", p_init=1.0).sides(8, 8)[[0, 11]], [8, 7])


@pytest.mark.parametrize("norm", RADII)
def test_draws(norm):
    """Every position but the last, both signs, each row for itself, and again the same for the same row and step."""
    images = jnp.zeros((64, 6, 9, 2))
    problem = Problem.of(images, jnp.zeros(64, int), Threat(norm, 0.1), jax.random.key(0))
    attack = Square(norm, p_init=3 / 54)  # windows of 2 x 2 in Linf and 3 x 3 in L2
    draw = compiled(attack.draw)
    drawn = [draw(problem, np.full(64, step)) for step in range(11)]
    side = 2 if norm == "linf" else 3
    assert all((proposal.side == side).all() for proposal in drawn)
    for name in ("corner", "other_corner"):
        corners = np.concatenate([getattr(proposal, name) for proposal in drawn])
        for axis, length in enumerate((6, 9)):
            np.testing.assert_array_equal(np.unique(corners[:, axis]), np.arange(length - side))
        assert np.abs(np.corrcoef(corners.T)[0, 1]) < 0.15
    signs = np.stack([proposal.signs for proposal in drawn])
    assert set(np.unique(signs)) == {-1, 1} and abs(signs.mean()) < 0.1
    assert 0.3 < np.mean([proposal.transposed for proposal in drawn]) < 0.7
    assert len(np.unique(np.asarray(drawn[0].corner), axis=0)) > 5 and (drawn[0].corner != drawn[1].corner).any()

    mixed = draw(problem, np.arange(64) % 11)
    for field, found in enumerate(mixed):
        np.testing.assert_array_equal(found[5], drawn[5][field][5])
        np.testing.assert_array_equal(found[40], drawn[7][field][40])


@pytest.mark.parametrize("norm", RADII)
def test_rows_stand_alone(norm, x64):
    """Rows that are at different iterations, in windows of several sides; and another place in another batch."""
    attack, problem = Square(norm, 60), toy_problem(norm)
    advance = compiled(functools.partial(attack.advance, toy.logits))
    step = np.arange(16) * 17 % 60

    def start(rows):
        none = np.zeros(len(rows), np.int32)
        return SquareCarry(IMAGES[rows], np.full(len(rows), -1.0), none > 0, none)

    everyone = np.arange(16)
    mixed = advance(problem, start(everyone), step)
    assert len(np.unique(mixed.steps)) > 3
    for t in np.unique(step)[::5]:
        alone, at_t = advance(problem, start(everyone), np.full(16, t)), step == t
        for a, b in zip(mixed, alone, strict=True):
            np.testing.assert_array_equal(a[at_t], b[at_t])
    rows = np.array([11, 4, 2, 3])
    part = advance(toy_problem(norm, rows), start(rows), step[rows])
    for a, b in zip(part, mixed, strict=True):
        np.testing.assert_allclose(a, b[rows], rtol=0, atol=1e-12)


@pytest.mark.parametrize("norm", RADII)
def test_guarantees(norm, x64):
    """In the ball and the box; misclassified where it says so; wrong images come back."""
    labels = np.where(np.arange(16) % 5 == 0, (toy.LABELS + 1) % 10, toy.LABELS)
    result, wrong = program(Square(norm, 100))(toy_problem(norm, labels=labels)), labels != toy.LABELS
    delta = (result.adv_images - IMAGES).reshape(16, -1)
    lengths = np.abs(delta).max(1) if norm == "linf" else np.linalg.norm(delta, axis=1)
    assert (lengths <= RADII[norm]).all() and ((result.adv_images >= 0) & (result.adv_images <= 1)).all()
    assert result.success[wrong].all() and (lengths[wrong] == 0).all() and (result.steps[wrong] == 0).all()
    assert result.success[~wrong].any() and (lengths[~result.success] == 0).all()
    np.testing.assert_array_equal(toy_logits(result.adv_images).argmax(1) != labels, result.success)
    found = margins(result.adv_images, labels)
    np.testing.assert_allclose(result.loss[result.success], found[result.success], atol=1e-12)
    assert (result.loss >= found - 1e-12)[~wrong].mean() > 0.8  # most margins rise above the image's own
    jax.eval_shape(lambda x: square(toy.logits, x, labels, jax.random.key(0), threat=linf(0.1), num_queries=0), IMAGES)


def test_length_moves_between_windows(x64):
    """L2: what lies outside both windows keeps its length, and the window gets the rest, a like part a channel."""
    rng = np.random.default_rng(0)
    images = np.full((2, 9, 9, 3), 0.5)
    delta = 0.01 * rng.normal(size=images.shape)
    inside, donor = np.zeros((2, 1, 9, 9, 1), bool)
    inside[:, 1:4, 2:5] = donor[:, 5:8, 5:8] = True
    best = images + np.where(inside, 0, delta)
    problem = Problem.of(images, np.zeros(2, int), l2(0.5), jax.random.key(0))
    corner, other = np.tile([1, 2], (2, 1)), np.tile([5, 5], (2, 1))
    proposal = Proposal(np.full(2, 3), corner, np.array([[1, -1, 1], [1, 1, -1]]), other, np.array([False, True]))
    new = compiled(Square("l2", p_init=9 / 81).propose)(problem, best, proposal) - images
    outside = ~(inside | donor)
    np.testing.assert_allclose(new * outside, delta * outside, atol=1e-12)
    assert (new[:, 5:8, 5:8] == 0).all()
    np.testing.assert_allclose(np.linalg.norm(new.reshape(2, -1), axis=1), 0.5, rtol=1e-11)
    taken = ((delta * donor) ** 2).sum((1, 2))
    spare = (0.5**2 - ((best - images) ** 2).sum((1, 2, 3))) / 3
    window = new[:, 1:4, 2:5]
    np.testing.assert_allclose((window**2).sum((1, 2)), spare[:, None] + taken, rtol=1e-9)
    bump = windows.bump(3)
    for row, turned in enumerate((bump, bump.T)):
        for channel, sign in enumerate(proposal.signs[row]):
            shape = window[row, :, :, channel] / np.linalg.norm(window[row, :, :, channel])
            np.testing.assert_allclose(shape, sign * turned, atol=1e-9)


def test_toy_counts(x64):
    """Points of 16 that stay correct at four radii: the official code's to within one, which is chance."""
    attack = compiled(
        lambda eps: square(toy.logits, IMAGES, toy.LABELS, jax.random.key(1), threat=linf(eps), num_queries=5000)
    )
    results = [attack(np.asarray(eps)) for eps in (0.004, 0.006, 0.008, 0.010)]
    correct = np.array([(~result.success).sum() for result in results])
    assert (np.abs(correct - [13, 12, 9, 6]) <= 1).all() and (np.diff(correct) <= 0).all()
    assert max(result.steps.max() for result in results) > 1000


def test_ends_when_all_are_broken():
    """No iteration is spent on a batch that is broken; with two classes, by a number of queries known beforehand."""
    seen = []

    def logits(x):
        jax.debug.callback(lambda: seen.append(0))
        score = x.mean((1, 2, 3))
        return jnp.stack([jnp.full_like(score, 0.5), score], -1)

    images = jnp.full((2, 4, 4, 1), 0.49)
    attack = functools.partial(square, logits, images, jnp.zeros(2, int), jax.random.key(0), threat=linf(0.5))
    result = jax.jit(functools.partial(attack, num_queries=1000))()
    jax.effects_barrier()
    assert result.success.all() and (result.loss > 0).all()
    assert len(seen) == 2 + int(result.steps.max()) < 30


def test_constant_logits():
    """Nothing gets better and the images come back; a tie is a success only where the other class comes first."""
    images, labels = np.full((2, 5, 5, 3), 0.5, np.float32), np.array([0, 1])
    logits = lambda x: jnp.zeros((x.shape[0], 3))
    result = compiled(lambda x: square(logits, x, labels, jax.random.key(0), threat=linf(0.1), num_queries=2))(images)
    np.testing.assert_array_equal(result.adv_images, images)
    np.testing.assert_array_equal(result.success, [False, True])
    assert (result.loss == 0).all() and (result.steps == 0).all()


@pytest.mark.parametrize("side", [1, 2, 3, 5, 8, 21])
def test_bump(side):
    """Equation (2) of the paper: on each half, the sum over k <= M(r, s) of 1 / (n + 1 - k)^2, then to length 1."""

    def half(height):
        middle, half_side = (height // 2, side // 2), max(height // 2, side // 2) + 1
        values = np.zeros((height, side))
        for r in range(height):
            for s in range(side):
                depth = half_side - max(abs(r - middle[0]), abs(s - middle[1]))  # squares that cover the pixel
                values[r, s] = sum(1 / (half_side + 1 - k) ** 2 for k in range(1, depth + 1))
        return values / max(np.linalg.norm(values), 1e-300)

    expected = np.concatenate([half(side // 2), -half(side - side // 2)])
    np.testing.assert_allclose(windows.bump(side), expected / np.linalg.norm(expected), atol=1e-15)


def test_bump_of_three():
    hill, valley = np.array([[1, 5, 1]]) / np.sqrt(27), np.array([[1, 1, 1], [1, 5, 1]]) / np.sqrt(30)
    np.testing.assert_allclose(windows.bump(3), np.concatenate([hill, -valley]) / np.sqrt(2), atol=1e-15)


def test_l2_start():
    """5 bumps along the shorter side, more along the longer one, upright or not, of one length, and eps together."""
    images = np.full((4, 17, 33, 2), 0.5, np.float32)
    problem = Problem.of(images, np.zeros(4, int), l2(0.1), jax.random.key(0))
    delta = compiled(Square("l2").start)(problem) - images
    np.testing.assert_allclose(np.linalg.norm(delta.reshape(4, -1), axis=1), 0.1, rtol=1e-4)
    tiles = delta[:, 1:16]  # 5 x 11 of 3 x 3 pixels
    assert (delta[:, [0, 16]] == 0).all()
    tiles = tiles.reshape(4, 5, 3, 11, 3, 2).transpose(0, 1, 3, 5, 2, 4).reshape(-1, 3, 3) * np.sqrt(110) / 0.1
    bump = windows.bump(3)
    errors = np.abs(tiles[:, None] - np.stack([bump, -bump, bump.T, -bump.T])).max((2, 3))
    assert (errors.min(1) < 1e-4).all() and (np.bincount(errors.argmin(1)) > 60).all()
    for small in ((8, 8), (3, 4)):
        jax.eval_shape(windows.start, problem.keys, problem._replace(images=np.zeros((4, *small, 2))))


def test_linf_start_and_window():
    """Stripes along the columns; a window holds x + eps or x - eps, and the rest what was there."""
    images = np.random.default_rng(0).uniform(size=(5, 6, 7, 2)).astype(np.float32)
    problem = Problem.of(images, np.zeros(5, int), linf(0.1), jax.random.key(0))
    attack = Square("linf")

    def first_and_second(problem):
        start, proposal = attack.start(problem), attack.draw(problem, jnp.full(5, 60))
        return start, proposal, attack.propose(problem, start, proposal)

    start, proposal, new = compiled(first_and_second)(problem)
    signs = np.sign(start - images)
    assert (signs == signs[:, :1]).all() and len(np.unique(signs[:, 0].reshape(5, -1), axis=0)) == 5
    np.testing.assert_allclose(start, np.clip(images + 0.1 * signs, 0, 1), atol=1e-6)
    for row, (side, corner, sign) in enumerate(zip(*proposal[:3], strict=True)):
        inside = np.zeros((6, 7, 1), bool)
        inside[corner[0] : corner[0] + side, corner[1] : corner[1] + side] = True
        expected = np.where(inside, np.clip(images[row] + 0.1 * sign, 0, 1), start[row])
        np.testing.assert_allclose(new[row], expected, atol=1e-6)
