"""AT, TRADES and MART, with and without FSR, against a PyTorch re-derivation: the loss and every weight's gradient.

Float64, the same weights, the same perturbed images (here the starts of the attacks: those have tests of their own) and
the same mask noise. The reference is written as the released code of each method is: per-class KL, sorted
probabilities, feature maps of all parts, one call of the head for each.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jrobust import keys
from jrobust.methods.adversarial import Adversarial, near_start
from jrobust.methods.fsr import FSR
from jrobust.methods.mart import MART
from jrobust.methods.trades import TRADES
from jrobust.models import fsr, zoo

torch = pytest.importorskip("torch")
F = torch.nn.functional

N, CLASSES, SHAPE, WIDTH = 5, 4, (6, 6, 2), 3
MEAN, STD = (0.4, 0.5), (0.25, 0.5)
MAPS = {"fsr_block2": (2 * WIDTH, 3, 3), "fsr_block3": (2 * WIDTH, 3, 3)}  # channels, height, width
KEY = jax.random.key(3)
LABELS = np.array([0, 3, 1, 2, 0])
RTOL = 1e-9
ATTACK = {"eps": 0.1, "step_size": 0.1, "num_steps": 0}
# Of each method: its class, the part of the split key that each forward pass takes, and the loss in PyTorch.
METHODS = {
    "at": (functools.partial(Adversarial, **ATTACK), 3, {"adv": 2}),
    "trades": (functools.partial(TRADES, **ATTACK, kl_weight=6.0, start_noise=0.03), 4, {"clean": 1, "adv": 2}),
    "mart": (functools.partial(MART, **ATTACK, kl_weight=5.0, start_noise=0.03), 3, {"clean": 1, "adv": 2}),
}


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


def tensor(array):
    return torch.tensor(np.array(array))


def nchw(array):
    return tensor(np.asarray(array).transpose(0, 3, 1, 2))


class Reference:
    """The small network with two modules, in train mode, on a tree of PyTorch leaves."""

    def __init__(self, params):
        self.leaves = jax.tree.map(lambda leaf: tensor(leaf).requires_grad_(), params)

    @staticmethod
    def conv(x, layer, stride=1):
        return F.conv2d(x, layer["kernel"].permute(3, 2, 0, 1), stride=stride, padding=1)

    @staticmethod
    def norm(x, layer):
        return F.batch_norm(x, None, None, layer["scale"], layer["bias"], training=True, eps=1e-5)

    def stack(self, x, net):
        for i in (0, 1):
            x = F.relu(self.norm(self.conv(x, net[f"conv{i}"]), net[f"bn{i}"]))
        return self.conv(x, net["conv2"])

    def module(self, f, net, u, tau=0.1, e=1e-8):
        p = torch.sigmoid(self.stack(f, net["sep"]))
        g1, g0 = (-torch.log(-torch.log(v + e) + e) for v in (u[:, 0], u[:, 1]))
        keep, drop = (torch.exp((torch.log(v + e) + g) / (tau + e)) for v, g in ((p, g1), (1 - p, g0)))
        mask = keep / (keep + drop)
        robust, non_robust = mask * f, (1 - mask) * f
        recalibrated = non_robust + (1 - mask) * self.stack(non_robust, net["rec"])
        head = net["aux"]
        outputs = [F.linear(v.mean((2, 3)), head["kernel"].T, head["bias"]) for v in (robust, non_robust, recalibrated)]
        return robust + recalibrated, outputs

    def __call__(self, x, noise):
        """Return the logits and the auxiliary outputs of both modules."""
        w, seen = self.leaves, []
        x = (x - tensor(MEAN)[:, None, None]) / tensor(STD)[:, None, None]
        for i, stride in ((1, 1), (2, 2), (3, 1)):
            x = F.relu(self.norm(self.conv(x, w[f"conv{i}"], stride), w[f"bn{i}"]))
            if f"fsr_block{i}" in w:
                x, outputs = self.module(x, w[f"fsr_block{i}"], noise[f"fsr_block{i}"])
                seen.append(outputs)
        return F.linear(x.mean((2, 3)), w["fc"]["kernel"].T, w["fc"]["bias"]), seen


def base_loss(name, clean, adv, y):
    if name == "at":
        return F.cross_entropy(adv, y)
    if name == "trades":
        kl = F.kl_div(F.log_softmax(adv, dim=1), F.softmax(clean, dim=1), reduction="sum")
        return F.cross_entropy(clean, y) + 6.0 * kl / len(y)
    p_adv, p = F.softmax(adv, dim=1), F.softmax(clean, dim=1)
    top = torch.argsort(p_adv, dim=1)[:, -2:]
    other = torch.where(top[:, -1] == y, top[:, -2], top[:, -1])
    boosted = F.cross_entropy(adv, y) + F.nll_loss(torch.log(1.0001 - p_adv + 1e-12), other)
    kl = F.kl_div(torch.log(p_adv + 1e-12), p, reduction="none").sum(1)
    return boosted + 5.0 * (kl * (1.0000001 - p.gather(1, y[:, None])[:, 0])).mean()


def auxiliary_losses(logits, outputs, y):
    top = logits.detach().topk(2, dim=1).indices
    wrong = torch.where(top[:, 0] == y, top[:, 1], top[:, 0])
    separation = sum(F.cross_entropy(r, y) + F.cross_entropy(n, wrong) for r, n, _ in outputs) / len(outputs)
    return separation, sum(F.cross_entropy(c, y) for _, _, c in outputs) / len(outputs)


@pytest.fixture
def ours():
    """The network, weights away from their start, and a batch."""
    section = {"name": "small_cnn", "width": WIDTH, "dtype": "float64"}
    section["fsr"] = {"positions": ("block2", "block3"), "hidden": 4}
    classifier = zoo.build(section, num_classes=CLASSES, input_shape=SHAPE, mean=MEAN, std=STD)
    rng = np.random.default_rng(0)
    shapes, stats = jax.eval_shape(classifier.init, KEY)
    params = jax.tree.map(lambda leaf: jnp.asarray(0.6 * rng.normal(size=leaf.shape) + 0.1), shapes)
    stats = jax.tree.map(lambda leaf: jnp.asarray(rng.uniform(0.5, 1.5, leaf.shape)), stats)
    images = jnp.asarray(rng.uniform(0.2, 0.8, (N, *SHAPE)))
    return classifier, params, stats, {"image": images, "label": jnp.asarray(LABELS), "index": jnp.arange(N)}


@pytest.mark.parametrize("name", METHODS)
def test_loss_and_weight_gradients(name, ours):
    classifier, params, stats, batch = ours
    make, parts, passes = METHODS[name]
    base, split = make(classifier), jax.random.split(KEY, parts)

    @functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
    def step(weights):
        return jax.value_and_grad(FSR(classifier, base, *weights).loss, has_aux=True)(params, stats, batch, KEY)

    images, index = batch["image"], batch["index"]
    if name == "at":
        adv = base.perturb(params, stats, images, batch["label"], index, split[0], split[1])
    else:
        adv = near_start(images, split[0], index, 0.03)
    assert 0.01 < float(jnp.abs(adv - images).max()) <= 0.11 and float(adv.min()) > 0
    shown = {"adv": nchw(adv), "clean": nchw(images)}
    noise = {
        branch: {
            module: tensor(
                fsr.uniforms(keys.per_example(split[part], index), number, (2, *size[1:], size[0]), jnp.float64)
            ).permute(0, 1, 4, 2, 3)
            for (module, size), number in zip(MAPS.items(), (fsr.FIRST_NUMBER + 1, fsr.FIRST_NUMBER + 2), strict=True)
        }
        for branch, part in passes.items()
    }

    for weights in ((0.0, 0.0), (0.7, 1.5)):
        (loss, (_, metrics)), gradient = step(weights)
        theirs, y = Reference(params), tensor(LABELS)
        found = {branch: theirs(shown[branch], noise[branch]) for branch in passes}
        clean = found["clean"][0] if "clean" in found else None
        separation, recalibration = auxiliary_losses(*found["adv"], y)
        total = base_loss(name, clean, found["adv"][0], y) + weights[0] * separation + weights[1] * recalibration
        total.backward()
        assert float(metrics["separation_loss"]) == pytest.approx(separation.item(), rel=RTOL)
        assert float(metrics["recalibration_loss"]) == pytest.approx(recalibration.item(), rel=RTOL)
        assert float(loss) == pytest.approx(total.item(), rel=RTOL)
        scale = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(gradient))
        for (path, leaf), expected in zip(
            jax.tree_util.tree_leaves_with_path(gradient), jax.tree.leaves(theirs.leaves), strict=True
        ):
            wanted = np.zeros(leaf.shape) if expected.grad is None else expected.grad.numpy()
            np.testing.assert_allclose(leaf, wanted, rtol=0, atol=RTOL * scale, err_msg=str(path))
