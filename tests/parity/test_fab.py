"""Targeted FAB against an independent rewrite in eager PyTorch, in float64; and Square's moves against another."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jrobust.attacks import FAB, Square, fab
from jrobust.attacks.iterative import Problem, run
from jrobust.attacks.threat import Threat
from jrobust.attacks.windows import Proposal
from tests.attacks import toy

torch = pytest.importorskip("torch")

from benchmarks import torch_fab, torch_square  # noqa: E402
from tests.parity.networks import NETWORKS, nchw, nhwc  # noqa: E402

# The gradient of a convolution inside a compiled loop is slow on CPU, so that network gets fewer iterations.
STEPS = {"toy": 50, "conv": 20}
RADII = {"toy": {"linf": 0.01, "l2": 0.06}, "conv": {"linf": 0.03, "l2": 0.5}}


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


@functools.cache
def network(name):
    """Functions of images with logits of mean 0 over the images: several classes, and planes within reach."""
    ours, theirs = NETWORKS[name]()
    logits = np.asarray(jax.jit(ours)(toy.images()))
    mean = logits.mean(0)
    return lambda x: ours(x) - mean, lambda x: theirs(x) - torch.tensor(mean), logits - mean


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("name", NETWORKS)
def test_norms(name, norm):
    """The distance of the nearest point, for the targets of ranks 2 and 4, and the point itself."""
    ours, theirs, logits = network(name)
    images, labels = toy.images(), logits.argmax(1)
    attack = jax.jit(lambda problem: run(FAB(norm, STEPS[name]), ours, problem))
    threat = Threat(norm, jnp.asarray(10.0))
    for rank in (2, 4):
        targets = np.argsort(logits, 1)[:, -rank]
        result = attack(
            Problem.of(images, jnp.asarray(labels), threat, jax.random.key(0), targets=jnp.asarray(targets, jnp.int32))
        )
        found, distance = torch_fab.run(
            theirs, nchw(images), *map(torch.tensor, (labels, targets)), norm=norm, num_steps=STEPS[name]
        )
        np.testing.assert_allclose(result.loss, distance, rtol=0, atol=1e-9)
        reached = np.isfinite(result.loss)
        np.testing.assert_allclose(result.adv_images[reached], nhwc(found)[reached], rtol=0, atol=1e-9)
        assert reached.sum() > 12


def test_targets_one_after_the_other():
    """The rewrite goes on with what is unbroken; all targets at once break the same images."""
    ours, theirs, logits = network("toy")
    images, labels = toy.images(), logits.argmax(1).copy()
    labels[5] = (labels[5] + 1) % 10
    _, broken = torch_fab.fab(
        theirs, nchw(images), torch.tensor(labels), norm="linf", eps=0.008, num_targets=3, num_steps=30
    )
    result = jax.jit(
        lambda x: fab(ours, x, jnp.asarray(labels), threat=Threat("linf", 0.008), num_targets=3, num_steps=30)
    )(images)
    np.testing.assert_array_equal(result.success, broken)
    assert 3 < int(broken.sum()) < 13 and broken[5]


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_square_moves(norm, monkeypatch):
    """One proposal of every size, with the rewrite's random numbers put in by hand."""
    rng = np.random.default_rng(0)
    images = rng.uniform(size=(4, 9, 9, 3))
    problem = Problem.of(jnp.asarray(images), jnp.zeros(4, int), Threat(norm, 0.1), jax.random.key(0))
    attack = Square(norm)
    signs = jnp.sign(jnp.asarray(rng.normal(size=images.shape)))
    best = jnp.clip(problem.images + 0.1 * signs / (1 if norm == "linf" else 20), 0, 1)
    search = torch_square._Search(nchw(images), 0.1, None)
    propose = jax.jit(attack.propose)
    for i in (0, 11, 60, 300, 600, 1500):
        side = torch_square.window_side(i, 9, 9, 0.8, norm)
        assert side == attack.sides(9, 9)[i]
        corners = rng.integers(0, max(9 - side, 1), size=(2, 2))
        shape = (3,) if norm == "linf" else (4, 3)
        signs = np.where(rng.uniform(size=shape) < 0.5, -1.0, 1.0)
        flip = bool(i % 2)
        drawn = iter(corners)

        def window(side, drawn=drawn):
            row, column = next(drawn)
            return slice(row, row + side), slice(column, column + side)

        monkeypatch.setattr(search, "window", window)
        monkeypatch.setattr(search, "signs", lambda *shape, signs=signs: torch.tensor(signs).reshape(shape))
        monkeypatch.setattr(torch, "rand", lambda *_, flip=flip, **__: torch.tensor(float(flip)))
        expected = search.propose(norm, torch.arange(4), nchw(best), side)
        proposal = Proposal(
            jnp.full(4, side),
            jnp.tile(corners[0], (4, 1)),
            jnp.broadcast_to(signs, (4, 3)),
            jnp.tile(corners[1], (4, 1)),
            jnp.full(4, flip),
        )
        np.testing.assert_allclose(propose(problem, best, proposal), nhwc(expected), rtol=0, atol=1e-11)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_square_of_the_rewrite(norm):
    """It keeps its promises."""
    _, theirs, logits = network("toy")
    labels = torch.tensor(logits.argmax(1))
    eps = RADII["toy"][norm]
    images = nchw(toy.images())
    adv, broken = torch_square.square(
        theirs, images, labels, norm=norm, eps=eps, num_queries=150, generator=torch.Generator().manual_seed(0)
    )
    delta = (adv - images).flatten(1)
    assert ((delta.abs().amax(1) if norm == "linf" else delta.norm(dim=1)) <= eps + 1e-12).all()
    np.testing.assert_array_equal(theirs(adv).argmax(1) != labels, broken)
    assert 1 <= int(broken.sum()) < 16
