"""FGSM and PGD against a plain PyTorch rewrite: every iterate in float64, from the same start, nothing random."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jrobust.attacks import cross_entropy, fgsm, l2, linf, pgd, untargeted
from tests.attacks import toy

torch = pytest.importorskip("torch")
F = torch.nn.functional

from tests.parity.networks import NETWORKS, nchw, nhwc  # noqa: E402

TOLERANCE = 1e-9
STEPS = 7


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


def iterates(logits_fn, images, labels, start, *, norm, eps, step_size, num_steps):
    """x_0 .. x_n as PyTorch packages compute them: box or ball around the images first, [0, 1] second."""
    x, found = start.clone(), [start]
    for _ in range(num_steps):
        x = x.detach().requires_grad_()
        (g,) = torch.autograd.grad(F.cross_entropy(logits_fn(x), labels, reduction="sum"), x)
        if norm == "linf":
            x = x.detach() + step_size * g.sign()
            x = torch.minimum(torch.maximum(x, images - eps), images + eps).clamp(0, 1)
        else:
            length = g.flatten(1).norm(dim=1)[:, None, None, None]
            delta = x.detach() + step_size * g / (length + 1e-10) - images
            distance = delta.flatten(1).norm(dim=1)[:, None, None, None]
            x = (images + delta * (eps / distance).clamp(max=1)).clamp(0, 1)
        found.append(x)
    return found


def problem(network):
    ours, theirs = NETWORKS[network]()
    images = toy.images()
    labels = jnp.argmax(ours(images), -1)
    np.testing.assert_allclose(ours(images), theirs(nchw(images)).detach(), rtol=0, atol=1e-12)
    return ours, theirs, images, labels


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("network", NETWORKS)
def test_pgd_iterates(network, norm):
    ours, theirs, images, labels = problem(network)
    eps, step_size = (0.03, 0.008) if norm == "linf" else (0.5, 0.15)
    # A start that is not the image, near the edge of the ball, and outside of it for some.
    start = jnp.clip(
        images + 1.2 * eps * (1 if norm == "linf" else 0.1) * jnp.sin(jnp.arange(images.size)).reshape(images.shape),
        0,
        1,
    )
    threat = linf(eps) if norm == "linf" else l2(eps)
    start = jax.vmap(threat.project)(start, images)
    expected = iterates(
        theirs,
        nchw(images),
        torch.tensor(np.asarray(labels)),
        nchw(start),
        norm=norm,
        eps=eps,
        step_size=step_size,
        num_steps=STEPS,
    )
    settings = {"threat": threat, "step_size": step_size, "num_steps": STEPS, "start": start, "unroll": False}

    def recorded(x, state):
        seen, t = state
        return cross_entropy(ours(x), labels), (seen.at[t].set(x), t + 1)

    @jax.jit
    def attack(x):
        empty = jnp.zeros((STEPS, *x.shape))
        return pgd(untargeted(ours, labels), x, **settings), pgd(recorded, x, state=(empty, 0), **settings)

    result, record = attack(images)
    for t, x in enumerate((*record.state[0], record.adv_images)):
        np.testing.assert_allclose(x, nhwc(expected[t]), rtol=0, atol=TOLERANCE, err_msg=f"iterate {t}")
    np.testing.assert_array_equal(result.adv_images, record.adv_images)
    logits = theirs(expected[-1]).detach()
    loss = F.cross_entropy(logits, torch.tensor(np.asarray(labels)), reduction="none")
    np.testing.assert_allclose(result.loss, loss, rtol=0, atol=TOLERANCE)
    np.testing.assert_array_equal(result.success, logits.argmax(1).numpy() != np.asarray(labels))
    moved = np.abs(nhwc(expected[-1]) - np.asarray(start)).max()
    assert moved > step_size / 2 and float(result.loss.mean()) > float(cross_entropy(ours(images), labels).mean())


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("network", NETWORKS)
def test_fgsm(network, norm):
    ours, theirs, images, labels = problem(network)
    threat = linf("8/255") if norm == "linf" else l2("0.5")
    result = fgsm(untargeted(ours, labels), images, threat=threat)
    x = nchw(images)
    expected = iterates(
        theirs,
        x,
        torch.tensor(np.asarray(labels)),
        x,
        norm=norm,
        eps=float(threat.eps),
        step_size=float(threat.eps),
        num_steps=1,
    )
    np.testing.assert_allclose(result.adv_images, nhwc(expected[1]), rtol=0, atol=TOLERANCE)
