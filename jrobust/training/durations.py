"""Durations in steps, examples or epochs, resolved in one place."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jrobust.errors import InputError


def total_steps(section: Mapping[str, Any], *, steps_per_epoch: int, batch_size: int) -> int:
    """Return the length of a run: the first of `steps`, `examples`, `epochs` that is not 0.

    An epoch is its full batches; what is left of it is in no step, so that all steps have one shape. Code that keeps
    the partial batch takes a step more an epoch: 391 instead of 390 for 100,000 images in batches of 256.

    >>> total_steps({"steps": 0, "examples": 1000, "epochs": 2.0}, steps_per_epoch=195, batch_size=256)
    4

    Raises:
      InputError: none of them is set, or one is negative.
    """
    for name, steps_of_one in (("steps", 1.0), ("examples", 1.0 / batch_size), ("epochs", float(steps_per_epoch))):
        value = section.get(name, 0)
        if value < 0:
            raise InputError(f"train.{name} is {value}: expected a number above 0, or 0 to leave it unset")
        if value:
            return max(1, round(value * steps_of_one))
    raise InputError("the run has no length: set one of train.steps, train.examples, train.epochs")


def period(section: Mapping[str, Any], name: str, *, steps_per_epoch: int) -> int:
    """Return the number of steps between events: `<name>_steps` if it is not 0, else `<name>_epochs`; 0 for never.

    >>> period({"every_steps": 0, "every_epochs": 0.5}, "every", steps_per_epoch=195)
    98
    >>> period({"evaluate_every_epochs": 0.0}, "evaluate_every", steps_per_epoch=195)
    0

    Raises:
      InputError: one of them is negative.
    """
    for unit, steps_of_one in (("steps", 1), ("epochs", steps_per_epoch)):
        value = section.get(f"{name}_{unit}", 0)
        if value < 0:
            raise InputError(f"{name}_{unit} is {value}: expected a number above 0, or 0 for never")
        if value:
            return max(1, round(value * steps_of_one))
    return 0


def due(step: int, every: int, total: int) -> bool:
    """Return whether an event of this period falls on `step`; the last step always counts.

    >>> [step for step in range(1, 8) if due(step, every=3, total=7)]
    [3, 6, 7]
    """
    return step == total or (every > 0 and step % every == 0)
