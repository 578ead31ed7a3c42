"""The networks against PyTorch with the same numbers: logits, running statistics, input gradients, weight gradients."""

import dataclasses
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.nn import functional  # noqa: E402

from jrobust.models.classifier import Classifier  # noqa: E402
from jrobust.models.resnet import ResNet  # noqa: E402
from jrobust.models.wide_resnet import WideResNet  # noqa: E402
from jrobust.weights import arrays  # noqa: E402
from jrobust.weights.torch_layouts import LAYOUTS, from_torch, to_torch  # noqa: E402


class Activation(nn.Module):
    """Path R, or path P where `beta` is set."""

    beta = None

    def forward(self, x):
        return functional.relu(x) if self.beta is None else functional.softplus(x, beta=self.beta)


class Bottleneck(nn.Module):
    """torchvision's blocks, basic and bottleneck."""

    def __init__(self, c_in, width, stride, bottleneck):
        super().__init__()
        plan = [(c_in, width, 3, stride), (width, width, 3, 1)]
        if bottleneck:
            plan = [(c_in, width, 1, 1), (width, width, 3, stride), (width, 4 * width, 1, 1)]
        for i, (a, b, kernel, step) in enumerate(plan, start=1):
            self.add_module(f"conv{i}", nn.Conv2d(a, b, kernel, step, padding=kernel // 2, bias=False))
            self.add_module(f"bn{i}", nn.BatchNorm2d(b))
        self.act = Activation()
        self.count = len(plan)
        self.downsample = None
        if stride != 1 or c_in != b:
            self.downsample = nn.Sequential(nn.Conv2d(c_in, b, 1, stride, bias=False), nn.BatchNorm2d(b))

    def forward(self, x):
        out = x
        for i in range(1, self.count + 1):
            out = getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(self.act(out) if i > 1 else out))
        return self.act(out + (x if self.downsample is None else self.downsample(x)))


class TorchResNet(nn.Module):
    """torchvision's ResNet of any size."""

    def __init__(self, stages, width, bottleneck, last_stride, num_classes):
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.act = Activation()
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        c_in = width
        for i, blocks in enumerate(stages):
            stride = 1 if i == 0 else last_stride if i == len(stages) - 1 else 2
            layers = []
            for j in range(blocks):
                layers.append(Bottleneck(c_in, width * 2**i, stride if j == 0 else 1, bottleneck))
                c_in = width * 2**i * (4 if bottleneck else 1)
            self.add_module(f"layer{i + 1}", nn.Sequential(*layers))
        self.stages = len(stages)
        self.fc = nn.Linear(c_in, num_classes)

    def forward(self, x):
        x = self.maxpool(self.act(self.bn1(self.conv1(x))))
        for i in range(self.stages):
            x = getattr(self, f"layer{i + 1}")(x)
        return self.fc(x.mean((2, 3)))


class TorchWideBlock(nn.Module):
    """The pre-activation block of the released wide ResNets."""

    def __init__(self, c_in, c_out, stride):
        super().__init__()
        self.bn1, self.bn2 = nn.BatchNorm2d(c_in), nn.BatchNorm2d(c_out)
        self.conv1 = nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, 1, 1, bias=False)
        self.convShortcut = None if c_in == c_out else nn.Conv2d(c_in, c_out, 1, stride, bias=False)
        self.act = Activation()

    def forward(self, x):
        out = self.act(self.bn1(x))
        shortcut = x if self.convShortcut is None else self.convShortcut(out)
        return shortcut + self.conv2(self.act(self.bn2(self.conv1(out))))


