"""Two steps of PMG-AFT on a small ViT against PyTorch in float64: the attack, the three losses, SGD with momentum.

The reference is written as the released code is: the perturbation apart from the image, KLDivLoss on log-probabilities,
texts of unit length. Its attack starts where ours does.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jrobust import keys, loops
from jrobust.attacks import linf
from jrobust.methods.pmg_aft import PMGAFT
from jrobust.models.clip import CLIP, Sizes
from jrobust.models.clip.clip import MEAN, STD
from jrobust.models.clip.zero_shot import ZeroShot
from jrobust.models.tree import flatten
from jrobust.training.method import Variables

torch = pytest.importorskip("torch")

from tests.parity.clip_networks import TorchCLIP, our_tree  # noqa: E402

functional = torch.nn.functional
SIZES = Sizes(8, 16, 64, 1, 8, text_width=64, text_layers=1, vocabulary=20, context=7)
B, CLASSES, SIDE, STEPS = 4, 3, 12, 2
EPS, STEP_SIZE = 8 / 255, 6 / 255
RTOL = 1e-9
PRESETS = {
    "released": {
        "scaled": False,
        "reduction": "sum",
        "rate": 1.0,
        "mean": (0.485, 0.456, 0.406),
        "std": (0.229, 0.224, 0.225),
    },
    "scaled": {"scaled": True, "reduction": "batchmean", "rate": 1e-2, "mean": MEAN, "std": STD},
}


def copy_of(network):
    """Another network with the same numbers."""
    twin = TorchCLIP(SIZES).double()
    twin.load_state_dict(network.state_dict())
    return twin


class Reference:
    """Fine-tuning of `network`, whose image tower is trained, near a frozen copy of it."""

    def __init__(self, network, texts, mean, std, *, scaled, reduction, rate):
        self.network, self.original = network, copy_of(network)
        self.texts = functional.normalize(torch.tensor(texts), dim=1)
        self.mean, self.std = (torch.tensor(a, dtype=torch.float64).reshape(3, 1, 1) for a in (mean, std))
        self.scale = 100.0 if scaled else 1.0
        self.kl = torch.nn.KLDivLoss(reduction=reduction)
        self.optimizer = torch.optim.SGD(network.visual.parameters(), lr=rate, momentum=0.9)

    def logits(self, network, images):
        x = functional.interpolate(images, (SIZES.image_size,) * 2, mode="bicubic", align_corners=False)
        features = network.visual((x - self.mean) / self.std)
        return self.scale * functional.normalize(features, dim=1) @ self.texts.T

    def attack(self, images, labels, start):
        delta = (start - images).requires_grad_()
        for _ in range(STEPS):
            loss = functional.cross_entropy(self.logits(self.network, images + delta), labels, reduction="sum")
            (gradient,) = torch.autograd.grad(loss, delta)
            assert gradient.abs().min() > 1e-12  # no sign is in doubt
            moved = torch.clamp(delta + STEP_SIZE * gradient.sign(), -EPS, EPS)
            delta = torch.clamp(moved, -images, 1 - images).detach().requires_grad_()
        return (images + delta).detach()

    def step(self, images, labels, start):
        """Return the three losses."""
        adv = self.attack(images, labels, start)
        output, clean = self.logits(self.network, adv), self.logits(self.network, images)
        with torch.no_grad():
            original = functional.softmax(self.logits(self.original, adv), dim=1)
        robust = functional.cross_entropy(output, labels)
        general = self.kl(functional.log_softmax(output, dim=1), original)
        regulariser = self.kl(functional.log_softmax(output, dim=1), functional.softmax(clean, dim=1))
        self.optimizer.zero_grad()
        (robust + 0.9 * general + 1.1 * regulariser).backward()
        self.optimizer.step()
        return [term.item() for term in (robust, general, regulariser)]


def nchw(array):
    return torch.from_numpy(np.array(array).transpose(0, 3, 1, 2))


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    network = TorchCLIP(SIZES).double()
    with torch.no_grad():  # away from their start, so that a swap shows
        for value in network.visual.parameters():
            if value.ndim == 1:
                value.add_(0.3 * torch.randn_like(value))
    return network


def batch(seed):
    rng = np.random.default_rng(seed)
    images = np.clip(rng.uniform(-0.1, 1.1, (B, SIDE, SIDE, 3)), 0, 1)
    index = rng.permutation(20)[:B].astype(np.int32)
    return {"image": images, "label": rng.integers(0, CLASSES, B).astype(np.int32), "index": index}


def ours(tree, texts, mean, std, *, scaled, reduction, rate):
    """Take a step a batch; yield the batch, the start of its attack, the three losses and the tower after it."""
    model = ZeroShot(CLIP(SIZES, "float64", mean=mean, std=std), CLASSES, (SIDE, SIDE, 3), scaled=scaled)
    method = PMGAFT(model, EPS, STEP_SIZE, STEPS, general_weight=0.9, clean_weight=1.1, reduction=reduction)
    tx = optax.sgd(rate, momentum=0.9)

    @jax.jit
    def step(params, state, opt_state, rows, key):
        (_, (state, metrics)), gradients = jax.value_and_grad(method.loss, has_aux=True)(params, state, rows, key)
        updates, opt_state = tx.update(gradients, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, metrics

    unit = jnp.asarray(texts / np.linalg.norm(texts, axis=1, keepdims=True))
    params, state = method.start_from(Variables(None, {}), lambda _: Variables(*model.pretrained(None, tree, unit)))
    opt_state = tx.init(params)
    for number in range(2):
        rows, key = batch(number), jax.random.key(number)
        starts = keys.per_example(jax.random.split(key)[0], rows["index"])
        start = jax.vmap(linf(EPS).random_start)(starts, rows["image"])
        params, opt_state, metrics = step(params, state, opt_state, rows, key)
        yield rows, start, [float(metrics[name]) for name in ("cross_entropy", "general", "regulariser")], params


@pytest.mark.parametrize("preset", PRESETS)
def test_two_steps(preset, network, monkeypatch):
    """The second is away from the original, and its momentum is not 0."""
    monkeypatch.setattr(loops, "unrolled", lambda unroll=None: False)  # compiles faster
    rng = np.random.default_rng(0)
    # With a scale of 100 alike, as CLIP's are.
    texts = rng.normal(size=8) + (0.1 if preset == "scaled" else 2) * rng.normal(size=(CLASSES, 8))
    theirs = Reference(copy_of(network), texts, **PRESETS[preset])
    with jax.enable_x64(True):
        tree = jax.tree.map(jnp.asarray, our_tree(network, SIZES))
        last = None
        for rows, start, found, params in ours(tree, texts, **PRESETS[preset]):
            assert np.abs(start - rows["image"]).max() > 0.9 * EPS
            last = theirs.step(nchw(rows["image"]), torch.from_numpy(rows["label"]).long(), nchw(start))
            assert found == pytest.approx(last, rel=RTOL, abs=1e-14)  # at the original the general term is 0
            before, after = (flatten(t["image"]) for t in (tree, our_tree(theirs.network, SIZES)))
            scale = max(np.abs(after[path] - before[path]).max() for path in after)
            assert scale > 1e-3
            found = flatten(params)
            assert set(found) == set(after)
            for path, leaf in found.items():
                np.testing.assert_allclose(leaf, after[path], rtol=0, atol=RTOL * scale, err_msg=path)
        assert min(last) > 1e-4  # every term has counted
