"""Auto-PGD in eager PyTorch, written from the paper (Croce and Hein 2020, Alg. 1), to be run and timed beside ours.

Imported only where PyTorch is installed. Images are [B, C, H, W] in [0, 1], on the model's device and in its memory
format. Nothing in the loop waits for the device, so a GPU is kept busy. A model must be in inference mode, and its
parameters should not require gradients.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch.nn import functional as F

Model = Callable[[torch.Tensor], torch.Tensor]
Norm = str  # "linf" or "l2"
RHO, MOMENTUM = 0.75, 0.75


class Run(NamedTuple):
    """What a run found, one entry an example."""

    adv_images: torch.Tensor  # the last misclassified iterate; the start where there is none
    success: torch.Tensor
    best_images: torch.Tensor  # those of highest loss
    loss: torch.Tensor  # the highest loss
    step_size: torch.Tensor  # at the end


def cross_entropy(logits: torch.Tensor, labels: torch.Tensor, targets: torch.Tensor | None) -> torch.Tensor:
    """Return the cross-entropy, [B]."""
    return F.cross_entropy(logits, labels, reduction="none")


def dlr(logits: torch.Tensor, labels: torch.Tensor, targets: torch.Tensor | None) -> torch.Tensor:
    """Return the difference of logits ratio, [B]."""
    top = logits.topk(3, dim=1)
    own = logits.gather(1, labels[:, None])[:, 0]
    # The likeliest wrong class is the first, or where that is the label the second.
    wrong = torch.where(top.indices[:, 0] == labels, top.values[:, 1], top.values[:, 0])
    return (wrong - own) / (top.values[:, 0] - top.values[:, 2] + 1e-12)


def targeted_dlr(logits: torch.Tensor, labels: torch.Tensor, targets: torch.Tensor | None) -> torch.Tensor:
    """Return the targeted difference of logits ratio, [B]."""
    assert targets is not None
    top = logits.topk(4, dim=1).values
    own, aim = (logits.gather(1, classes[:, None])[:, 0] for classes in (labels, targets))
    return (aim - own) / (top[:, 0] - 0.5 * (top[:, 2] + top[:, 3]) + 1e-12)


LOSSES = {"ce": cross_entropy, "dlr": dlr, "targeted_dlr": targeted_dlr}


def attack_single_run(
    model: Model,
    images: torch.Tensor,
    labels: torch.Tensor,
    start: torch.Tensor,
    *,
    norm: Norm,
    eps: float,
    loss: str = "ce",
    targets: torch.Tensor | None = None,
    num_steps: int = 100,
    autocast: bool = False,
    observe: Callable[[torch.Tensor], None] | None = None,
) -> Run:
    """Run Auto-PGD from `start`; `observe` is called with the point at which each iteration leaves off."""
    objective = LOSSES[loss]

    def evaluate(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        x = x.detach().requires_grad_()
        with torch.autocast(x.device.type, torch.bfloat16) if autocast else contextlib.nullcontext():
            logits = model(x)
        logits = logits.to(x.dtype)
        values = objective(logits, labels, targets)
        (gradient,) = torch.autograd.grad(values.sum(), x)
        return values.detach(), logits.detach().argmax(1) != labels, gradient

    def project(x: torch.Tensor) -> torch.Tensor:
        if norm == "linf":
            return torch.minimum(torch.maximum(x, images - eps), images + eps).clamp(0, 1)
        delta = x - images
        length = _norm(delta)
        return (images + delta / (length + 1e-12) * length.clamp(max=eps)).clamp(0, 1)

    x = x_old = x_best = adv_images = start.clamp(0, 1)
    value, success, gradient = evaluate(x)
    gradient_best, loss_best, loss_checked = gradient, value, value
    value_before = torch.zeros_like(value)  # as the official code has it, and not the loss of the start
    increases = torch.zeros_like(value)
    reduced = torch.ones_like(success)
    step_size = torch.full_like(value, 2 * eps)
    window, least, shrink = (max(int(share * num_steps), 1) for share in (0.22, 0.06, 0.03))
    since_check = 0

    for i in range(num_steps):
        direction = gradient.sign() if norm == "linf" else gradient / (_norm(gradient) + 1e-12)
        a = MOMENTUM if i else 1.0
        ahead = project(x + _rows(step_size) * direction)
        x, x_old = project(x + (ahead - x) * a + (x - x_old) * (1 - a)), x
        value, wrong, gradient = evaluate(x)

        success = success | wrong
        adv_images = torch.where(_rows(wrong), x, adv_images)
        better = value > loss_best
        x_best = torch.where(_rows(better), x, x_best)
        gradient_best = torch.where(_rows(better), gradient, gradient_best)
        loss_best = torch.where(better, value, loss_best)
        increases += value > value_before
        value_before = value

        since_check += 1
        if since_check == window:
            reduced = (increases <= RHO * window) | (~reduced & (loss_checked >= loss_best))
            step_size = torch.where(reduced, step_size / 2, step_size)
            x = torch.where(_rows(reduced), x_best, x)
            gradient = torch.where(_rows(reduced), gradient_best, gradient)
            loss_checked, increases = loss_best, torch.zeros_like(increases)
            window, since_check = max(window - shrink, least), 0
        if observe:
            observe(x)
    return Run(adv_images, success, x_best, loss_best, step_size)


def random_start(
    images: torch.Tensor, *, norm: Norm, eps: float, generator: torch.Generator | None = None
) -> torch.Tensor:
    """Return a random point on the surface of the ball, cut to [0, 1]."""
    t = torch.empty_like(images)
    if norm == "linf":
        t.uniform_(-1, 1, generator=generator)
        t /= _rows(t.abs().flatten(1).amax(1))
    else:
        t.normal_(generator=generator)
        t /= _norm(t)
    return (images + eps * t).clamp(0, 1)


def perturb(
    model: Model,
    images: torch.Tensor,
    labels: torch.Tensor,
    *,
    norm: Norm,
    eps: float,
    loss: str = "ce",
    num_targets: int = 9,
    num_steps: int = 100,
    generator: torch.Generator | None = None,
    only_correct: bool = True,
    autocast: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attack from random starts; return the images, changed where that broke them, and which examples are robust.

    With the targeted loss there is one run for each of the `num_targets` likeliest wrong classes. `only_correct` leaves
    out images that are wrong already, from the outset or after the targets before, as the official code does.
    """
    with torch.no_grad():
        clean = model(images)
    robust, adv_images = clean.argmax(1) == labels, images.clone()
    targets = clean.argsort(1, descending=True)[:, 1 : num_targets + 1].T if loss.startswith("targeted") else [None]
    for target in targets:
        rows = robust.nonzero()[:, 0] if only_correct else torch.arange(len(images), device=images.device)
        if not len(rows):
            break
        x, y = images[rows], labels[rows]
        run = attack_single_run(
            model,
            x,
            y,
            random_start(x, norm=norm, eps=eps, generator=generator),
            norm=norm,
            eps=eps,
            loss=loss,
            targets=None if target is None else target[rows],
            num_steps=num_steps,
            autocast=autocast,
        )
        adv_images[rows] = torch.where(_rows(run.success), run.adv_images, adv_images[rows])
        robust[rows] = robust[rows] & ~run.success
    return adv_images, robust


def _rows(values: torch.Tensor) -> torch.Tensor:
    return values[:, None, None, None]


def _norm(images: torch.Tensor) -> torch.Tensor:
    return _rows(images.flatten(1).norm(dim=1))
