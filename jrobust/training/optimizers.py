"""Optimizers from a config section."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import optax

from jrobust.errors import InputError, unknown
from jrobust.training import schedules

# Fields that the sections of earlier versions do not have, with the values that stand for what those versions did.
ADDED: dict[str, Any] = {"schedule": "steps", "warmup_steps": 0, "cycle_beta1": True, "clip_norm": 0.0}


# What a gradient goes through, in this order. Their number and nesting name the arrays in checkpoints.
Parts = list[optax.GradientTransformation]


class Optimizer(NamedTuple):
    """A transformation of gradients, and the learning rate of each step for the log.

    `learning_rate(step)` is the rate of the update after `step` others, of the layers that are not fast.
    """

    tx: optax.GradientTransformation
    learning_rate: Callable[[int], float]


def _sgd(section: Mapping[str, Any], rates: schedules.Rates) -> Parts:
    _check_not_negative(section, "momentum")
    momentum, nesterov = section["momentum"] or None, section["nesterov"]
    return [_decay(section), optax.sgd(rates.device, momentum=momentum, nesterov=nesterov)]


def _adam(section: Mapping[str, Any], rates: schedules.Rates) -> Parts:
    return [_decay(section), optax.chain(_moments(section, rates), optax.scale_by_learning_rate(rates.device))]


def _adamw(section: Mapping[str, Any], rates: schedules.Rates) -> Parts:
    return [_moments(section, rates), _decay(section), optax.scale_by_learning_rate(rates.device)]


def _decay(section: Mapping[str, Any]) -> optax.GradientTransformation:
    return optax.add_decayed_weights(section["weight_decay"])


def _moments(section: Mapping[str, Any], rates: schedules.Rates) -> optax.GradientTransformation:
    """Return Adam's direction m^ / (sqrt(v^) + epsilon)."""
    betas, epsilon = tuple(section["betas"]), section["epsilon"]
    if len(betas) != 2 or not all(schedules.is_number(beta) and 0 <= beta < 1 for beta in betas):
        raise InputError(
            f"optimizer.betas is {betas}: expected two numbers of at least 0 and below 1, such as 0.9,0.999"
        )
    if not epsilon > 0:
        raise InputError(f"optimizer.epsilon is {epsilon}: expected a number above 0, such as 1e-8")
    first, second = betas
    constant, cycled = optax.scale_by_adam(first, second, epsilon), rates.beta1
    if cycled is None:
        return constant

    def update(gradients: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        return optax.scale_by_adam(cycled(state.count), second, epsilon).update(gradients, state, params)

    return optax.GradientTransformation(constant.init, update)


OPTIMIZERS = {"sgd": _sgd, "adam": _adam, "adamw": _adamw}


def build(section: Mapping[str, Any], params: Any, *, steps_per_epoch: int, total_steps: int) -> Optimizer:
    """Return the optimizer that a config section names, with its schedule of learning rates.

    Where `clip_norm` is not 0, the gradient of all parameters together is first brought to at most that l2 norm; a
    gradient within it stays as it is (the log has the norm before):

        gradient <- gradient min(1, clip_norm / |gradient|)

    "sgd", with `momentum` and `nesterov`, g being the gradient with L2 of every parameter (batch norm and biases too):

        g = gradient + weight_decay theta,   m' = momentum m + g
        theta' = theta - rate f (g + momentum m')   with nesterov,    theta - rate f m'   without

    "adam", with `betas` (b1, b2) and `epsilon`, at step t = 1, 2, ..., with the same g, as PyTorch's Adam:

        m' = b1 m + (1 - b1) g,   v' = b2 v + (1 - b2) g^2
        theta' = theta - rate f (m' / (1 - b1^t)) / (sqrt(v' / (1 - b2^t)) + epsilon)

    "adamw": g is the gradient alone, and the decay, of every parameter again, goes past the moments, so that
    it is not divided by the size of the gradients:

        theta' = theta - rate f ((m' / (1 - b1^t)) / (sqrt(v' / (1 - b2^t)) + epsilon) + weight_decay theta)

    f is `fast_factor` for the parameters under one of the `fast_layers`, 1 for the others. rate depends on `schedule`,
    b being `learning_rate`, K `total_steps` and k = 0, 1, ..., K - 1 the updates before this one:

    * "steps": b times all `drop_factors` whose `drop_epochs` have begun; without drops it is constant.
    * "cosine": with W = `warmup_steps`, b (k + 1) / W for k < W, then b (1 + cos(pi (k - W) / (K - W))) / 2. A run
      shorter than W steps only warms up.
    * "one_cycle": half waves of a cosine from b/25 up to b at k = 0.02 K - 1 and down to b/25/10^4 at k = K - 1. With
      `cycle_beta1`, b1 of Adam and AdamW goes the other way, 0.95 -> 0.85 -> 0.95, instead of what `betas` says, and
      the b1 of a step stands in its b1^t, too. Both as in PyTorch's OneCycleLR(pct_start=0.02).

    Args:
      section: `name` and the fields above; those of other optimizers and schedules may be there or not and are not
        read. Fields of `ADDED` may be missing.
      params: the parameters or their shapes; only names are used.
      steps_per_epoch: number of steps in an epoch.
      total_steps: number of steps in the run, in full batches; see `durations.total_steps`.

    Raises:
      InputError: an unknown name, a value out of range, drops without factors, a layer that does not exist.
    """
    section = ADDED | dict(section)
    if section["name"] not in OPTIMIZERS:
        raise unknown("optimizer.name", section["name"], OPTIMIZERS)
    for name in ("learning_rate", "weight_decay", "fast_factor", "clip_norm"):
        _check_not_negative(section, name)
    rates = schedules.build(section, steps_per_epoch=steps_per_epoch, total_steps=total_steps)
    parts = [optax.clip_by_global_norm(section["clip_norm"])] if section["clip_norm"] else []
    parts += OPTIMIZERS[section["name"]](section, rates)
    if section["fast_layers"]:
        # After momentum: PyTorch's buffer does not hold the rate, so a group's rate is a factor of the update.
        mask = layer_mask(params, section["fast_layers"])
        parts.append(optax.masked(optax.scale(section["fast_factor"]), mask))
    return Optimizer(optax.chain(*parts), rates.host)


def _check_not_negative(section: Mapping[str, Any], name: str) -> None:
    if not section[name] >= 0:
        raise InputError(f"optimizer.{name} is {section[name]}: expected a number of at least 0")


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
