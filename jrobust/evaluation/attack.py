"""One attack of a suite: its numbers, the sentence that identifies it, and its perturbed images."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jrobust import units
from jrobust.attacks import Threat
from jrobust.evaluation import programs
from jrobust.evaluation.subject import Subject

NORMS = {"linf": "Linf", "l2": "L2"}


@dataclasses.dataclass(frozen=True)
class Attack:
    """One attack of the suite: its column name, its numbers, and the sentence that identifies it."""

    name: str
    norm: str
    radius: str
    step_size: float
    num_steps: int
    random_start: bool
    restarts: int
    protocol: str

    @property
    def eps(self) -> float:
        """The radius as a number."""
        return units.number(self.radius)

    def numbers(self) -> tuple:
        """Return what the images depend on: attacks of equal numbers are the same attack."""
        return self.norm, self.eps, self.step_size, self.num_steps, self.random_start, self.restarts


def threat_text(norm: str, eps: str) -> str:
    """Return the threat model as text: "Linf 8/255"."""
    return f"{NORMS[norm]} {eps}"


def craft(subject: Subject, batch: dict[str, Any], attack: Attack, key: jax.Array) -> jax.Array:
    """Return the perturbed images of one attack on one batch; a radius that was not met does not compile again."""
    return programs.craft(
        subject.logits,
        subject.variables,
        batch["image"],
        batch["label"],
        batch["index"],
        key,
        Threat(attack.norm, jnp.float32(attack.eps)),
        jnp.float32(attack.step_size),
        num_steps=attack.num_steps,
        random_start=attack.random_start,
        restarts=attack.restarts,
    )
