"""Optimizers and schedules from a config section."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import optax

from jrobust.errors import InputError, unknown


class Optimizer(NamedTuple):
    """A transformation of gradients, and the learning rate of each step for the log.

    `learning_rate(step)` is the rate of the update after `step` others, of the layers that are not fast.
    """

    tx: optax.GradientTransformation
    learning_rate: Callable[[int], float]


def _sgd(section: Mapping[str, Any], schedule: optax.Schedule) -> optax.GradientTransformation:
    _check_not_negative(section, "momentum")
    return optax.sgd(schedule, momentum=section["momentum"] or None, nesterov=section["nesterov"])


def _adam(section: Mapping[str, Any], schedule: optax.Schedule) -> optax.GradientTransformation:
    betas, epsilon = tuple(section["betas"]), section["epsilon"]
    if len(betas) != 2 or not all(_is_number(beta) and 0 <= beta < 1 for beta in betas):
        raise InputError(
            f"optimizer.betas is {betas}: expected two numbers of at least 0 and below 1, such as 0.9,0.999"
        )
    if not epsilon > 0:
        raise InputError(f"optimizer.epsilon is {epsilon}: expected a number above 0, such as 1e-8")
    return optax.adam(schedule, *betas, eps=epsilon)


OPTIMIZERS = {"sgd": _sgd, "adam": _adam}


def build(section: Mapping[str, Any], params: Any, *, steps_per_epoch: int) -> Optimizer:
    """Return the optimizer that a config section names.

    Both add L2 to the gradient of every parameter (batch norm and biases too) before anything else, as PyTorch's do:

        g = gradient + weight_decay theta

    "sgd", with `momentum` and `nesterov`:

        m' = momentum m + g
        theta' = theta - rate f (g + momentum m')   with nesterov,    theta - rate f m'   without

    "adam", with `betas` (b1, b2) and `epsilon`, at step t = 1, 2, ... (not AdamW, whose decay bypasses the moments):

        m' = b1 m + (1 - b1) g,   v' = b2 v + (1 - b2) g^2
        theta' = theta - rate f (m' / (1 - b1^t)) / (sqrt(v' / (1 - b2^t)) + epsilon)

    rate is `learning_rate` times all `drop_factors` whose `drop_epochs` have begun; without drops it is constant. f is
    `fast_factor` for the parameters under one of the `fast_layers`, 1 for the others.

    Args:
      section: `name` and the fields above; those of the other optimizer may be there or not and are not read.
      params: the parameters or their shapes; only names are used.
      steps_per_epoch: number of steps in an epoch.

    Raises:
      InputError: an unknown name, a value out of range, drops without factors, a layer that does not exist.
    """
    if section["name"] not in OPTIMIZERS:
        raise unknown("optimizer.name", section["name"], OPTIMIZERS)
    for name in ("learning_rate", "weight_decay", "fast_factor"):
        _check_not_negative(section, name)
    rate, drops = section["learning_rate"], _drops(section, steps_per_epoch)
    schedule = optax.piecewise_constant_schedule(rate, drops)
    parts = [optax.add_decayed_weights(section["weight_decay"]), OPTIMIZERS[section["name"]](section, schedule)]
    if section["fast_layers"]:
        # After momentum: PyTorch's buffer does not hold the rate, so a group's rate is a factor of the update.
        mask = layer_mask(params, section["fast_layers"])
        parts.append(optax.masked(optax.scale(section["fast_factor"]), mask))
    # The same schedule on the host, for the log: asking Optax would run a program on the device.
    return Optimizer(
        optax.chain(*parts), lambda step: rate * math.prod(drops[first] for first in drops if step >= first)
    )


def _check_not_negative(section: Mapping[str, Any], name: str) -> None:
    if not section[name] >= 0:
        raise InputError(f"optimizer.{name} is {section[name]}: expected a number of at least 0")


def _is_number(value: Any) -> bool:
    return not isinstance(value, str)


def _drops(section: Mapping[str, Any], steps_per_epoch: int) -> dict[int, float]:
    """Return the factor of each drop by the step that it begins with."""
    drop_epochs, drop_factors = section["drop_epochs"], section["drop_factors"]
    if len(drop_epochs) != len(drop_factors):
        raise InputError(
            f"optimizer.drop_epochs has {len(drop_epochs)} entries and drop_factors {len(drop_factors)}: expected one"
            " factor for each epoch"
        )
    for name, values in (("drop_epochs", drop_epochs), ("drop_factors", drop_factors)):
        if not all(_is_number(value) and value > 0 for value in values):
            raise InputError(f"optimizer.{name} is {tuple(values)}: expected numbers above 0, such as 50,80")
    boundaries = [round(epoch * steps_per_epoch) for epoch in drop_epochs]
    if sorted(set(boundaries)) != boundaries:
        raise InputError(f"optimizer.drop_epochs is {tuple(drop_epochs)}: expected ascending epochs")
    return dict(zip(boundaries, drop_factors, strict=True))


def layer_mask(params: Any, prefixes: Sequence[str]) -> Any:
    """Return a tree of bools: whether a parameter lies under one of the named layers.

    A name is a path from the root, in dots or slashes, and whole: "layer4" is the parent of "layer4.0.conv1", not of
    "layer40".

    Raises:
      InputError: a name that no parameter lies under.
    """
    leaves, structure = jax.tree_util.tree_flatten_with_path(params)
    paths = [_dotted(jax.tree_util.keystr(path, simple=True, separator="/")) for path, _ in leaves]
    wanted = [_dotted(prefix) for prefix in prefixes]
    for prefix in wanted:
        if not any(_under(path, prefix) for path in paths):
            raise unknown("layer in optimizer.fast_layers", prefix, dict.fromkeys(path.split(".")[0] for path in paths))
    return jax.tree.unflatten(structure, [any(_under(path, prefix) for prefix in wanted) for path in paths])


def _dotted(path: str) -> str:
    return path.replace("/", ".").strip(".")


def _under(path: str, prefix: str) -> bool:
    return path == prefix or path.startswith(prefix + ".")
