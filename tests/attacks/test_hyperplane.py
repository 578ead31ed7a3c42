"""The move onto a hyperplane inside the box: against bisection, and the cases that have no plain answer."""

import functools

import jax
import numpy as np
import pytest

from jrobust.attacks.hyperplane import smallest_move

NORMS = ["linf", "l2"]


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


ROWS, COLUMNS = 300, 300


@functools.lru_cache
def program(norm):
    return jax.jit(functools.partial(smallest_move, norm=norm))


def moves(t, w, c, norm):
    """The moves of any number of rows and coordinates by one program: coordinates without a weight change nothing."""
    t, w, c = (np.asarray(a) for a in (t, w, c))
    spare = [(0, ROWS - t.shape[0]), (0, COLUMNS - t.shape[1])]
    found = np.asarray(program(norm)(np.pad(t, spare, constant_values=0.3), np.pad(w, spare), np.pad(c, spare[0])))
    assert (found[:, t.shape[1] :] == 0).all() and (found[t.shape[0] :] == 0).all()
    return found[: t.shape[0], : t.shape[1]]


def bisection(t, w, b, norm):
    """One row, by halving the interval in which the multiplier lies."""
    c = w @ t - b
    direction = -np.sign(w) * np.sign(c)
    room = np.where(direction > 0, 1 - t, np.where(direction < 0, t, 0))
    pace = np.ones_like(w) if norm == "linf" else np.abs(w)

    def reached(level):
        return np.abs(w) @ np.minimum(level * pace, room)

    if reached(1e300) <= abs(c):
        return direction * room
    low, high = 0.0, 1.0
    while reached(high) < abs(c):
        high *= 2
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if reached(middle) < abs(c) else (low, middle)
    return direction * np.minimum(high * pace, room)


def cases(seed, count, dimensions):
    """Points with coordinates on the box, weights with zeros and very unequal ones, planes within and out of reach."""
    rng = np.random.default_rng(seed)
    t = rng.uniform(size=(count, dimensions))
    t = np.where(rng.uniform(size=t.shape) < 0.2, np.round(t), t)
    w = rng.normal(size=t.shape) * np.exp(rng.normal(size=t.shape) * rng.uniform(0, 2, size=(count, 1)))
    w[rng.uniform(size=w.shape) < 0.15] = 0
    low, high = np.minimum(w, 0).sum(1), np.maximum(w, 0).sum(1)
    b = low + (high - low) * rng.uniform(-0.2, 1.2, size=count)
    near = rng.uniform(size=count) < 0.3
    return t, w, np.where(near, (w * t).sum(1) + 1e-3 * rng.normal(size=count), b)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("dimensions", [1, 2, 7, 60])
def test_bisection_says_the_same(norm, dimensions, x64):
    t, w, b = cases(dimensions, 300, dimensions)
    found = moves(t, w, (w * t).sum(1) - b, norm)
    expected = np.stack([bisection(*row, norm) for row in zip(t, w, b, strict=True)])
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)
    assert ((t + found >= -1e-15) & (t + found <= 1 + 1e-15)).all()
    reachable = (b >= np.minimum(w, 0).sum(1)) & (b <= np.maximum(w, 0).sum(1))
    np.testing.assert_allclose((w * (t + found)).sum(1)[reachable], b[reachable], rtol=0, atol=1e-11)
    assert 0.3 < reachable.mean() < 0.95


@pytest.mark.parametrize("norm", NORMS)
def test_no_other_move_is_shorter(norm, x64):
    """Neither bisection nor the closed form may have the wrong problem: any feasible move is at least as long."""
    rng = np.random.default_rng(0)
    t, w, b = cases(1, 200, 3)
    found = moves(t, w, (w * t).sum(1) - b, norm)
    length = functools.partial(np.linalg.norm, ord=np.inf if norm == "linf" else 2, axis=-1)
    others = rng.uniform(size=(20_000, 3))
    for row in np.flatnonzero(np.abs((w * (t + found)).sum(1) - b) < 1e-9):
        # Points of the box beyond the plane: the way to each of them crosses it.
        beyond = others[((others @ w[row] - b[row]) * (w[row] @ t[row] - b[row])) <= 0]
        assert length(found[row]) <= length(beyond - t[row]).min(initial=np.inf) + 1e-12


@pytest.mark.parametrize("norm", NORMS)
def test_special_rows(norm):
    t = np.float32([[0.5, 0.25, 1.0, 0.0]] * 7)
    w = np.float32([[1.0, -2.0, 0.0, 1.0]] * 4 + [[0.0] * 4, [np.nan, -2.0, 0.0, 1.0], [1e-33, -2e-33, 0.0, 1e-33]])
    c = np.float32([0.0, 100.0, -100.0, np.nan, 1.0, 100.0, 1e-33 * 100])
    corner = [-0.5, 0.75, 0.0, 0.0]
    expected = [
        [0] * 4,  # on the plane
        corner,  # out of reach, either way
        [0.5, -0.25, 0, 1],
        [0] * 4,  # the gradient was NaN
        [0] * 4,  # no direction
        [0, 0.75, 0, 0],  # one coordinate was NaN
        corner,  # a vanishing gradient has a direction all the same
    ]
    np.testing.assert_allclose(moves(t, w, c, norm), expected, rtol=0, atol=1e-7)


@pytest.mark.parametrize("norm", NORMS)
def test_single_precision(norm):
    """In float32 the plane is met to rounding, whatever the length of w, and the box is kept."""
    t, w, _ = cases(3, 200, 300)
    t, w = np.float32(t), np.float32(w)
    c = np.float32(np.random.default_rng(4).normal(size=200) * np.abs(w).sum(1) * 0.02)
    for scale in (1.0, 1e-20, 1e20):
        found = moves(t, np.float32(w * scale), np.float32(c * scale), norm).astype(np.float64)
        residual = np.abs((w.astype(np.float64) * found).sum(1) + c) / np.abs(w.astype(np.float64)).sum(1)
        assert residual.max() < 1e-7
        assert ((t + np.float32(found) >= 0) & (t + np.float32(found) <= 1)).all()


def test_known_moves():
    """w = (3, 4) from the middle of the box: equal steps in Linf, along w in L2, and around a corner."""
    t, w = np.full((2, 2), 0.5, np.float32), np.float32([[3, 4]] * 2)
    np.testing.assert_allclose(moves(t, w, np.float32([0.7, -0.7]), "linf"), [[-0.1, -0.1], [0.1, 0.1]], atol=1e-7)
    np.testing.assert_allclose(moves(t, w, np.float32([0.5, -0.5]), "l2"), [[-0.06, -0.08], [0.06, 0.08]], atol=1e-7)
    edge = np.float32([[0.05, 0.5]])
    np.testing.assert_allclose(moves(edge, w[:1], np.float32([0.95]), "linf"), [[-0.05, -0.2]], atol=1e-7)
