"""One step over many devices: `jit` or `pmap`, on the same layout of the state."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jrobust.errors import InputError, unknown
from jrobust.training import processes
from jrobust.training.state import TrainState
from jrobust.training.step import TrainStep

AXIS = "data"
MODES = ("jit", "pmap")


def make_mesh(num_devices: int | None = None, among: Sequence[jax.Device] = ()) -> Mesh:
    """Return the one-dimensional mesh named `data` over the first `num_devices` of some devices, or over all of them.

    `among` are by default the devices of the default platform.

    Over several processes it is over the devices of all, those of process 0 first: a process has one run of the rows of
    a batch.

    Raises:
      InputError: there are fewer devices.
    """
    devices = list(among) or jax.devices()
    if num_devices is not None and not 1 <= num_devices <= len(devices):
        raise InputError(f"{num_devices} devices are asked for: this machine has {len(devices)}")
    if processes.count() > 1:
        return _mesh(sorted(devices, key=lambda device: (device.process_index, device.id)))
    count = num_devices or len(devices)
    # Auto: by default a mesh has Explicit axes, which put shardings into the types of arrays.
    return jax.make_mesh((count,), (AXIS,), axis_types=(AxisType.Auto,), devices=devices[:count])


def local_mesh() -> Mesh:
    """Return the mesh over the devices of this process."""
    return make_mesh() if processes.count() == 1 else _mesh(jax.local_devices())


def local(tree: Any) -> Any:
    """Return replicated arrays as this process alone can use them: with one process as they are."""
    return tree if processes.count() == 1 else jax.tree.map(lambda leaf: leaf.addressable_data(0), tree)


def lay_out(array: np.ndarray, sharding: NamedSharding) -> jax.Array:
    """Put an array that every process has whole on the devices."""
    if processes.count() == 1:
        return jax.device_put(array, sharding)
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def _mesh(devices: Sequence[jax.Device]) -> Mesh:
    return Mesh(np.asarray(devices), (AXIS,), axis_types=(AxisType.Auto,))


def axis_name(mode: str, mesh: Mesh) -> str | None:
    """Return the axis over which a step (and a network's batch norm) speaks with other devices.

    It is None on one device under `jit`: there is nobody to speak with, and not every compiler leaves out a sum over
    one device.

    Raises:
      InputError: the mode is neither jit nor pmap.
    """
    check_mode(mode)
    return None if mode == "jit" and mesh.size == 1 else AXIS


def check_mode(mode: str) -> None:
    """Raise the error for a mode that is neither jit nor pmap."""
    if mode not in MODES:
        raise unknown("train.parallelism", mode, MODES)


def check_divisible(batch_size: int, mesh: Mesh, microbatches: int = 1) -> None:
    """Raise the error for a batch that does not split evenly over the devices, and there into microbatches."""
    if batch_size % mesh.size:
        below = batch_size - batch_size % mesh.size
        nearest = f"{below} or {below + mesh.size}" if below else f"{mesh.size}"
        raise InputError(
            f"a batch of {batch_size} does not divide by {mesh.size} devices: set train.batch_size to {nearest}"
        )
    rows = batch_size // mesh.size
    if microbatches < 1 or rows % microbatches:
        allowed = ", ".join(str(count) for count in range(1, rows + 1) if rows % count == 0)
        raise InputError(
            f"the {rows} images of a batch on each device do not split into {microbatches} equal parts: set"
            f" train.microbatches to one of {allowed}"
        )


@dataclasses.dataclass(frozen=True)
class Parallel:
    """A train step over a mesh. It can be called as it is, or compiled ahead with `compile`.

    The resident arrays and the key are replicated (`replicate`); a batch is split along its leading axis (`shard`). The
    train state lies as `layout` says. States pass freely between the two modes. The train state is donated: after a
    call the one passed in is gone.

    Attributes:
      layout: the sharding of the train state, one for all of it or a tree of them.
    """

    step: Any
    mesh: Mesh
    mode: str
    layout: Any

    @property
    def replicated(self) -> NamedSharding:
        """The layout of what every device has whole."""
        return NamedSharding(self.mesh, PartitionSpec())

    @property
    def split(self) -> NamedSharding:
        """The layout of a batch on the mesh."""
        return NamedSharding(self.mesh, PartitionSpec(AXIS))

    def replicate(self, tree: Any) -> Any:
        """Put a whole copy of every leaf on every device. Leaves that lie there already are taken as they are.

        Every process gives the same values.
        """
        if processes.count() > 1:
            return multihost_utils.host_local_array_to_global_array(tree, self.mesh, PartitionSpec())
        return jax.device_put(tree, self.replicated)

    def shapes(self, tree: Any) -> Any:
        """Return the shapes of what `replicate` returns."""
        shapes = jax.eval_shape(lambda tree: tree, tree)
        return jax.tree.map(lambda leaf: _laid_out(leaf, leaf.shape, self.replicated), shapes)

    def gather(self, train_state: TrainState) -> TrainState:
        """Return the train state with whole parameters and method's state on every device, as other programs take them.

        Those that are whole already are taken as they are; what the optimizer remembers stays as it lies.
        """
        params, state = jax.device_put((train_state.params, train_state.state), self.replicated)
        return dataclasses.replace(train_state, params=params, state=state)

    def shard(self, batch: Mapping[str, Any]) -> dict[str, jax.Array]:
        """Put a host batch on the devices, an equal part on each; of several processes each gives its own part.

        Raises:
          InputError: the batch does not divide by the number of devices.
        """
        arrays = {name: np.asarray(value) for name, value in batch.items()}
        if processes.count() > 1:
            make = jax.make_array_from_process_local_data
            return {name: make(self.split, array, self._split(array)) for name, array in arrays.items()}
        return {name: jax.device_put(array.reshape(self._split(array)), self.split) for name, array in arrays.items()}

    def shard_shapes(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Return the shapes of what `shard` returns for a batch or its shapes; it raises the same."""
        shapes = jax.eval_shape(lambda batch: batch, dict(batch))
        return {name: _laid_out(leaf, self._split(leaf), self.split) for name, leaf in shapes.items()}

    def _split(self, leaf: Any) -> tuple[int, ...]:
        """Return the shape in which an array of a batch is handed to the step."""
        rows = leaf.shape[0] * processes.count()
        check_divisible(rows, self.mesh)
        first = (rows,) if self.mode == "jit" else (self.mesh.size, rows // self.mesh.size)
        return (*first, *leaf.shape[1:])

    def __call__(self, train_state: Any, batch: Any, resident: Any, key: jax.Array) -> Any:
        """Run the step on arguments placed by `layout`, `shard` and `replicate`."""
        return self.step(train_state, batch, resident, key)

    def compile(self, train_state: Any, batch: Any, resident: Any, key: jax.Array) -> jax.stages.Compiled:
        """Compile for arguments such as these; the program raises instead of compiling again for any others."""
        return self.step.lower(train_state, batch, resident, key).compile()


def _laid_out(leaf: Any, shape: tuple[int, ...], layout: NamedSharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, leaf.dtype, sharding=layout)


def parallelize(step: TrainStep, mesh: Mesh, mode: str = "jit", layout: Any = None) -> Parallel:
    """Return `step` over the devices of a mesh.

    Args:
      step: from `make_train_step` with `axis_name(mode, mesh)` and, for "jit", with the mesh.
      mesh: one-dimensional, named `data`; one device is the mesh of size 1.
      mode: "jit": the step sees the whole batch and maps its gradient over the devices. "pmap": it is mapped as it is.
      layout: of the train state, from `state_layout`; by default it is whole on every device.

    Raises:
      InputError: the mode is neither jit nor pmap, or pmap over several processes.
    """
    check_mode(mode)
    if mode == "pmap" and processes.count() > 1:
        # There jax.pmap takes and returns arrays of the devices of one process, so a state would not be one array that
        # is saved once and passes to jit.
        raise InputError("train.parallelism=pmap trains in one process: set train.parallelism=jit for several")
    replicated, split = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec(AXIS))
    layout = replicated if layout is None else layout
    if mode == "jit":
        wrapped = jax.jit(
            step,
            donate_argnums=0,
            in_shardings=(layout, split, replicated, replicated),
            out_shardings=(layout, replicated),
        )
    else:
        # The axis bears the name of the mesh's: so the arrays are taken and returned as they lie, and one compilation
        # is enough.
        wrapped = jax.pmap(
            step,
            axis_name=AXIS,
            in_axes=(None, 0, None, None),
            out_axes=None,
            donate_argnums=0,
            devices=list(mesh.devices.flat),
        )
    return Parallel(wrapped, mesh, mode, layout)
