"""How a train state lies on the devices: whole on each of them, or large arrays split over them."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jrobust.errors import InputError, unknown
from jrobust.training.state import TrainState

# What is split of the state, by the words of train.shard_state; step and keys are never.
SHARDED: dict[str, tuple[str, ...]] = {
    "none": (),
    "optimizer": ("opt_state",),
    "all": ("params", "state", "opt_state"),
}
# Smaller arrays stay whole: all vectors of a CLIP are among them, a thousandth of its numbers and most of its arrays,
# each of which would be a message of its own.
SMALLEST = 2**13


def state_layout(train_state: TrainState, mesh: Mesh, mode: str = "jit", shard_state: str = "none") -> TrainState:
    """Return where each array of a train state lies, as a tree of its structure.

    An array of at least `SMALLEST` numbers is split along its largest axis that the number of devices divides, the
    first of them if there are several; one without such an axis is whole on each device. So a parameter and its moments
    are split alike, and of n devices each holds about 1 / n of what is split.

    Args:
      train_state: its arrays or their shapes.
      mesh: one-dimensional.
      mode: see `parallelize`.
      shard_state: "none": all of the state is whole on every device. "optimizer": its moments are split, the rest is
        whole. "all": so are parameters and the method's state, such as frozen towers.

    Raises:
      InputError: another word, or a state that is split under `pmap`, where each device has its own.
    """
    if shard_state not in SHARDED:
        raise unknown("train.shard_state", shard_state, SHARDED)
    if shard_state != "none" and mode != "jit":
        raise InputError(
            f"train.shard_state={shard_state} splits the state over devices, train.parallelism={mode} keeps it whole on"
            " each: set train.parallelism=jit"
        )

    def lay_out(name: str) -> Any:
        split = name in SHARDED[shard_state]
        return jax.tree.map(
            lambda leaf: NamedSharding(mesh, _spec(leaf.shape, mesh) if split else PartitionSpec()),
            getattr(train_state, name),
        )

    return TrainState(**{field.name: lay_out(field.name) for field in dataclasses.fields(TrainState)})


def bytes_on_each(tree: Any) -> int:
    """Return the bytes of a tree of arrays, or of their shapes with shardings, on each device."""
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _spec(shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
    sides = [side if side % mesh.size == 0 else 0 for side in shape]
    if math.prod(shape) < SMALLEST or not any(sides):
        return PartitionSpec()
    (name,) = mesh.axis_names
    return PartitionSpec(*[None] * sides.index(max(sides)), name)