class TorchWideResNet(nn.Module):
    """The released wide ResNets, under their names."""

    def __init__(self, depth, width, num_classes):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        c_in = 16
        for i in range(3):
            blocks = nn.Sequential()
            for j in range((depth - 4) // 6):
                blocks.append(TorchWideBlock(c_in, 16 * width * 2**i, 2 if i > 0 and j == 0 else 1))
                c_in = 16 * width * 2**i
            block = nn.Module()
            block.layer = blocks
            self.add_module(f"block{i + 1}", block)
        self.bn1 = nn.BatchNorm2d(c_in)
        self.act = Activation()
        self.fc = nn.Linear(c_in, num_classes)

    def forward(self, x):
        x = self.conv1(x)
        for block in (self.block1, self.block2, self.block3):
            x = block.layer(x)
        return self.fc(self.act(self.bn1(x)).mean((2, 3)))


CASES = {
    "wide_resnet": (
        lambda: TorchWideResNet(16, 1, 5),
        WideResNet(5, depth=16, width=1),
        16,
    ),
    "resnet18": (
        lambda: TorchResNet((2, 2, 2, 2), 8, False, 2, 5),
        ResNet(5, stages=(2, 2, 2, 2), width=8),
        64,
    ),
    "resnet50": (
        lambda: TorchResNet((3, 4, 6, 3), 4, True, 1, 5),
        ResNet(5, stages=(3, 4, 6, 3), width=4, bottleneck=True, last_stride=1),
        64,
    ),
}
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)


@dataclasses.dataclass
class Pair:
    """A network twice, with the same numbers, and images for it."""

    name: str
    network: nn.Module
    classifier: Classifier
    params: dict
    batch_stats: dict
    images: np.ndarray

    def torch_logits(self, x, train, beta):
        for module in self.network.modules():
            if isinstance(module, Activation):
                module.beta = beta
        self.network.train(train)
        mean, std = (torch.tensor(v).reshape(3, 1, 1) for v in (MEAN, STD))
        return self.network((x.permute(0, 3, 1, 2) - mean) / std)


@pytest.fixture(params=list(CASES), scope="module")
def pair(request):
    make, module, size = CASES[request.param]
    torch.manual_seed(0)
    network = make()
    with torch.no_grad():
        for layer in network.modules():
            if isinstance(layer, nn.BatchNorm2d):  # away from their start, so that a swap shows
                layer.weight.uniform_(0.5, 1.5)
                layer.bias.uniform_(-0.3, 0.3)
                layer.running_mean.uniform_(-0.3, 0.3)
                layer.running_var.uniform_(0.5, 1.5)
    classifier = Classifier(module, MEAN, STD, 5, (size, size, 3))
    shapes = jax.eval_shape(classifier.init, jax.random.key(0))
    state = {name: array.numpy().copy() for name, array in network.state_dict().items()}
    params, stats = from_torch(state, *shapes, source=request.param)
    images = np.random.default_rng(0).uniform(size=(4, size, size, 3)).astype(np.float32)
    return Pair(request.param, network, classifier, params, stats, images)


def relative(found, expected):
    found, expected = np.asarray(found), np.asarray(expected)
    return np.abs(found - expected).max() / np.abs(expected).max()


@pytest.mark.parametrize("beta", [None, 50.0])
def test_logits_in_evaluation(pair, beta):
    with torch.no_grad():
        expected = pair.torch_logits(torch.from_numpy(pair.images), False, beta).numpy()
    logits = jax.jit(lambda x: pair.classifier.apply(pair.params, pair.batch_stats, x, beta=beta).logits)(pair.images)
    np.testing.assert_allclose(logits, expected, atol=1e-5 * max(1, np.abs(expected).max()))
    assert expected.std() > 0.02


