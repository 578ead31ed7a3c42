"""Targeted FAB in eager PyTorch, as its users run it: what the attack in `jrobust.attacks.fab` is compared with.

Images are [B, C, H, W]; everything happens in their dtype, on their device. Imported only where PyTorch is installed.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

Model = Callable[[torch.Tensor], torch.Tensor]


def moves_to_plane(points: torch.Tensor, normals: torch.Tensor, offsets: torch.Tensor, norm: str) -> torch.Tensor:
    """Return the shortest moves [N, D] of points [N, D] onto {u: <w, u> = b} inside [0, 1]^D."""
    excess = (normals * points).sum(1) - offsets
    w = torch.where(excess < 0, -1.0, 1.0).to(points)[:, None] * normals
    steep = w.abs()
    if norm == "l2":
        steep = torch.where(steep > 1e-8, steep, 0)
    room = torch.where(w > 0, points, 1 - points).masked_fill(steep == 0, 0)
    pace = torch.ones_like(steep) if norm == "linf" else steep  # of a coordinate, as the multiplier grows

    arrival, order = (room / pace.clamp_min(torch.finfo(pace.dtype).tiny)).sort(1)
    rate = (steep * pace).gather(1, order)
    gained = (arrival * rate).cumsum(1)
    running = rate.flip(1).cumsum(1).flip(1)
    still = torch.cat([running[:, 1:], torch.zeros_like(running[:, :1])], 1)
    last = torch.searchsorted(gained + arrival * still, excess.abs()[:, None])  # coordinates that have arrived

    out_of_reach = last == rate.shape[1]
    before = torch.cat([torch.zeros_like(gained[:, :1]), gained], 1).gather(1, last)
    speed = torch.cat([running, torch.ones_like(running[:, :1])], 1).gather(1, last)
    multiplier = (excess.abs()[:, None] - before) / speed.clamp_min(torch.finfo(speed.dtype).tiny)
    return -w.sign() * torch.where(out_of_reach, room, torch.minimum(multiplier * pace, room))


def run(
    model: Model,
    images: torch.Tensor,
    labels: torch.Tensor,
    targets: torch.Tensor,
    *,
    norm: str,
    num_steps: int = 100,
    alpha_max: float = 0.1,
    overshoot: float = 1.05,
    backward: float = 0.9,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the nearest misclassified points of one run from the images, and how far they are: infinity where none."""
    best, distance, x = images.clone(), torch.full_like(images[:, 0, 0, 0], torch.inf), images.clone()
    shape, column = images.shape, (-1, 1, 1, 1)
    for _ in range(num_steps):
        x.requires_grad_()
        logits = model(x)
        gap = (logits.gather(1, targets[:, None]) - logits.gather(1, labels[:, None]))[:, 0]
        (w,) = torch.autograd.grad(gap.sum(), x)
        with torch.no_grad():
            x = x.detach()
            offsets = (w * x).flatten(1).sum(1) - gap
            both = torch.cat([x.flatten(1), images.flatten(1)])
            moves = moves_to_plane(both, w.flatten(1).repeat(2, 1), offsets.repeat(2), norm)
            near, far = length(moves, norm).clamp_min(1e-8).chunk(2)
            alpha = (near / (near + far)).clamp(max=alpha_max).reshape(column)
            move, image_move = (m.reshape(shape) for m in moves.chunk(2))
            x = (x + overshoot * move) * (1 - alpha) + (images + overshoot * image_move) * alpha
            x = x.clamp(0, 1)

            wrong = model(x).argmax(1) != labels
            reach = length((x - images).flatten(1), norm)
            better = wrong & (reach < distance)
            best = torch.where(better.reshape(column), x, best)
            distance = torch.where(better, reach, distance)
            x = torch.where(wrong.reshape(column), images + backward * (x - images), x)
    return best, distance


def fab(
    model: Model,
    images: torch.Tensor,
    labels: torch.Tensor,
    *,
    norm: str,
    eps: float,
    num_targets: int = 9,
    num_steps: int = 100,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return adversarial images and bool[B], which are broken, one target after the other on those still unbroken."""
    with torch.no_grad():
        logits = model(images)
    ranks = logits.argsort(1, descending=True)[:, 1 : num_targets + 1]
    broken, adv_images = logits.argmax(1) != labels, images.clone()
    for targets in ranks.T:
        rows = (~broken).nonzero()[:, 0]
        if not len(rows):
            break
        found, distance = run(model, images[rows], labels[rows], targets[rows], norm=norm, num_steps=num_steps)
        inside = distance <= eps
        broken[rows[inside]] = True
        adv_images[rows[inside]] = found[inside]
    return adv_images, broken


def length(rows: torch.Tensor, norm: str) -> torch.Tensor:
    """Return the norms of rows [N, D]."""
    return rows.abs().amax(1) if norm == "linf" else rows.norm(dim=1)
