"""torchvision's VGG16, narrow, in PyTorch and here: logits, gradients, the pooled grid, names."""

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from jrobust.models.classifier import Classifier  # noqa: E402
from jrobust.models.vgg import VGG, grid_means  # noqa: E402
from jrobust.weights.load import load  # noqa: E402
from jrobust.weights.torch_layouts import to_torch, write  # noqa: E402
from tests.parity.networks import nchw, nhwc  # noqa: E402

MEAN, STD = (0.48, 0.46, 0.41), (0.23, 0.22, 0.25)
PLAN = (1, 1, 0, 2, 2, 0, 4, 4, 4, 0, 8, 8, 8, 0, 8, 8, 8, 0)  # widths in units of the first; 0 is a max-pool


class TorchVGG(nn.Module):
    """VGG16 with its layers numbered as torchvision numbers them."""

    def __init__(self, width, hidden, grid, num_classes, beta=None):
        super().__init__()
        act = nn.ReLU if beta is None else lambda: nn.Softplus(beta)
        self.features, channels = nn.Sequential(), 3
        for factor in PLAN:
            if factor:
                self.features.append(nn.Conv2d(channels, factor * width, 3, padding=1)).append(act())
                channels = factor * width
            else:
                self.features.append(nn.MaxPool2d(2, 2))
        self.avgpool = nn.AdaptiveAvgPool2d(grid)
        sizes = (channels * grid**2, hidden, hidden, num_classes)
        self.classifier = nn.Sequential()
        for i in range(3):
            self.classifier.append(nn.Linear(sizes[i], sizes[i + 1]))
            if i < 2:
                self.classifier.append(act()).append(nn.Dropout(0.5))

    def forward(self, x):
        return self.classifier(torch.flatten(self.avgpool(self.features(x)), 1))


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """A file that PyTorch wrote, its network, ours with its numbers, and images whose last map is 2x3."""
    torch.manual_seed(0)
    network = TorchVGG(4, 12, 3, 5).eval()
    with torch.no_grad():
        for value in network.parameters():
            value.uniform_(-0.3, 0.3) if value.ndim == 1 else nn.init.kaiming_normal_(value)
    path = tmp_path_factory.mktemp("vgg") / "vgg.pth"
    torch.save(network.state_dict(), path)
    module = VGG(5, width=4, batch_norm=False, grid=3, hidden=12, dropout=0.5)
    classifier = Classifier(module, MEAN, STD, 5, (64, 96, 3))
    params, stats = load(path, classifier, *jax.eval_shape(classifier.init, jax.random.key(0)))
    assert stats == {}
    images = np.random.default_rng(0).uniform(size=(3, 64, 96, 3)).astype(np.float32)
    return network, classifier, params, images


@pytest.mark.parametrize("beta", [None, 50.0])
def test_logits_and_input_gradients(pair, beta):
    network, classifier, params, images = pair
    twin = TorchVGG(4, 12, 3, 5, beta).eval()
    twin.load_state_dict(network.state_dict())
    x = nchw((images - np.float32(MEAN)) / np.float32(STD)).float().requires_grad_()
    expected = twin(x)
    (gradient,) = torch.autograd.grad(expected[:, 1].sum(), x)

    @jax.jit
    def run(images):
        def score(images):
            logits = classifier.apply(params, {}, images, beta=beta).logits
            return logits[:, 1].sum(), logits

        return jax.grad(score, has_aux=True)(images)

    found, logits = run(images)
    expected, gradient = expected.detach().numpy(), nhwc(gradient) / np.float32(STD)
    assert expected.std() > 0.05
    np.testing.assert_allclose(logits, expected, atol=1e-5 * np.abs(expected).max())
    np.testing.assert_allclose(found, gradient, atol=1e-4 * np.abs(gradient).max())


@pytest.mark.parametrize("shape", [(14, 14), (7, 7), (10, 3), (1, 8)])
def test_the_grid_is_that_of_adaptive_pooling(shape):
    x = np.random.default_rng(1).normal(size=(2, *shape, 3)).astype(np.float32)
    np.testing.assert_allclose(grid_means(x, 7), nhwc(nn.AdaptiveAvgPool2d(7)(nchw(x))), atol=1e-6)


def test_written_names_load_strictly_into_pytorch(pair, tmp_path):
    network, classifier, params, _ = pair
    assert write(tmp_path / "vgg.safetensors", classifier, params, {}).name == "torchvision_vgg"
    twin = TorchVGG(4, 12, 3, 5)
    state = {name: torch.from_numpy(array.copy()) for name, array in to_torch(params, {}, "torchvision_vgg").items()}
    twin.load_state_dict(state, strict=True)
    for name, value in network.state_dict().items():
        assert torch.equal(twin.state_dict()[name], value), name
