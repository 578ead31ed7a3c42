"""Training steps of the papers in eager PyTorch, plainly as their public code takes them: what `paper_steps` runs.

Imported only where PyTorch is installed. A step gets augmented images that lie on the device; what it draws comes, in
its first call, from outside, so that its first loss can be compared with ours.

* pgd: adversarial training. The attack in inference mode, then a step in train mode.
* fsr: the same with the FSR module (https://github.com/wkim97/FSR), whose auxiliary head is called three times.
* biasadv: LfF with bias-adversarial images. There is no public code: written from the paper, after LfF's released code.
* pmg_aft, masked_images: benchmarks/torch_clip_steps.py.
* art: a double backward pass in each step of the attack and in the loss
  (https://github.com/nupurkmr9/Attributional-Robustness).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from benchmarks import torch_attack, torch_clip_steps
from benchmarks.papers import Given
from benchmarks.torch_attack import wide
from jrobust.models.classifier import Classifier

Draw = Callable[[str, Callable[[], torch.Tensor]], torch.Tensor]


class Separated(torch_attack.ResNet18):
    """ResNet-18 with an FSR module after its last block; `noise` is g1 - g0, None for the mask without."""

    def __init__(self, num_classes: int, width: int, tau: float):
        super().__init__(num_classes, width)
        self.tau, channels = tau, 8 * width
        self.separation = nn.ModuleDict({"sep_net": _conv_net(channels, 64)})
        self.recalibration = nn.ModuleDict({"rec_net": _conv_net(channels, 64)})
        self.aux = nn.Sequential(nn.Linear(channels, num_classes))
        self.noise: torch.Tensor | None = None
        self.seen: list[torch.Tensor] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits; `seen` has the auxiliary ones of f+, f- and the recalibrated f-."""
        f = self.maps(x)
        r = wide(self.separation["sep_net"](f))
        p = torch.sigmoid(r)
        score = torch.log(p + 1e-8) - torch.log(1 - p + 1e-8)
        mask = torch.sigmoid((score if self.noise is None else score + self.noise) / (self.tau + 1e-8))
        robust, rest = f * mask, f * (1 - mask)
        recalibrated = rest + (1 - mask) * self.recalibration["rec_net"](rest)
        self.seen = [wide(self.aux(part.mean((2, 3)))) for part in (robust, rest, recalibrated)]
        return self.linear((robust + recalibrated).mean((2, 3)))


def _conv_net(channels: int, hidden: int) -> nn.Sequential:
    def conv(inputs: int, outputs: int) -> nn.Conv2d:
        return nn.Conv2d(inputs, outputs, 3, 1, 1, bias=False)

    first = [conv(channels, hidden), nn.BatchNorm2d(hidden), nn.ReLU()]
    return nn.Sequential(*first, conv(hidden, hidden), nn.BatchNorm2d(hidden), nn.ReLU(), conv(hidden, channels))


def make_step(name: str, classifier: Any, given: Given, *, where: str, bfloat16: bool = False) -> Callable[[], float]:
    """Return what takes the next step, waits for it and returns its loss."""
    first = {key: _tensor(array, where) for key, array in given.draws.items()}

    def draw(key: str, fresh: Callable[[], torch.Tensor]) -> torch.Tensor:
        return first.pop(key) if key in first else fresh()

    x = _tensor(given.images, where)
    y = torch.tensor(given.labels, dtype=torch.long, device=where)
    loss, parameters = LOSSES[name](classifier, given, where, draw, x, y)
    optimizer, clip_norm = _optimizer(given.optimizer, parameters), given.optimizer.get("clip_norm", 0)

    def step() -> float:
        optimizer.zero_grad()
        with torch.autocast(where, torch.bfloat16, enabled=bfloat16):
            found = loss()
        found.backward()
        if clip_norm:
            nn.utils.clip_grad_norm_(parameters, clip_norm)
        optimizer.step()
        return float(found.detach())  # waits

    return step


def _pgd(classifier: Classifier, given: Given, where: str, draw: Draw, x: torch.Tensor, y: torch.Tensor) -> Any:
    model = _port(classifier, given.params, given.batch_stats, where)

    def loss() -> torch.Tensor:
        adv = _madry(model, given.method, draw, x, y)
        return F.cross_entropy(wide(model.train()(adv)), y)

    return loss, list(model.parameters())


