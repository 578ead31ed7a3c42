"""FSR and the networks it was published with against PyTorch, written anew: same weights, same noise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.nn import functional  # noqa: E402

from jrobust.models import fsr  # noqa: E402
from jrobust.models.classifier import Classifier  # noqa: E402
from jrobust.models.fsr import Separation  # noqa: E402
from jrobust.models.resnet import ResNet  # noqa: E402
from jrobust.models.vgg import VGG  # noqa: E402
from jrobust.models.wide_resnet import WideResNet  # noqa: E402
from jrobust.weights.torch_layouts import from_torch, to_torch  # noqa: E402

CLASSES, EPSILON, TAU = 5, 1e-8, 0.1


def conv3(c_in, c_out, stride=1, bias=False):
    return nn.Conv2d(c_in, c_out, 3, stride, 1, bias=bias)


class TorchFSR(nn.Module):
    """What every network here has: the modules under their published names, and the separation as it is defined."""

    def add_modules(self, channels, hidden):
        stack = lambda: nn.Sequential(
            conv3(channels, hidden), nn.BatchNorm2d(hidden), nn.ReLU(),
            conv3(hidden, hidden), nn.BatchNorm2d(hidden), nn.ReLU(), conv3(hidden, channels),
        )  # fmt: skip
        self.separation, self.recalibration = nn.Module(), nn.Module()
        self.separation.sep_net, self.recalibration.rec_net = stack(), stack()
        self.aux = nn.Sequential(nn.Linear(channels, CLASSES))

    def separate(self, f):
        probability = torch.sigmoid(self.separation.sep_net(f))
        gumbel = lambda u: -torch.log(-torch.log(u + EPSILON) + EPSILON)
        u1, u0 = (torch.full_like(f, 0.5),) * 2 if self.uniforms is None else self.uniforms
        keep = (torch.log(probability + EPSILON) + gumbel(u1)) / (TAU + EPSILON)
        drop = (torch.log(1 - probability + EPSILON) + gumbel(u0)) / (TAU + EPSILON)
        mask = torch.softmax(torch.stack([keep, drop]), 0)[0]
        robust, non_robust = mask * f, (1 - mask) * f
        recalibrated = non_robust + (1 - mask) * self.recalibration.rec_net(non_robust)
        self.seen = [self.aux(part.mean((2, 3))) for part in (robust, non_robust, recalibrated)]
        self.seen.append(mask.permute(0, 2, 3, 1))
        return robust + recalibrated


class TorchResNet18(TorchFSR):
    """The CIFAR ResNet-18 under kuangliu's names."""

    def __init__(self, width, hidden):
        super().__init__()
        self.conv1, self.bn1 = conv3(3, width), nn.BatchNorm2d(width)
        c_in = width
        for i in range(4):
            blocks = []
            for stride in (1 if i == 0 else 2, 1):
                block, c_out = nn.Module(), width * 2**i
                block.conv1, block.bn1 = conv3(c_in, c_out, stride), nn.BatchNorm2d(c_out)
                block.conv2, block.bn2 = conv3(c_out, c_out), nn.BatchNorm2d(c_out)
                if stride == 2:
                    shortcut = nn.Conv2d(c_in, c_out, 1, stride, bias=False)
                    block.shortcut = nn.Sequential(shortcut, nn.BatchNorm2d(c_out))
                blocks.append(block)
                c_in = c_out
            self.add_module(f"layer{i + 1}", nn.Sequential(*blocks))
        self.linear = nn.Linear(c_in, CLASSES)
        self.add_modules(c_in, hidden)

    def forward(self, x):
        x = functional.relu(self.bn1(self.conv1(x)))
        for block in (*self.layer1, *self.layer2, *self.layer3, *self.layer4):
            out = block.bn2(block.conv2(functional.relu(block.bn1(block.conv1(x)))))
            x = functional.relu(out + (block.shortcut(x) if hasattr(block, "shortcut") else x))
        return self.linear(self.separate(x).mean((2, 3)))


