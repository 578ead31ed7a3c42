"""The same networks and the same attack in PyTorch, as its users write them: what `attack_steps` runs beside ours.

Imported only where PyTorch is installed. Parameter names are those of `jrobust.weights.torch_layouts`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from jrobust.models.classifier import Classifier
from jrobust.models.resnet import ResNet
from jrobust.models.wide_resnet import WideResNet
from jrobust.weights.torch_layouts import to_torch

VARIANTS = ("torch", "channels_last", "compile", "compile_channels_last")


class Activation(nn.Module):
    """ReLU, or where `beta` is set the softplus that ART differentiates twice."""

    beta: float | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply it."""
        return F.relu(x) if self.beta is None else F.softplus(x, self.beta)


class WideBlock(nn.Module):
    """Pre-activation block; where the width changes, the shortcut sees the activated input."""

    def __init__(self, inputs: int, features: int, stride: int):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, features, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(features)
        self.conv2 = nn.Conv2d(features, features, 3, 1, 1, bias=False)
        self.convShortcut = nn.Conv2d(inputs, features, 1, stride, bias=False) if inputs != features else None
        self.act = Activation()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map [B, C, H, W] to [B, features, H / stride, W / stride]."""
        out = self.act(self.bn1(x))
        shortcut = x if self.convShortcut is None else self.convShortcut(out)
        return shortcut + self.conv2(self.act(self.bn2(self.conv1(out))))


class WideGroup(nn.Module):
    """Blocks of one width under the name `layer`."""

    def __init__(self, blocks: int, inputs: int, features: int, stride: int):
        super().__init__()
        rest = [WideBlock(features, features, 1) for _ in range(blocks - 1)]
        self.layer = nn.Sequential(WideBlock(inputs, features, stride), *rest)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply them."""
        return self.layer(x)


class WideNet(nn.Module):
    """WRN-d-k for 32x32 images."""

    def __init__(self, depth: int, width: int, num_classes: int):
        super().__init__()
        blocks, widths = (depth - 4) // 6, (16, 16 * width, 32 * width, 64 * width)
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.block1 = WideGroup(blocks, widths[0], widths[1], 1)
        self.block2 = WideGroup(blocks, widths[1], widths[2], 2)
        self.block3 = WideGroup(blocks, widths[2], widths[3], 2)
        self.bn1 = nn.BatchNorm2d(widths[3])
        self.fc = nn.Linear(widths[3], num_classes)
        self.act = Activation()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits [B, K] of normalised images [B, 3, H, W]."""
        x = self.block3(self.block2(self.block1(self.conv1(x))))
        return self.fc(self.act(self.bn1(x)).mean((2, 3)))


class BasicBlock(nn.Module):
    """The block of ResNet-18, after kuangliu's names."""

    def __init__(self, inputs: int, features: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, features, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(features)
        self.conv2 = nn.Conv2d(features, features, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(features)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != features:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, features, 1, stride, bias=False), nn.BatchNorm2d(features))
        self.act = Activation()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map [B, C, H, W] to [B, features, H / stride, W / stride]."""
        out = self.bn2(self.conv2(self.act(self.bn1(self.conv1(x)))))
        return self.act(out + self.shortcut(x))


class ResNet18(nn.Module):
    """ResNet-18 with the 3x3 stem for 32x32 images; `width` channels come out of the stem."""

    def __init__(self, num_classes: int, width: int = 64):
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1 = nn.Sequential(BasicBlock(width, width, 1), BasicBlock(width, width, 1))
        self.layer2 = nn.Sequential(BasicBlock(width, 2 * width, 2), BasicBlock(2 * width, 2 * width, 1))
        self.layer3 = nn.Sequential(BasicBlock(2 * width, 4 * width, 2), BasicBlock(4 * width, 4 * width, 1))
        self.layer4 = nn.Sequential(BasicBlock(4 * width, 8 * width, 2), BasicBlock(8 * width, 8 * width, 1))
        self.linear = nn.Linear(8 * width, num_classes)
        self.act = Activation()

    def maps(self, x: torch.Tensor) -> torch.Tensor:
        """Return the last maps [B, 8 width, H / 8, W / 8] of normalised images [B, 3, H, W]."""
        return self.layer4(self.layer3(self.layer2(self.layer1(self.act(self.bn1(self.conv1(x)))))))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits [B, K] of normalised images [B, 3, H, W]."""
        return self.linear(self.maps(x).mean((2, 3)))


class Normalized(nn.Module):
    """A network behind the normalisation of its images."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, net: nn.Module, mean: tuple[float, ...], std: tuple[float, ...]):
        super().__init__()
        self.net = net
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float64).reshape(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float64).reshape(1, -1, 1, 1))

    def normalize(self, images: torch.Tensor) -> torch.Tensor:
        """Return what the network sees of images in [0, 1]."""
        return (images - self.mean) / self.std

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return logits of images in [0, 1]."""
        return self.net(self.normalize(images))