def _fsr(classifier: Classifier, given: Given, where: str, draw: Draw, x: torch.Tensor, y: torch.Tensor) -> Any:
    net = Separated(classifier.num_classes, classifier.module.width, classifier.module.fsr.tau)
    model = torch_attack.load(net, "cifar_resnet", classifier, given.params, given.batch_stats).to(where)

    def fresh() -> torch.Tensor:
        u = torch.rand(2, len(x), net.linear.in_features, x.shape[2] // 8, x.shape[3] // 8, device=where)
        return torch.log(-torch.log(u[0] + 1e-8) + 1e-8) - torch.log(-torch.log(u[1] + 1e-8) + 1e-8)

    def loss() -> torch.Tensor:
        net.noise = None
        adv = _madry(model, given.method, draw, x, y)
        net.noise = draw("noise", fresh)
        logits = wide(model.train()(adv))
        robust, rest, recalibrated = net.seen
        wrong = _runner_up(logits, y)
        separation = F.cross_entropy(robust, y) + F.cross_entropy(rest, wrong)
        return F.cross_entropy(logits, y) + separation + F.cross_entropy(recalibrated, y)

    return loss, list(model.parameters())


def _biasadv(classifier: Classifier, given: Given, where: str, draw: Draw, x: torch.Tensor, y: torch.Tensor) -> Any:
    theta, phi = (
        _port(classifier, given.params[name], given.batch_stats[name], where) for name in ("debiased", "biased")
    )
    branch, attack = _with_own_norms(theta), given.method["biasadv"]
    q, alpha = given.method["q"], given.method["alpha"]
    tables = [torch.zeros(given.method["num_examples"], device=where) for _ in range(2)]
    classes = torch.full((given.method["num_examples"],), -1, dtype=torch.long, device=where)
    index = torch.arange(len(x), device=where)

    def difficulty(losses: torch.Tensor, table: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
        losses = losses.float()
        table[index] = torch.where(seen, alpha * table[index] + (1 - alpha) * losses, losses)
        highest = torch.stack([table[classes == label].max() for label in y.tolist()])
        return table[index] / highest

    def perturb() -> torch.Tensor:
        theta.eval(), phi.eval(), branch.eval()
        adv = x
        for _ in range(attack["num_steps"]):
            adv = adv.detach().requires_grad_()
            gain = F.cross_entropy(wide(phi(adv)), y, reduction="sum")
            gain = gain - attack["debiased_weight"] * F.cross_entropy(wide(branch(adv)), y, reduction="sum")
            adv = adv.detach() + attack["step_size"] * torch.autograd.grad(gain, adv)[0].sign()
            adv = (x + (adv - x).clamp(-attack["eps"], attack["eps"])).clamp(0, 1)
        return adv.detach()

    def loss() -> torch.Tensor:
        adv = perturb()
        theta.train(), phi.train(), branch.train()
        debiased = F.cross_entropy(wide(theta(x)), y, reduction="none")
        biased = F.cross_entropy(wide(phi(x)), y, reduction="none")
        seen = classes[index] >= 0
        classes[index] = y
        d, b = (difficulty(v.detach(), t, seen) for v, t in zip((debiased, biased), tables, strict=True))
        weights = b / (b + d + 1e-8)
        own = F.cross_entropy(wide(branch(adv)), y, reduction="none")
        general = q * torch.exp(-q * biased).detach() * biased
        return (weights * debiased + general + attack["adv_weight"] * (1 - weights) * own).mean()

    return loss, list({id(p): p for net in (theta, branch, phi) for p in net.parameters()}.values())


def _art(classifier: Classifier, given: Given, where: str, draw: Draw, x: torch.Tensor, y: torch.Tensor) -> Any:
    model, numbers = _port(classifier, given.params, given.batch_stats, where).train(), given.method
    activations = [module for module in model.modules() if isinstance(module, torch_attack.Activation)]

    def gradients(images: torch.Tensor, labels: torch.Tensor, beta: float | None) -> list[torch.Tensor]:
        for activation in activations:
            activation.beta = beta
        logits = wide(model(images))
        picked = [logits.gather(1, i[:, None]).sum() for i in (labels, _runner_up(logits, labels))]
        return [torch.autograd.grad(value, images, create_graph=True)[0] for value in picked]

    def distance(u: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return 1 - F.cosine_similarity(u.flatten(1), v.flatten(1))

    def perturb() -> torch.Tensor:
        adv = draw("start", lambda: x + torch.empty_like(x).uniform_(-numbers["eps"], numbers["eps"])).clamp(0, 1)
        adv = adv.detach().requires_grad_()
        salient = gradients(adv, y, None)[0].detach().abs().flatten(1).topk(numbers["mask_size"]).indices
        mask = torch.zeros_like(x).flatten(1).scatter_(1, salient, 1.0).view_as(x)
        for _ in range(numbers["num_steps"]):
            adv = adv.detach().requires_grad_()
            true, other = gradients(adv, y, numbers["beta"])
            anchor = model.normalize(adv) * mask
            gain = F.softplus(distance(true * mask, anchor) - distance(other * mask, anchor)).sum()
            adv = adv.detach() + numbers["step_size"] * torch.autograd.grad(gain, adv)[0].sign()
            adv = (x + (adv - x).clamp(-numbers["eps"], numbers["eps"])).clamp(0, 1)
        return adv.detach()

    def loss() -> torch.Tensor:
        adv, count = perturb(), len(x)
        both = torch.cat([x, adv]).requires_grad_()
        true, other = (g * model.std for g in gradients(both, torch.cat([y, y]), numbers["beta"]))
        anchors = model.normalize(both).detach()
        positive = torch.maximum(distance(true, anchors), distance(true.roll(count, 0), anchors))
        negative = torch.minimum(distance(other, anchors), distance(other.roll(count, 0), anchors))
        for activation in activations:
            activation.beta = None
        cross_entropy = F.cross_entropy(wide(model(adv)), y)
        return cross_entropy + numbers["attribution_weight"] * F.softplus(positive - negative).mean()

    return loss, list(model.parameters())


LOSSES: dict[str, Callable] = {"pgd": _pgd, "fsr": _fsr, "biasadv": _biasadv, "art": _art} | torch_clip_steps.LOSSES


def _madry(
    model: torch_attack.Normalized, numbers: Mapping[str, Any], draw: Draw, x: torch.Tensor, y: torch.Tensor
) -> torch.Tensor:
    """Return PGD's last iterate from a random start, in inference mode."""
    eps = numbers["eps"]
    start = draw("start", lambda: x + torch.empty_like(x).uniform_(-eps, eps)).clamp(0, 1)
    settings = {"eps": eps, "step_size": numbers["step_size"], "num_steps": numbers["num_steps"]}
    return torch_attack.pgd(model.eval(), x, y, start, **settings)


def _runner_up(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the wrong class of largest logit."""
    return logits.detach().scatter(1, labels[:, None], -torch.inf).argmax(1)


def _port(classifier: Classifier, params: Any, batch_stats: Any, where: str) -> torch_attack.Normalized:
    found = torch_attack.port(classifier, params, batch_stats)
    assert found is not None
    return found.to(where).requires_grad_(True)


def _with_own_norms(net: torch_attack.Normalized) -> torch_attack.Normalized:
    """Return a twin that shares all weights but those of the batch norms, of which it has copies."""
    twin = copy.deepcopy(net)
    for name, module in net.named_modules():
        if not isinstance(module, nn.BatchNorm2d):
            for key, parameter in module._parameters.items():
                setattr(twin.get_submodule(name), key, parameter)
    return twin


def _optimizer(section: Mapping[str, Any], parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    rate, decay = section["learning_rate"], section["weight_decay"]
    if section["name"] == "adam":
        return torch.optim.Adam(parameters, rate, weight_decay=decay)
    if section["name"] == "adamw":
        return torch.optim.AdamW(parameters, rate, section["betas"], section["epsilon"], weight_decay=decay)
    momentum, nesterov = section["momentum"], section["nesterov"]
    return torch.optim.SGD(parameters, rate, momentum, weight_decay=decay, nesterov=nesterov)


def _tensor(array: np.ndarray, where: str) -> torch.Tensor:
    """Return an array on the device, [B, C, H, W] of images [B, H, W, C]."""
    return torch.tensor(np.array(np.moveaxis(array, -1, 1) if array.ndim == 4 else array, order="C"), device=where)
