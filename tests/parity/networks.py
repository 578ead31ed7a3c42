"""Small networks in both frameworks, with the same numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jrobust.models import zoo
from jrobust.weights.torch_layouts import to_torch
from tests.attacks import toy

torch = pytest.importorskip("torch")
nn, F = torch.nn, torch.nn.functional


def torch_toy():
    w1, b1, w2, b2 = (torch.tensor(np.asarray(a)) for a in (toy.W1, toy.B1, toy.W2, toy.B2))
    return lambda x: torch.tanh((x.flatten(1) - 0.5) @ w1.T + b1) @ w2.T + b2


class TorchCNN(nn.Module):
    """The small network with stride, padding and batch norm, and its normalisation."""

    def __init__(self, width, mean, std):
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, 1, 1, bias=False)
        self.conv2 = nn.Conv2d(width, 2 * width, 3, 2, 1, bias=False)
        self.conv3 = nn.Conv2d(2 * width, 2 * width, 3, 1, 1, bias=False)
        self.bn1, self.bn2, self.bn3 = (nn.BatchNorm2d(w) for w in (width, 2 * width, 2 * width))
        self.fc = nn.Linear(2 * width, 10)
        self.mean, self.std = (torch.tensor(v, dtype=torch.float64).reshape(1, 3, 1, 1) for v in (mean, std))

    def forward(self, x):
        x = (x - self.mean) / self.std
        for conv, norm in ((self.conv1, self.bn1), (self.conv2, self.bn2), (self.conv3, self.bn3)):
            x = F.relu(norm(conv(x)))
        return self.fc(x.mean((2, 3)))


def conv_networks():
    """The same network in both, statistics far from 0 and 1, as functions images -> logits."""
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)
    section = {"name": "small_cnn", "width": 6, "dtype": "float64"}
    classifier = zoo.build(section, num_classes=10, input_shape=(8, 8, 3), mean=mean, std=std)
    rng = np.random.default_rng(1)
    params, stats = jax.tree.map(
        lambda a: jnp.asarray(np.asarray(a) + 0.3 * rng.uniform(size=a.shape)), classifier.init(jax.random.key(0))
    )
    theirs = TorchCNN(6, mean, std).double().eval()
    missing, surplus = theirs.load_state_dict(
        {name: torch.tensor(array) for name, array in to_torch(params, stats).items()}, strict=False
    )
    assert not surplus and all(name.endswith("num_batches_tracked") for name in missing)
    return lambda x: classifier.apply(params, stats, x).logits, theirs


NETWORKS = {"toy": lambda: (toy.logits, torch_toy()), "conv": conv_networks}


def nchw(array):
    return torch.tensor(np.asarray(array).transpose(0, 3, 1, 2).copy())


def nhwc(tensor):
    return tensor.detach().numpy().transpose(0, 2, 3, 1)
