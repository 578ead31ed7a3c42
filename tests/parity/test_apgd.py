"""Auto-PGD against an independent rewrite in eager PyTorch: every iterate in float64, from the same start."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jrobust.attacks import APGD, apgd, apgd_targeted, l2, linf, ranked_targets
from jrobust.attacks.iterative import Problem
from tests.attacks import toy

torch = pytest.importorskip("torch")

from benchmarks import torch_apgd  # noqa: E402
from tests.parity.networks import NETWORKS, nchw, nhwc  # noqa: E402

TOLERANCE = 1e-9
RADII = {"toy": {"linf": 0.01, "l2": 0.06}, "conv": {"linf": 0.008, "l2": 0.1}}
# The gradient of a convolution inside a compiled loop is slow on CPU, so that network gets a shorter schedule.
STEPS = {"toy": 100, "conv": 50}


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


@functools.cache
def network(name):
    """The network in both frameworks less its mean logits, so that images lie near the boundary; its logits."""
    ours, theirs = NETWORKS[name]()
    logits = np.asarray(jax.jit(ours)(toy.images()))
    mean = logits.mean(0) * (name == "conv")
    return (lambda x: ours(x) - mean), (lambda x: theirs(x) - torch.tensor(mean)), logits - mean


def carries(attack, logits_fn, problem, start):
    """The carries at the start and after every iteration, stacked."""

    def body(carry, t):
        carry = attack.advance(logits_fn, problem, carry, jnp.full(problem.labels.shape, t, jnp.int32))
        return carry, carry

    begun = attack.begin(logits_fn, problem, start)
    _, rest = jax.lax.scan(body, begun, jnp.arange(attack.num_steps))
    return jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), begun, rest)


@pytest.mark.parametrize("loss", ["ce", "dlr", "targeted_dlr"])
@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("name", NETWORKS)
def test_iterates(name, norm, loss):
    ours, theirs, logits = network(name)
    images, labels = toy.images(), logits.argmax(1)
    targets = np.asarray(ranked_targets(jnp.asarray(logits), 2)[:, 1])
    eps, num_steps = RADII[name][norm], STEPS[name]
    threat = {"linf": linf, "l2": l2}[norm](eps)
    # Away from the image, on the surface of the ball for some.
    start = images + 1.2 * eps * jnp.sin(jnp.arange(images.size)).reshape(images.shape) * (norm == "linf" or 0.1)
    start = jax.vmap(threat.project)(start, images)

    problem = Problem.of(images, jnp.asarray(labels), threat, jax.random.key(0), targets=jnp.asarray(targets))
    attack = APGD(loss, norm, num_steps)
    carry = jax.jit(lambda problem, start: carries(attack, ours, problem, start))(problem, start)

    seen = [nchw(start)]
    run = torch_apgd.attack_single_run(
        theirs,
        nchw(images),
        torch.tensor(labels),
        nchw(start),
        norm=norm,
        eps=eps,
        loss=loss,
        targets=torch.tensor(targets, dtype=torch.long),
        num_steps=num_steps,
        observe=seen.append,
    )
    last = jax.tree.map(lambda leaf: np.asarray(leaf[-1]), carry)
    # DLR has a pole where the first logit meets the third, and is flat, at 1, where the label is the third: there the
    # gradient is made of rounding.
    calm = (last.loss_best < 5) & (np.abs(last.loss_best - 1) > 1e-6)
    assert calm.sum() >= len(labels) - 2
    # In L2 rows arrive: whether their loss still rises is then up to rounding, and with it the size of their steps,
    # which no longer lead anywhere.
    still = (np.abs(np.diff(np.asarray(carry.loss), axis=0)) < 1e-13) & (norm == "l2")
    arrival = np.where(still.any(0), still.argmax(0), num_steps + 1)
    assert np.median(arrival) > 8, arrival

    def same(ours, theirs, what, t=num_steps):
        for rows, tolerance in ((calm & (t <= arrival), TOLERANCE), (calm & (t > arrival), 1e-6)):
            np.testing.assert_allclose(np.asarray(ours)[rows], theirs[rows], rtol=0, atol=tolerance, err_msg=what)

    for t, x in enumerate(seen):
        same(carry.x[t], nhwc(x), f"after {t} iterations", t)
    same(last.x_best, nhwc(run.best_images), "best")
    same(last.loss_best, run.loss.numpy(), "loss")
    same(last.adv_images, nhwc(run.adv_images), "adversarial")
    np.testing.assert_array_equal(last.success, run.success)
    moving = calm & (arrival > num_steps)
    np.testing.assert_array_equal((last.step_size * eps)[moving], run.step_size[moving])

    # Something happened that could have gone wrong: images broken and not, resets at several checkpoints.
    assert 0 < last.success.sum() < len(labels)
    assert len(np.unique(carry.step_size)) >= 4
    assert (last.loss_best > np.asarray(carry.loss_best[0]) + 1e-3).all()


@pytest.mark.parametrize(("norm", "loss"), [("linf", "ce"), ("l2", "targeted_dlr")])
def test_whole_attacks_are_equally_strong(norm, loss):
    """From random starts of their own, with and without leaving out what is broken already."""
    ours, theirs, _ = network("toy")
    images, labels, eps = toy.images(), toy.LABELS.copy(), RADII["toy"][norm]
    labels[5] = 0  # wrong from the outset
    threat = {"linf": linf, "l2": l2}[norm](eps)
    attack = functools.partial(apgd_targeted, num_targets=3) if loss.startswith("targeted") else apgd
    settings = {"threat": threat, "num_steps": 30, "loss": loss}
    result = jax.jit(lambda k: attack(ours, images, jnp.asarray(labels), k, **settings))(jax.random.key(0))
    robust = ~np.asarray(result.success)
    robust[5] = False

    x, y = nchw(images), torch.tensor(labels)
    for only_correct in (True, False):
        adv, flags = torch_apgd.perturb(
            theirs,
            x,
            y,
            norm=norm,
            eps=eps,
            loss=loss,
            num_targets=3,
            num_steps=30,
            generator=torch.Generator().manual_seed(0),
            only_correct=only_correct,
        )
        np.testing.assert_array_equal(flags, robust)
        delta = (adv - x).flatten(1)
        size = delta.abs().amax(1) if norm == "linf" else delta.norm(dim=1)
        assert (size <= eps + 1e-9).all() and (size[~flags & (y != 0)] > 0).all()
        assert ((theirs(adv).argmax(1) == y) == flags).all()
    start = torch_apgd.random_start(torch.full((8, 3, 4, 4), 0.5), norm=norm, eps=0.1) - 0.5
    size = start.abs().flatten(1).amax(1) if norm == "linf" else start.flatten(1).norm(dim=1)
    np.testing.assert_allclose(size, 0.1, rtol=1e-5)
