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
# Attacks of `jrobust.attacks.momentum`, each with its default numbers, in words.
WITH_MEMORY = {
    "mi_fgsm": "MI-FGSM (momentum 1)",
    "ni_fgsm": "NI-FGSM (momentum 1, gradients taken ahead)",
    "di_fgsm": "DI-FGSM (inputs resized with probability 0.5, no momentum)",
    "ti_fgsm": "TI-FGSM (gradients smoothed over 15 x 15 pixels, no momentum)",
}


@dataclasses.dataclass(frozen=True)
class Attack:
    """One attack by gradients: its column name, its numbers, and the sentence that identifies it.

    `method` is "pgd", on any loss, or one of `WITH_MEMORY`, from the image and without restarts.
    """

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
        """Return the same without the number of steps: attacks of equal paths stop at points of one ascent.

        Only PGD can stop and go on.
        """
        if self.method != "pgd":
            return self.method, self.norm, self.eps, self.step_size, self.num_steps
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
    text = step_size if isinstance(step_size, str) else length(step, norm)
    start = "random start" if random_start else "from the image"
    many = f", worst of {restarts} restarts" if restarts > 1 else ""
    loss = "cross-entropy" if confidence is None else f"the C&W loss of confidence {confidence:g} (not the L2 attack)"
    protocol = f"PGD-{num_steps} on {loss}, {threat_text(norm, eps)}, step {text}, {start}, last iterate{many}"
    objective = cross_entropy if confidence is None else cw(confidence)
    return Attack(name, norm, eps, float(step), num_steps, random_start, restarts, protocol, objective)


def with_memory(method: str, name: str, norm: str, eps: str, step_size: str, num_steps: int) -> Attack:
    """Return an attack of `WITH_MEMORY`."""
    words = f"{WITH_MEMORY[method]} of {num_steps} steps"
    protocol = f"{words}, {threat_text(norm, eps)}, step {step_size}, from the image, last iterate"
    return Attack(name, norm, eps, units.number(step_size), num_steps, False, 1, protocol, method=method)


def length(value: Fraction, norm: str) -> str:
    """Return a step size as text: in 1/255 for Linf.

    >>> length(Fraction(1, 255) * 4 / 5, "linf"), length(Fraction(1, 4), "l2")
    ('0.8/255', '0.25')
    """
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
    threat, step_size = Threat(first.norm, jnp.asarray(first.eps, dtype)), jnp.asarray(first.step_size, dtype)
    examples = batch["image"], batch["label"], batch["index"]
    arguments = (subject.logits, subject.variables, *examples, key, threat, step_size)
    if first.method != "pgd":
        options: dict[str, Any] = {"method": first.method, "num_steps": first.num_steps}
        return [programs.craft_with_memory(*arguments, **options)] * len(family)
    return programs.craft(
        *arguments,
        num_steps=[attack.num_steps for attack in family],
        random_start=first.random_start,
        restarts=first.restarts,
        loss=first.loss,
    )
