"""AutoAttack by this library and in eager PyTorch, in the process in which each lives: what `autoattack` times."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from jrobust.attacks import autoattack, linf
from jrobust.attacks.versions import Budget
from jrobust.models.classifier import Classifier


class Case(NamedTuple):
    """What is attacked, on the host."""

    classifier: Classifier
    params: Any
    batch_stats: Any
    images: np.ndarray  # float32[N, H, W, C]
    labels: np.ndarray
    numbers: np.ndarray  # of the images in the data set
    eps: float
    text: str


class Part(NamedTuple):
    """What one part of one run did."""

    name: str
    attacked: int
    broken: int
    seconds: float
    forward: int
    backward: int
    slots_used: float | None


class Outcome(NamedTuple):
    """One run of all parts."""

    parts: list[Part]
    robust: np.ndarray

    @property
    def seconds(self) -> float:
        """Of the parts together."""
        return sum(part.seconds for part in self.parts)


class Contender(NamedTuple):
    """What attacks a case: made by `contender` in the process in which it lives (benchmarks/processes.py)."""

    case: Case
    batch: int
    budget: Budget
    dtype: str

    def attack(self, name: str) -> Outcome:
        """Run all parts as the contender of that name does."""
        if name == "torch":
            return run_torch(self.case, self.batch, self.budget, self.dtype)
        with jax.default_matmul_precision("highest"):
            return run_ours(self.case, self.batch, self.budget, compact=name == "jrobust")


def contender(case: Case, batch: int, budget: Budget, dtype: str) -> Contender:
    """Return what attacks a case, whose variables are put on the device once."""
    params, batch_stats = jax.device_put((case.params, case.batch_stats))
    return Contender(case._replace(params=params, batch_stats=batch_stats), batch, budget, dtype)


def run_ours(case: Case, batch: int, budget: Budget, *, compact: bool) -> Outcome:
    """Run this library's AutoAttack."""
    result = autoattack(
        _logits(case.classifier),
        case.images,
        case.labels,
        jax.random.key(0),
        linf(case.eps),
        variables=(case.params, case.batch_stats),
        index=case.numbers,
        budget=budget,
        batch_size=batch,
        compact=compact,
    )
    parts = [
        Part(p.name, p.attacked, p.broken, p.seconds, p.forward, p.backward, p.iterations / max(p.computed, 1))
        for p in result.parts
    ]
    return Outcome(parts, ~result.success)


@functools.lru_cache
def _logits(classifier: Classifier) -> Callable[[Any, jax.Array], jax.Array]:
    """Return one and the same function for a network, so that nothing compiles twice."""

    def logits(variables: tuple[Any, Any], images: jax.Array) -> jax.Array:
        params, batch_stats = variables
        return classifier.apply(params, batch_stats, images, mask_mode="mean").logits

    return logits


def run_torch(case: Case, batch: int, budget: Budget, dtype: str) -> Outcome:
    """Run the same parts in eager PyTorch."""
    import torch

    from benchmarks import torch_apgd, torch_attack, torch_fab, torch_square

    where = torch_attack.device(jax.default_backend())
    net = torch_attack.port(case.classifier, *jax.device_get((case.params, case.batch_stats)))
    assert where and net
    model, passes = Counted(net.to(where), dtype == "bfloat16"), {"forward": 0, "backward": 0}
    model.passes = passes
    torch.manual_seed(0)
    settings: dict[str, Any] = {"norm": "linf", "eps": case.eps}
    targets = min(9, case.classifier.num_classes - 1)
    attacks: dict[str, Callable] = {
        "apgd-ce": lambda x, y: torch_apgd.perturb(model, x, y, loss="ce", num_steps=budget.apgd_steps, **settings)[1],
        "apgd-t": lambda x, y: torch_apgd.perturb(
            model, x, y, loss="targeted_dlr", num_targets=targets, num_steps=budget.apgd_steps, **settings
        )[1],
        "fab-t": lambda x, y: (
            ~torch_fab.fab(model, x, y, num_targets=targets, num_steps=budget.fab_steps, **settings)[1]
        ),
        "square": lambda x, y: ~torch_square.square(model, x, y, num_queries=budget.square_queries, **settings)[1],
    }
    images = torch.tensor(case.images.transpose(0, 3, 1, 2).copy(), device=where)
    labels = torch.tensor(case.labels, dtype=torch.long, device=where)
    with torch.no_grad():
        right = [model(images[i : i + batch]).argmax(1) == labels[i : i + batch] for i in range(0, len(images), batch)]
    robust = torch.cat(right)
    parts = []
    for name, attack in attacks.items():
        passes.update(forward=0, backward=0)
        rows, begin = robust.nonzero()[:, 0], time.perf_counter()
        for chunk in rows.split(batch):
            robust[chunk] = attack(images[chunk], labels[chunk])
        if where == "cuda":
            torch.cuda.synchronize()
        seconds, broken = time.perf_counter() - begin, len(rows) - int(robust.sum())
        parts.append(Part(name, len(rows), broken, seconds, passes["forward"], passes["backward"], None))
    return Outcome(parts, robust.cpu().numpy())


class Counted:
    """A PyTorch model that counts the passes of single images."""

    def __init__(self, net: Callable, autocast: bool):
        self.net, self.autocast = net, autocast
        self.passes: dict[str, int] = {}

    def __call__(self, images: Any) -> Any:
        """Return logits."""
        import torch

        self.passes["forward"] = self.passes.get("forward", 0) + len(images)
        self.passes["backward"] = self.passes.get("backward", 0) + (len(images) if images.requires_grad else 0)
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.autocast):
            return self.net(images).float()
