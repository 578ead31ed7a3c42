"""One attack of a suite: its numbers, the sentence that identifies it, and its perturbed images."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp

from jrobust import units
from jrobust.attacks import Threat, cross_entropy, cw_loss
from jrobust.evaluation import programs
from jrobust.evaluation.subject import Subject

NORMS = {"linf": "Linf", "l2": "L2"}


@dataclasses.dataclass(frozen=True)
class Attack:
    """PGD on a loss: its column name, its numbers, and the sentence that identifies it."""

    name: str
    norm: str
    radius: str
    step_size: float
    num_steps: int
    random_start: bool
    restarts: int
    protocol: str
    loss: programs.Loss = cross_entropy
    method: str = "pgd"

    @property
    def eps(self) -> float:
        """The radius as a number."""
        return units.number(self.radius)

    def numbers(self) -> tuple:
        """Return what the images depend on: attacks of equal numbers are the same attack."""
        return *self.path(), self.num_steps

    def path(self) -> tuple:
        """Return the same without the number of steps: attacks of equal paths stop at points of one ascent."""
        return self.method, self.norm, self.eps, self.step_size, self.random_start, self.restarts, self.loss


def threat_text(norm: str, eps: str) -> str:
    """Return the threat model as text: "Linf 8/255"."""
    return f"{NORMS[norm]} {eps}"


def ascent(
    name: str,
    norm: str,
    eps: str,
    step_size: str | Fraction,
    num_steps: int,
    random_start: bool,
    restarts: int = 1,
    *,
    confidence: float | None = None,
) -> Attack:
    """Return PGD as an attack, on the cross-entropy or, given a confidence, on the loss of Carlini and Wagner."""
    step = units.parse(step_size) if isinstance(step_size, str) else step_size
    text = step_size if isinstance(step_size, str) else _length(step, norm)
    start = "random start" if random_start else "from the image"
    many = f", worst of {restarts} restarts" if restarts > 1 else ""
    loss = "cross-entropy" if confidence is None else f"the C&W loss of confidence {confidence:g} (not the L2 attack)"
    protocol = f"PGD-{num_steps} on {loss}, {threat_text(norm, eps)}, step {text}, {start}, last iterate{many}"
    objective = cross_entropy if confidence is None else cw(confidence)
    return Attack(name, norm, eps, float(step), num_steps, random_start, restarts, protocol, objective)


def _length(value: Fraction, norm: str) -> str:
    return f"{float(value * 255):g}/255" if norm == "linf" else f"{float(value):g}"


@functools.cache
def cw(confidence: float) -> programs.Loss:
    """Return the loss of Carlini and Wagner with this confidence; the same object each time, as programs need it."""
    return functools.partial(cw_loss, confidence=confidence)


def families(plan: Sequence[Attack]) -> list[list[Attack]]:
    """Return the attacks in groups of one path, in the order of the first ones, fewer steps leading."""
    groups: dict[tuple, list[Attack]] = {}
    for attack in plan:
        groups.setdefault(attack.path(), []).append(attack)
    return [sorted(group, key=lambda attack: attack.num_steps) for group in groups.values()]


def craft(subject: Subject, batch: dict[str, Any], family: Sequence[Attack], key: jax.Array) -> list[jax.Array]:
    """Return the perturbed images of attacks of one path on one batch, fewer steps leading.

    They cost the steps of the longest. A radius that was not met does not compile again.
    """
    first, dtype = family[0], jnp.promote_types(batch["image"].dtype, jnp.float32)
    return programs.craft(
        subject.logits,
        subject.variables,
        batch["image"],
        batch["label"],
        batch["index"],
        key,
        Threat(first.norm, jnp.asarray(first.eps, dtype)),
        jnp.asarray(first.step_size, dtype),
        num_steps=[attack.num_steps for attack in family],
        random_start=first.random_start,
        restarts=first.restarts,
        loss=first.loss,
    )
