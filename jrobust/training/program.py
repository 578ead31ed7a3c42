"""The train step of a run, put together on shapes alone: what the loop compiles, and what a dry run asks about."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import optax
from jax.sharding import Mesh

from jrobust.training import optimizers, parallel
from jrobust.training import state as train_states
from jrobust.training.layout import state_layout
from jrobust.training.method import Batch, Method
from jrobust.training.state import TrainState
from jrobust.training.step import Prepare, TrainStep, make_train_step


@dataclasses.dataclass(frozen=True)
class Program:
    """A step over a mesh, and the shapes of what it takes. Nothing is computed and nothing lies on a device.

    Attributes:
      step: the pure function on the batch of all devices in one view: it does the work of all of them.
      parallel: the step over the mesh.
      optimizer: that it uses.
      example: shapes of a prepared batch of all devices, as `method.init` takes it.
      state: shapes of the train state with their layout on the mesh.
    """

    step: TrainStep
    parallel: parallel.Parallel
    optimizer: optimizers.Optimizer
    example: Batch
    state: TrainState

    def arguments(self, batch: Mapping[str, Any], resident: Any) -> tuple[Any, ...]:
        """Return the shapes of what the step over the mesh takes, for a host batch and resident arrays or shapes."""
        key = jax.eval_shape(lambda: jax.random.key(0))
        placed = self.parallel
        return self.state, placed.shard_shapes(batch), placed.shapes(resident), placed.shapes(key)

    def in_one_view(self, batch: Mapping[str, Any], resident: Any) -> tuple[Any, ...]:
        """Return the shapes of what `step` takes for the same."""
        return self.state, dict(batch), resident, jax.eval_shape(lambda: jax.random.key(0))


def step_over(
    mesh: Mesh,
    mode: str,
    method: Method,
    tx: optax.GradientTransformation,
    prepare: Prepare,
    *,
    microbatches: int = 1,
) -> TrainStep:
    """Return the step that `parallelize` takes for a mesh and a mode; for the rest see `make_train_step`.

    Raises:
      InputError: the mode is neither jit nor pmap.
    """
    axis = parallel.axis_name(mode, mesh)
    mapped = mesh if mode == "jit" else None
    return make_train_step(method.with_axis(axis), tx, prepare, axis, mesh=mapped, microbatches=microbatches)


def assemble(
    method: Method,
    config: Any,
    batch: Mapping[str, Any],
    resident: Any,
    *,
    prepare: Prepare,
    mesh: Mesh,
    steps_per_epoch: int,
    total_steps: int,
) -> Program:
    """Return the step of a config with a method.

    Args:
      method: as for `loop.train`, as are config, prepare and mesh.
      batch, resident: of the training set, or their shapes.
      steps_per_epoch, total_steps: of the run, for the schedule of learning rates.

    Raises:
      InputError: an optimizer, a way of parallelism or a layout that there is not.
    """
    key = jax.eval_shape(lambda: jax.random.key(0))
    example = jax.eval_shape(prepare, dict(batch), resident, key)
    variables = jax.eval_shape(method.init, key, example)
    optimizer = optimizers.build(
        config.optimizer, variables.params, steps_per_epoch=steps_per_epoch, total_steps=total_steps
    )
    mode = config.train.parallelism
    parts = config.train.microbatches
    in_one_view = make_train_step(method, optimizer.tx, prepare, microbatches=parts)
    step = step_over(mesh, mode, method, optimizer.tx, prepare, microbatches=parts)
    state = jax.eval_shape(lambda variables: train_states.create(variables, optimizer.tx), variables)
    layout = state_layout(state, mesh, mode, config.train.shard_state)
    shapes = jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), state, layout
    )
    return Program(in_one_view, parallel.parallelize(step, mesh, mode, layout), optimizer, example, shapes)