class TorchVGG16(TorchFSR):
    """VGG16 for CIFAR under the names of FSR's released code."""

    def __init__(self, width, hidden):
        super().__init__()
        c_in = 3
        for i, (count, factor) in enumerate([(2, 1), (2, 2), (3, 4), (3, 8), (3, 8)]):
            layers = []
            for _ in range(count):
                layers += [conv3(c_in, factor * width, bias=True), nn.BatchNorm2d(factor * width), nn.ReLU()]
                c_in = factor * width
            self.add_module(f"block{i}", nn.Sequential(*layers))
        linear = lambda out=c_in: nn.Linear(c_in, out)
        self.classifier = nn.Sequential(linear(), nn.ReLU(), linear(), nn.ReLU(), linear(CLASSES))
        self.add_modules(c_in, hidden)

    def forward(self, x):
        for i in range(5):
            x = getattr(self, f"block{i}")(x)
            x = functional.max_pool2d(self.separate(x) if i == 3 else x, 2)
        return self.classifier(x.mean((2, 3)))


class TorchWRN10(TorchFSR):
    """A wide ResNet of depth 10 under TRADES' names, its unused copy of the first group included."""

    def __init__(self, width, hidden):
        super().__init__()
        self.conv1 = conv3(3, 16)
        plan = [("block1", 16, width, 1), ("sub_block1", 16, width, 1)]
        plan += [("block2", width, 2 * width, 2), ("block3", 2 * width, 4 * width, 2)]
        for name, c_in, c_out, stride in plan:
            block, group = nn.Module(), nn.Module()
            block.bn1, block.conv1 = nn.BatchNorm2d(c_in), conv3(c_in, c_out, stride)
            block.bn2, block.conv2 = nn.BatchNorm2d(c_out), conv3(c_out, c_out)
            if c_in != c_out:
                block.convShortcut = nn.Conv2d(c_in, c_out, 1, stride, bias=False)
            group.layer = nn.Sequential(block)
            self.add_module(name, group)
        self.bn1, self.fc = nn.BatchNorm2d(4 * width), nn.Linear(4 * width, CLASSES)
        self.add_modules(4 * width, hidden)

    def forward(self, x):
        x = self.conv1(x)
        for group in (self.block1, self.block2, self.block3):
            block = group.layer[0]
            before = functional.relu(block.bn1(x))
            out = block.conv2(functional.relu(block.bn2(block.conv1(before))))
            x = out + (block.convShortcut(before) if hasattr(block, "convShortcut") else x)
        return self.fc(self.separate(functional.relu(self.bn1(x))).mean((2, 3)))


MODULE = {"resnet18": "fsr_block4", "vgg16": "fsr_block4", "wrn": "fsr_block3"}