@pytest.mark.parametrize("beta", [None, 50.0])
def test_logits_and_running_statistics_in_training(pair, beta):
    before = {name: array.clone() for name, array in pair.network.state_dict().items()}
    sizes = {}  # numbers a channel, in each batch norm

    def note(name):
        return lambda layer, inputs: sizes.update({name: inputs[0].numel() // inputs[0].shape[1]})

    norms = [(name, layer) for name, layer in pair.network.named_modules() if isinstance(layer, nn.BatchNorm2d)]
    hooks = [layer.register_forward_pre_hook(note(name)) for name, layer in norms]
    with torch.no_grad():
        expected = pair.torch_logits(torch.from_numpy(pair.images), True, beta).numpy()
    after = {name: array.numpy().copy() for name, array in pair.network.state_dict().items()}
    for hook in hooks:
        hook.remove()
    pair.network.load_state_dict(before)

    @jax.jit
    def run(x):
        prediction = pair.classifier.apply(pair.params, pair.batch_stats, x, train=True, beta=beta)
        return prediction.logits, prediction.batch_stats

    logits, stats = run(pair.images)
    np.testing.assert_allclose(logits, expected, atol=1e-4 * max(1, np.abs(expected).max()))
    ours = to_torch(pair.params, stats, "wide_resnet" if pair.name == "wide_resnet" else "torchvision")
    assert norms
    for name, _ in norms:
        np.testing.assert_allclose(ours[f"{name}.running_mean"], after[f"{name}.running_mean"], atol=1e-5)
        # PyTorch keeps the unbiased variance: new = 0.9 old + 0.1 n / (n - 1) biased.
        old = before[f"{name}.running_var"].numpy()
        unbiased = (ours[f"{name}.running_var"] - 0.9 * old) * sizes[name] / (sizes[name] - 1) + 0.9 * old
        np.testing.assert_allclose(unbiased, after[f"{name}.running_var"], rtol=1e-4, atol=1e-5)


def test_gradient_of_the_input_gradient(pair):
    """d/dtheta sum(c * d logit_0 / dx) on path P in training: what a loss of attributions needs, max-pool included."""
    if pair.name == "resnet50":
        pytest.skip("covered by the smaller networks")
    weights = np.random.default_rng(1).normal(size=pair.images.shape).astype(np.float32)
    before = {name: array.clone() for name, array in pair.network.state_dict().items()}
    x = torch.from_numpy(pair.images).requires_grad_()
    gradient = torch.autograd.grad(pair.torch_logits(x, True, 50.0)[:, 0].sum(), x, create_graph=True)[0]
    named = {name: p for name, p in pair.network.named_parameters() if not name.startswith("fc.bias")}
    second = torch.autograd.grad((gradient * torch.from_numpy(weights)).sum(), list(named.values()))
    pair.network.load_state_dict(before)

    def score(params, x):
        return pair.classifier.apply(params, pair.batch_stats, x, train=True, beta=50.0).logits[:, 0].sum()

    @jax.jit
    def run(params):
        ours = jax.grad(score, argnums=1)(params, pair.images)
        return ours, jax.grad(lambda p: jnp.sum(weights * jax.grad(score, argnums=1)(p, pair.images)))(params)

    ours, ours_second = run(pair.params)
    assert relative(ours, gradient.detach()) < 1e-3
    layout = LAYOUTS["wide_resnet" if pair.name == "wide_resnet" else "torchvision"]
    found = to_torch(ours_second, {}, layout.name)
    assert not found.pop("fc.bias").any()
    for (name, _), expected in zip(named.items(), second, strict=True):
        assert relative(found[name], expected) < 5e-3, name


def test_exported_names_load_strictly_into_pytorch(pair):
    layout = "wide_resnet" if pair.name == "wide_resnet" else "torchvision"
    state = {name: torch.from_numpy(array) for name, array in to_torch(pair.params, pair.batch_stats, layout).items()}
    twin = CASES[pair.name][0]()
    twin.load_state_dict(state, strict=True)
    for name, array in pair.network.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            assert torch.equal(twin.state_dict()[name], array)


def test_the_advised_command_converts_an_archive(tmp_path):
    pytest.importorskip("safetensors.torch")
    layer = nn.Linear(3, 2)
    path = tmp_path / "weights.pth"
    torch.save({"state_dict": layer.state_dict()}, path)
    command = arrays.CONVERT.format(source=path, target=path.with_suffix(".safetensors"))
    subprocess.run(command.replace("python", sys.executable, 1), shell=True, check=True)
    found, _ = arrays.read(path.with_suffix(".safetensors"))
    np.testing.assert_array_equal(found["weight"], layer.weight.detach())
