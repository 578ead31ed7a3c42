"""Steps that fine-tune CLIP in PyTorch, as their public code takes them: what `paper_steps` runs beside ours.

Imported only where PyTorch is installed. What is computed, optimizer and mixed precision are those of the methods.

* pmg_aft: every forward pass encodes the texts of all classes again, the attack's backward pass reaches the weights
  too, and clean and adversarial images are passes of their own.
* masked_images (https://github.com/Coxy7/robust-finetuning): the relevance map has a forward pass of its own, in which
  all attention probabilities are kept, and a recursion over whole matrices; so 9 passes are worth one of ours of 8.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from benchmarks import torch_clip
from benchmarks.papers import Given
from benchmarks.torch_attack import wide


def _pair(classifier: Any, given: Given, where: str) -> tuple[torch_clip.CLIP, torch_clip.CLIP]:
    """Return the CLIP that is trained and the frozen one."""
    settings = classifier.clip.sizes, classifier.mean, classifier.std
    model, frozen = (torch_clip.port(params, *settings).to(where) for params in (given.params["whole"], given.frozen))
    return model, frozen.requires_grad_(False)


def _trained(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def _pmg_aft(classifier: Any, given: Given, where: str, draw: Any, x: torch.Tensor, y: torch.Tensor) -> Any:
    (model, original), numbers = _pair(classifier, given, where), given.method
    texts, eps = torch.tensor(given.texts, dtype=torch.long, device=where), numbers["eps"]

    def divergence(reference: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        total = F.kl_div(F.log_softmax(wide(logits), 1), F.softmax(wide(reference), 1), reduction="sum")
        return total / (len(x) if numbers["reduction"] == "batchmean" else 1)

    def loss() -> torch.Tensor:
        delta = draw("start", lambda: x + torch.empty_like(x).uniform_(-eps, eps)).clamp(0, 1) - x
        for _ in range(numbers["num_steps"]):
            delta.requires_grad_()
            F.cross_entropy(wide(model(x + delta, texts)), y).backward()
            assert delta.grad is not None
            moved = (delta.detach() + numbers["step_size"] * delta.grad.sign()).clamp(-eps, eps)
            delta = moved.clamp(-x, 1 - x)
        model.zero_grad()
        adv, clean = model(x + delta, texts), model(x, texts)
        with torch.no_grad():
            reference = original(x + delta, texts)
        found = F.cross_entropy(wide(adv), y)
        found = found + numbers["general_weight"] * divergence(reference, adv)
        return found + numbers["clean_weight"] * divergence(clean, adv)

    return loss, _trained(model)


def _masked_images(classifier: Any, given: Given, where: str, draw: Any, x: torch.Tensor, y: torch.Tensor) -> Any:
    (model, teacher), numbers = _pair(classifier, given, where), given.method
    kernel, bias = (torch.tensor(given.params["head"][name], device=where) for name in ("kernel", "bias"))
    head = nn.Linear(len(kernel), len(bias)).to(kernel)
    head.weight.data, head.bias.data = kernel.T.contiguous(), bias

    def logits(features: torch.Tensor) -> torch.Tensor:
        return wide(head(F.normalize(features, dim=-1)))

    def relevance() -> torch.Tensor:
        attentions: list[torch.Tensor] = []
        score = logits(model.image_features(x, attentions)).gather(1, y[:, None]).sum()
        matrix = torch.eye(attentions[0].shape[-1], dtype=x.dtype, device=where)
        for kept, gradient in zip(attentions, torch.autograd.grad(score, attentions), strict=True):
            matrix = matrix + wide(gradient * kept.detach()).clamp(min=0).mean(1) @ matrix
        cam = matrix[:, 0, 1:]
        return cam / (cam.amax(1, keepdim=True) + 1e-8)

    def loss() -> torch.Tensor:
        grid = relevance().unflatten(1, (1, classifier.clip.patches(), -1))
        mask = F.interpolate(grid, x.shape[2:], mode="nearest") > numbers["threshold"]
        donors = x[draw("donors", lambda: torch.randperm(len(x), device=where))]
        masked = torch.where(mask, donors, x)
        with torch.no_grad():
            target = wide(teacher.image_features(masked))
        distance = F.mse_loss(wide(model.image_features(masked)), target)
        cross_entropy = F.cross_entropy(logits(model.image_features(x)), y)
        return cross_entropy + numbers["feature_weight"] * distance

    return loss, [*_trained(model), *head.parameters()]


LOSSES: dict[str, Callable] = {"pmg_aft": _pmg_aft, "masked_images": _masked_images}
