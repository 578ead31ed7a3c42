"""Square Attack in eager PyTorch, as its users run it: what the attack in `jrobust.attacks.square` is compared with.

As in the official AutoAttack the images of a batch share the windows of an iteration, and images leave the batch when
they are misclassified. Images are [B, C, H, W]. Imported only where PyTorch is installed.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import torch

Model = Callable[[torch.Tensor], torch.Tensor]


def square(
    model: Model,
    images: torch.Tensor,
    labels: torch.Tensor,
    *,
    norm: str,
    eps: float,
    num_queries: int = 5000,
    p_init: float = 0.8,
    generator: torch.Generator | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return adversarial images and bool[B], which are broken; `generator` is on the images' device."""
    search = _Search(images, eps, generator)
    with torch.no_grad():
        broken = model(images).argmax(1) != labels
        best = torch.where(broken[:, None, None, None], images, search.start(norm))
        margin = torch.where(broken, -1, _margin(model, best, labels))
        for i in range(num_queries):
            rows = (margin > 0).nonzero()[:, 0]
            if not len(rows):
                break
            side = window_side(i, images.shape[2], images.shape[3], p_init, norm)
            candidates = search.propose(norm, rows, best[rows], side)
            value = _margin(model, candidates, labels[rows])
            better = (value < margin[rows]) | (value <= 0)
            best[rows[better]], margin[rows[better]] = candidates[better], value[better]
        broken = model(best).argmax(1) != labels
    return torch.where(broken[:, None, None, None], best, images), broken


def window_side(i: int, height: int, width: int, p_init: float, norm: str) -> int:
    """Return the side of the window in iteration i."""
    share = p_init / 2 ** sum(i > bound for bound in (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000))
    side = max(round(math.sqrt(share * height * width)), 1 if norm == "linf" else 3)
    if norm == "l2" and side % 2 == 0:
        side += 1
    return min(side, height, width)


@functools.cache
def bump(side: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Return the hill and the valley, of length 1 together."""
    hill, valley = _pyramid(side // 2, side), _pyramid(side - side // 2, side)
    both = torch.cat([hill / _length(hill).clamp_min(1e-12), -valley / _length(valley)])
    return (both / _length(both)).to(device, dtype)


class _Search:
    """The random moves inside one ball around images."""

    def __init__(self, images: torch.Tensor, eps: float, generator: torch.Generator | None):
        self.images, self.eps, self.generator = images, eps, generator

    def start(self, norm: str) -> torch.Tensor:
        """Return stripes, or a grid of bumps."""
        count, channels, height, width = self.images.shape
        if norm == "linf":
            return (self.images + self.eps * self.signs(count, channels, 1, width)).clamp(0, 1)
        side = max(min(height, width) // 5, 1)
        delta = torch.zeros_like(self.images)
        top, left = (height - 5 * side) // 2, (width - 5 * side) // 2
        for row in range(top, top + 5 * side, side):
            for column in range(left, left + 5 * side, side):
                tile = self.bump(side) * self.signs(count, channels, 1, 1)
                delta[:, :, row : row + side, column : column + side] = tile
        return self.at_radius(self.images, delta)

    def propose(self, norm: str, rows: torch.Tensor, best: torch.Tensor, side: int) -> torch.Tensor:
        """Return what an iteration tries for the images `rows`, whose best points are `best`."""
        images = self.images[rows]
        if norm == "linf":
            candidates, window = best.clone(), self.window(side)
            candidates[(..., *window)] += 2 * self.eps * self.signs(best.shape[1], 1, 1)
            return torch.minimum(torch.maximum(candidates, images - self.eps), images + self.eps).clamp(0, 1)
        delta, window, donor = best - images, self.window(side), self.window(side)
        spare = (self.eps**2 - delta.square().sum((1, 2, 3), keepdim=True)).clamp_min(0) / best.shape[1]
        union = torch.zeros_like(best[0, 0])
        union[window] = union[donor] = 1
        budget = (spare + (delta * union).square().sum((2, 3), keepdim=True)).sqrt()
        there = delta[(..., *window)]
        mixture = self.bump(side) * self.signs(*best.shape[:2], 1, 1) + there / (_length(there) + 1e-12)
        delta[(..., *donor)] = 0
        delta[(..., *window)] = mixture / (_length(mixture) + 1e-12) * budget
        return self.at_radius(images, delta)

    def window(self, side: int) -> tuple[slice, slice]:
        """Draw a window for all images; the last position is never drawn."""
        top, left = (
            int(torch.randint(max(n - side, 1), (), generator=self.generator, device=self.images.device))
            for n in self.images.shape[2:]
        )
        return slice(top, top + side), slice(left, left + side)

    def signs(self, *shape: int) -> torch.Tensor:
        """Draw 1 and -1."""
        drawn = torch.randint(2, shape, generator=self.generator, device=self.images.device)
        return (2 * drawn - 1).to(self.images.dtype)

    def bump(self, side: int) -> torch.Tensor:
        """Draw the bump in one of the two directions."""
        both = bump(side, self.images.dtype, self.images.device)
        return both.T if torch.rand((), generator=self.generator, device=self.images.device) > 0.5 else both

    def at_radius(self, images: torch.Tensor, delta: torch.Tensor) -> torch.Tensor:
        """Return images + delta at length eps, cut to the box."""
        length = delta.square().sum((1, 2, 3), keepdim=True).sqrt()
        return (images + self.eps * delta / (length + 1e-12)).clamp(0, 1)


def _pyramid(height: int, width: int) -> torch.Tensor:
    pyramid = torch.zeros(height, width, dtype=torch.float64)
    for radius in range(max(height // 2, width // 2) + 1):
        top, left = height // 2 - radius, width // 2 - radius
        inside = pyramid[max(top, 0) : top + 2 * radius + 1, max(left, 0) : left + 2 * radius + 1]
        inside += 1 / (radius + 1) ** 2
    return pyramid


def _length(planes: torch.Tensor) -> torch.Tensor:
    return planes.square().sum((-2, -1), keepdim=True).sqrt()


def _margin(model: Model, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    logits = model(images)
    own = logits.gather(1, labels[:, None])
    return (own - logits.scatter(1, labels[:, None], -torch.inf).amax(1, keepdim=True))[:, 0]