def pair(name, width, dtype):
    """A network twice with the same numbers: PyTorch's, and our classifier with its variables."""
    torch.manual_seed(0)
    hidden = max(4, width)
    theirs = {"resnet18": TorchResNet18, "vgg16": TorchVGG16, "wrn": TorchWRN10}[name](width, hidden)
    with torch.no_grad():
        for layer in theirs.modules():
            if isinstance(layer, nn.BatchNorm2d):  # away from their start, so that a swap shows
                for tensor, low, high in (
                    (layer.weight, 0.7, 1.3), (layer.bias, -0.2, 0.4),
                    (layer.running_mean, -0.2, 0.2), (layer.running_var, 0.5, 1.5),
                ):  # fmt: skip
                    tensor.uniform_(low, high)
            elif isinstance(layer, nn.Conv2d | nn.Linear) and width < 64:  # the published width starts as published
                nn.init.kaiming_normal_(layer.weight, nonlinearity="linear")
        theirs.separation.sep_net[6].weight.mul_(0.3)  # scores of the size of tau: a mask between 0 and 1
    theirs = theirs.to(getattr(torch, dtype))
    settings = Separation((MODULE[name].removeprefix("fsr_"),), hidden)
    module = {
        "resnet18": lambda: ResNet(CLASSES, (2, 2, 2, 2), width, stem="cifar", dtype=dtype, fsr=settings),
        "vgg16": lambda: VGG(CLASSES, width, dtype=dtype, fsr=settings),
        "wrn": lambda: WideResNet(CLASSES, depth=10, width=width // 16, dtype=dtype, fsr=settings),
    }[name]()
    ours = Classifier(module, (0.0,) * 3, (1.0,) * 3, CLASSES, (32, 32, 3))
    state = {name: array.numpy() for name, array in theirs.state_dict().items()}
    return theirs, ours, *from_torch(state, *jax.eval_shape(ours.init, jax.random.key(0)), source=name)


def compare(monkeypatch, name, width, dtype, tolerance, *, train=False, noisy=True, size=3):
    """Hold logits, mask, auxiliary logits, and in float64 their gradient by the image, against PyTorch's."""
    generator = np.random.default_rng(0)
    images = generator.uniform(size=(size, 32, 32, 3)).astype(dtype)
    theirs, ours, params, stats = pair(name, width, dtype)
    x = torch.from_numpy(images).permute(0, 3, 1, 2).requires_grad_()
    side, channels = (8, 4 * width) if name == "wrn" else (4, 8 * width)
    drawn = generator.uniform(size=(size, 2, side, side, channels)).astype(dtype)
    theirs.uniforms = torch.from_numpy(drawn).permute(1, 0, 4, 2, 3) if noisy else None
    theirs.train(train)
    logits = theirs(x)
    weight = lambda output: torch.from_numpy(np.cos(np.arange(output.numel())).astype(dtype)).reshape(output.shape)
    sum(torch.sum(output * weight(output)) for output in (logits, *theirs.seen)).backward()

    monkeypatch.setattr(fsr, "uniforms", lambda keys, number, shape, dtype: jnp.asarray(drawn))
    mode = "sample" if noisy else "mean"

    def run(x):
        out = ours.apply(params, stats, x, train=train, mask_mode=mode, intermediates=True)
        outputs = [out.logits, *out.intermediates[MODULE[name]]]
        score = sum(jnp.sum(output * jnp.cos(jnp.arange(output.size)).reshape(output.shape)) for output in outputs)
        return score, outputs

    if dtype == "float64":
        gradient, outputs = jax.jit(jax.grad(run, has_aux=True))(jnp.asarray(images))
        expected = x.grad.permute(0, 2, 3, 1).numpy()
        np.testing.assert_allclose(gradient, expected, rtol=0, atol=tolerance * np.abs(expected).max())
    else:
        outputs = jax.jit(run)(jnp.asarray(images))[1]
    for found, expected in zip(outputs, (logits, *theirs.seen), strict=True):
        expected = expected.detach().numpy()
        assert found.dtype == expected.dtype == dtype
        np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * max(1, np.abs(expected).max()))
    mask = np.asarray(outputs[-1])
    assert np.mean((mask > 0.01) & (mask < 0.99)) > 0.1 and np.std(logits.detach().numpy()) > 0.02


@pytest.mark.parametrize("name", ["resnet18", "vgg16", "wrn"])
def test_networks_in_float64(monkeypatch, name):
    with jax.enable_x64(True):
        compare(monkeypatch, name, 16 if name == "wrn" else 4, "float64", 1e-9, train=name == "vgg16")


def test_resnet18_as_published_in_float32(monkeypatch):
    compare(monkeypatch, "resnet18", 64, "float32", 1e-5, noisy=False, size=1)


@pytest.mark.parametrize("name", ["vgg16", "wrn"])
def test_networks_in_float32(monkeypatch, name):
    compare(monkeypatch, name, 16 if name == "wrn" else 4, "float32", 1e-5)


def test_written_names_load_strictly_into_pytorch():
    for name, width, layout in (("resnet18", 2, "cifar_resnet"), ("vgg16", 2, "vgg"), ("wrn", 16, "wide_resnet")):
        theirs, _, params, stats = pair(name, width, "float32")
        state = {key: torch.from_numpy(array) for key, array in to_torch(params, stats, layout).items()}
        ignored = [key for key in theirs.state_dict() if key.startswith("sub_block1") or key.endswith("tracked")]
        assert set(state) == set(theirs.state_dict()) - set(ignored)
        missing = theirs.load_state_dict(state, strict=False)
        assert not missing.unexpected_keys and set(missing.missing_keys) <= set(ignored)