def is_written(module: Any) -> bool:
    """Return whether there is a network here for a module of ours."""
    small = isinstance(module, ResNet) and module.stages == (2, 2, 2, 2) and module.stem == "cifar"
    return small or isinstance(module, WideResNet)


def port(classifier: Classifier, params: Any, batch_stats: Any) -> Normalized | None:
    """Return the same network with the same numbers, in inference mode; None if it is not written here."""
    module = classifier.module
    if not is_written(module):
        return None
    net: nn.Module
    if isinstance(module, WideResNet):
        net, layout = WideNet(module.depth, module.width, classifier.num_classes), "wide_resnet"
    else:
        net, layout = ResNet18(classifier.num_classes, module.width), "cifar_resnet"
    return load(net, layout, classifier, params, batch_stats).eval().requires_grad_(False)


def load(net: nn.Module, layout: str, classifier: Classifier, params: Any, batch_stats: Any) -> Normalized:
    """Return a network with the given numbers behind the classifier's normalisation."""
    weights = {name: torch.tensor(array) for name, array in to_torch(params, batch_stats, layout).items()}
    dtype = next(iter(weights.values())).dtype
    missing, surplus = net.to(dtype).load_state_dict(weights, strict=False)
    missing = [name for name in missing if not name.endswith("num_batches_tracked")]
    assert not missing and not surplus, (missing, surplus)
    return Normalized(net, classifier.mean, classifier.std).to(dtype)


def wide(x: torch.Tensor) -> torch.Tensor:
    """Return what autocast left in bfloat16 in float32."""
    return x.float() if x.dtype == torch.bfloat16 else x


def device(platform: str) -> str | None:
    """Return PyTorch's device for the platform JAX runs on; None if it has none, so that a comparison says nothing."""
    if platform == "cpu":
        return "cpu"
    return "cuda" if platform in ("gpu", "cuda", "rocm") and torch.cuda.is_available() else None


def pgd(
    model: Callable[[torch.Tensor], torch.Tensor],
    images: torch.Tensor,
    labels: torch.Tensor,
    start: torch.Tensor,
    *,
    eps: float,
    step_size: float,
    num_steps: int,
    autocast: bool = False,
) -> torch.Tensor:
    """Return the last iterate of Linf PGD on the cross-entropy; only the input is differentiated."""
    x = start
    for _ in range(num_steps):
        x = x.detach().requires_grad_()
        with torch.autocast(x.device.type, torch.bfloat16) if autocast else contextlib.nullcontext():
            logits = model(x)
        loss = F.cross_entropy(wide(logits), labels, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, x)
        x = x.detach() + step_size * gradient.sign()
        x = (images + (x - images).clamp(-eps, eps)).clamp(0, 1)
    return x.detach()


class Attack:
    """The attack on one network in one variant.

    Under bfloat16 the network runs in autocast, which like ours keeps parameters, statistics and loss in float32.
    """

    def __init__(self, model: nn.Module, variant: str, *, where: str, bfloat16: bool, num_steps: int):
        self.where, self.bfloat16, self.num_steps = where, bfloat16, num_steps
        self.layout = torch.channels_last if variant.endswith("channels_last") else torch.contiguous_format
        # As JAX does by default: TF32 in float32 products, and the fastest convolution for these shapes.
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
        torch.backends.cudnn.benchmark = True
        net: Any = model.to(where)
        net = net.to(memory_format=self.layout)
        self.forward: Any = torch.compile(net) if variant.startswith("compile") else net

    def program(
        self, images: np.ndarray, labels: np.ndarray, start: np.ndarray, *, eps: float, step_size: float
    ) -> Callable[[], torch.Tensor]:
        """Return the attack without arguments, its inputs on the device; a call ends when the device has ended."""
        x, x0 = self._place(images), self._place(start)
        y = torch.tensor(labels, dtype=torch.long, device=self.where)
        settings = {"eps": eps, "step_size": step_size}

        return self._waited(
            lambda: pgd(self.forward, x, y, x0, num_steps=self.num_steps, autocast=self.bfloat16, **settings)
        )

    def _waited(self, attack: Callable[[], torch.Tensor]) -> Callable[[], torch.Tensor]:
        def run() -> torch.Tensor:
            result = attack()
            if self.where == "cuda":
                torch.cuda.synchronize()
            return result

        return run

    def _place(self, array: np.ndarray) -> torch.Tensor:
        tensor = torch.tensor(array.transpose(0, 3, 1, 2), device=self.where)
        return tensor.contiguous(memory_format=self.layout)


def to_images(result: torch.Tensor) -> np.ndarray:
    """Return float32[B, H, W, C] on the host."""
    return result.permute(0, 2, 3, 1).float().cpu().numpy()
