"""Learning rates by step, each on the device for the update and on the host, in double precision, for the log."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import optax

from jrobust.errors import InputError, unknown

# PyTorch's OneCycleLR: the share of the run in which the rate rises, the first rate and, below that, the last one as
# divisors, and Adam's first beta where the rate is lowest and where it is highest.
RISING, FIRST, LAST = 0.02, 25.0, 1e4
BETA1 = (0.95, 0.85)


class Rates(NamedTuple):
    """The learning rate of the update after `step` others: traced, and as a number; and Adam's first beta if it moves.

    `host(step)` is not `device(step)`, because asking Optax would run a program on the device.
    """

    device: optax.Schedule
    host: Callable[[int], float]
    beta1: optax.Schedule | None = None


def build(section: Mapping[str, Any], *, steps_per_epoch: int, total_steps: int) -> Rates:
    """Return the rates that the optimizer's section names; see `optimizers.build`.

    Args:
      section: `schedule`, `learning_rate` and the fields of that schedule; others are not read.
      steps_per_epoch: number of steps in an epoch.
      total_steps: number of steps in the run, K.

    Raises:
      InputError: an unknown schedule, a value out of range, drops without factors.
    """
    name = section["schedule"]
    if name not in SCHEDULES:
        raise unknown("optimizer.schedule", name, SCHEDULES)
    return SCHEDULES[name](section, steps_per_epoch, total_steps)


def _steps(section: Mapping[str, Any], steps_per_epoch: int, total_steps: int) -> Rates:
    rate, drops = section["learning_rate"], _drops(section, steps_per_epoch)
    device = optax.piecewise_constant_schedule(rate, drops)
    return Rates(device, lambda step: rate * math.prod(drops[first] for first in drops if step >= first))


def _cosine(section: Mapping[str, Any], steps_per_epoch: int, total_steps: int) -> Rates:
    warmup = section["warmup_steps"]
    if not (is_number(warmup) and warmup >= 0 and warmup == int(warmup)):
        raise InputError(f"optimizer.warmup_steps is {warmup}: expected a whole number of at least 0")
    return _rates(lambda step, xp: section["learning_rate"] * _warm_cosine(step, int(warmup), total_steps, xp))


def _one_cycle(section: Mapping[str, Any], steps_per_epoch: int, total_steps: int) -> Rates:
    peak, (slow, fast) = section["learning_rate"], BETA1

    def rate(step: Any, xp: Any) -> Any:
        low = xp.where(step < RISING * total_steps - 1, peak / FIRST, peak / FIRST / LAST)
        return low + (peak - low) * _cycle(step, total_steps, xp)

    def beta1(step: Any) -> Any:
        return slow + (fast - slow) * _cycle(step, total_steps, jnp)

    return _rates(rate)._replace(beta1=beta1 if section["cycle_beta1"] else None)


SCHEDULES = {"steps": _steps, "cosine": _cosine, "one_cycle": _one_cycle}


def _rates(rate: Callable[[Any, Any], Any]) -> Rates:
    """Return a rate that is one formula of the step and of the module, NumPy or its likeness on the device."""
    return Rates(lambda step: rate(step, jnp), lambda step: float(rate(step, np)))


def _warm_cosine(step: Any, warmup: int, total: int, xp: Any) -> Any:
    """Return (k + 1) / W in the first W steps, then (1 + cos(pi (k - W) / (K - W))) / 2."""
    falling = _half_wave((total - step) / max(total - warmup, 1), xp)
    return xp.where(step < warmup, (step + 1) / max(warmup, 1), falling)


def _cycle(step: Any, total: int, xp: Any) -> Any:
    """Return the share of the way up: 0 -> 1 until the peak at step 0.02 K - 1, which need not be whole, then 1 -> 0.

    The last step, K - 1, has 0.
    """
    peak = RISING * total - 1
    rising = _half_wave(step / max(peak, 1.0), xp)
    return xp.where(step < peak, rising, _half_wave((total - 1 - step) / (total - 1 - peak), xp))


def _half_wave(share: Any, xp: Any) -> Any:
    """Return (1 - cos(pi x)) / 2, 0 -> 1: as a square, which in single precision keeps its digits near 0."""
    return xp.sin(0.5 * math.pi * share) ** 2


def _drops(section: Mapping[str, Any], steps_per_epoch: int) -> dict[int, float]:
    """Return the factor of each drop by the step that it begins with."""
    drop_epochs, drop_factors = section["drop_epochs"], section["drop_factors"]
    if len(drop_epochs) != len(drop_factors):
        raise InputError(
            f"optimizer.drop_epochs has {len(drop_epochs)} entries and drop_factors {len(drop_factors)}: expected one"
            " factor for each epoch"
        )
    for name, values in (("drop_epochs", drop_epochs), ("drop_factors", drop_factors)):
        if not all(is_number(value) and value > 0 for value in values):
            raise InputError(f"optimizer.{name} is {tuple(values)}: expected numbers above 0, such as 50,80")
    boundaries = [round(epoch * steps_per_epoch) for epoch in drop_epochs]
    if sorted(set(boundaries)) != boundaries:
        raise InputError(f"optimizer.drop_epochs is {tuple(drop_epochs)}: expected ascending epochs")
    return dict(zip(boundaries, drop_factors, strict=True))


def is_number(value: Any) -> bool:
    """Return whether a value of a config is a number and not the text that a wrong override leaves."""
    return not isinstance(value, str)
