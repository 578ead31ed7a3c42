"""What the robustness suite verifies about its own attacks, and the flags of a doubtful evaluation."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from jrobust.evaluation.attack import NORMS, Attack
from jrobust.evaluation.record import Record


def attack_checks(plan: list[Attack], columns: dict[str, np.ndarray]) -> dict[str, Any]:
    """What the perturbed images really were: the largest perturbation of each norm over its radius, range, NaN."""
    excess = [float(np.max(columns[f"{a.name}_{a.norm}"])) - a.eps for a in plan]
    largest = {
        f"largest_{norm}_over_eps": max(
            (float(np.max(columns[f"{a.name}_{norm}"])) / a.eps for a in plan if a.norm == norm and a.eps), default=None
        )
        for norm in NORMS
    }
    lowest = np.concatenate([columns[f"{a.name}_lowest"] for a in plan])
    highest = np.concatenate([columns[f"{a.name}_highest"] for a in plan])
    nans = int(np.isnan(lowest).sum() + np.isnan(highest).sum())
    return largest | {
        "inside_ball": bool(max(excess) <= 1e-6),
        "lowest_pixel": float(np.nanmin(lowest)),
        "highest_pixel": float(np.nanmax(highest)),
        "nan_images": nans,
        "zero_gradient_share": float(columns["zero_gradient"][columns["correct"]].mean())
        if columns["correct"].any()
        else None,
        "softmax_outputs": bool(columns["softmax"].all()),
    }


def check_warnings(checks: dict[str, Any]) -> list[str]:
    """Return what the checks of attacks give to complain about."""
    found = []
    if not checks["inside_ball"] or checks["nan_images"] or checks["lowest_pixel"] < 0 or checks["highest_pixel"] > 1:
        found.append("perturbed images left the ball or [0, 1], or hold NaN: the numbers are not valid")
    if checks["zero_gradient_share"]:
        share = 100 * checks["zero_gradient_share"]
        found.append(
            f"the gradient of the loss is exactly zero on {share:.1f} % of the correct images: attacks are blind there"
        )
    if checks["softmax_outputs"]:
        found.append("the outputs look like probabilities: pass logits, or the gradient of the cross-entropy vanishes")
    return found


def attack_warnings(main: list[Attack], record: Record) -> list[str]:
    """Return the flags of a doubtful evaluation (after Carlini et al. 2019 and the checks of AutoAttack)."""
    found, metrics = check_warnings(record.checks), record.metrics
    for attack in main[1:]:
        if metrics["fgsm"].high < metrics[attack.name].low:
            found.append(f"one step of FGSM breaks more images than {attack.name}: gradients may be masked")
    return found + rising(record)


def rising(record: Record) -> list[str]:
    """Return where accuracy rises with the radius."""
    found = []
    for curve in ("linf", "l2"):
        points = record.curves.get(curve, [])
        for before, after in itertools.pairwise(points):
            if after["accuracy"].low > before["accuracy"].high:
                found.append(f"accuracy rises from {NORMS[curve]} {before['label']} to {after['label']}: a weak attack")
    return found
