"""The train step: one pure function, whose gradient is that of each device's own examples under `jit` and `pmap`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, PartitionSpec

from jrobust import loops
from jrobust.training.method import Batch, Method, Metrics, Replicated
from jrobust.training.state import TrainState

Prepare = Callable[[Batch, Any, jax.Array], Batch]
TrainStep = Callable[[TrainState, Batch, Any, jax.Array], tuple[TrainState, Metrics]]

# The trainer's own metrics; a method may not use their names.
RESERVED = ("loss", "gradient_norm", "parameter_norm", "update_norm")


def make_train_step(
    method: Method,
    tx: optax.GradientTransformation,
    prepare: Prepare,
    axis_name: str | None = None,
    *,
    mesh: Mesh | None = None,
    microbatches: int = 1,
) -> TrainStep:
    """Return the pure function `(train_state, batch, resident, key) -> (train_state, metrics)`.

    With theta the parameters, s the method's state and L = `method.loss`, one step is

        (l, s') , g = L(theta, s, prepare(batch)) and its gradient in theta,   theta' = theta + tx(g)

    Random numbers come from `fold_in(key, step)`, split once into named parts (augmentation, method); the root key
    itself is never used, so a resumed run draws what the uninterrupted one would have drawn.

    Args:
      method: whose loss is minimised; the loss is a mean over the examples it is given.
      tx: the optimizer.
      prepare: `prepare(batch, resident, key) -> batch`: gathers and augments the images inside the compiled step.
      axis_name: of the devices among which the examples are divided; None for the whole batch in one view. With a name
        each device differentiates its own examples, and gradients, metrics and floating-point state that is not
        `Replicated` are averaged over that axis, once a step.
      mesh: that has this axis, for a step under `jit`: the gradient is mapped over it here, the update of the optimizer
        is left to the compiler, which splits it as the train state is split. None where the whole step is mapped
        (`pmap`).
      microbatches: k; see below.

    With k microbatches the batch is split into k equal parts, part i the examples i, i + k, i + 2 k, .. of each device,
    and g, l and the metrics are the means, in float32, of those of the parts at the same theta; s goes through the
    parts in their order. One part is prepared and differentiated at a time, so that memory is that of a part, also on
    CPU, where the parts are unrolled. Random numbers of an example are the same for any k, for they are drawn from the
    step's keys and `index`; what is drawn for a batch, or couples its examples (batch norm, other images as donors or
    negatives), is of a part. A part is taken without moving an example between devices.

    The metrics are float32 scalars: those of the method, `loss`, and the l2 norms `gradient_norm`, `parameter_norm`
    (after the update) and `update_norm`.
    """

    def take_gradients(params: Any, state: Any, step: Any, batch: Batch, resident: Any, key: jax.Array) -> Any:
        """Return the next state, and gradients, loss and metrics; means over all devices."""
        augment_key, method_key = jax.random.split(jax.random.fold_in(key, step))

        def differentiate(state: Any, part: Batch) -> tuple[Any, tuple[Any, jax.Array, Metrics]]:
            examples = prepare(part, resident, augment_key)
            (loss, (state, metrics)), gradients = jax.value_and_grad(method.loss, has_aux=True)(
                params, state, examples, method_key
            )
            if taken := sorted(set(metrics) & set(RESERVED)):
                raise ValueError(f"the method returns metrics named {taken}, which are the trainer's own")
            return state, (gradients, loss, metrics)

        state, found = _mean_over_parts(differentiate, state, batch, microbatches)
        if axis_name is None:
            return state, found
        # The mean of gradients, not the gradient of a mean: each device differentiates its own loss.
        return _mean_of_floats(state, axis_name), jax.lax.pmean(found, axis_name)

    if axis_name is not None and mesh is not None:
        take_gradients = _over_devices(take_gradients, mesh, axis_name)

    def train_step(train_state: TrainState, batch: Batch, resident: Any, key: jax.Array) -> tuple[TrainState, Metrics]:
        state, (gradients, loss, metrics) = take_gradients(
            train_state.params, train_state.state, train_state.step, batch, resident, key
        )
        updates, opt_state = tx.update(gradients, train_state.opt_state, train_state.params)
        params = optax.apply_updates(train_state.params, updates)
        metrics = {name: jnp.asarray(value, jnp.float32) for name, value in metrics.items()}
        metrics |= {
            "loss": loss.astype(jnp.float32),
            "gradient_norm": norm(gradients),
            "parameter_norm": norm(params),
            "update_norm": norm(updates),
        }
        return TrainState(train_state.step + 1, params, state, opt_state), metrics

    return train_step


def _over_devices(take_gradients: Callable[..., Any], mesh: Mesh, axis_name: str) -> Callable[..., Any]:
    """Return the function of params, state, step, batch, resident, key mapped over the devices, each with its rows."""
    whole, divided = PartitionSpec(), PartitionSpec(axis_name)
    # Unchecked: or JAX would sum the gradients of what is whole on every device, before they are averaged.
    return jax.shard_map(
        take_gradients,
        mesh=mesh,
        in_specs=(whole, whole, whole, divided, whole, whole),
        out_specs=whole,
        check_vma=False,
    )


def _mean_over_parts(
    differentiate: Callable[[Any, Batch], tuple[Any, Any]], state: Any, batch: Batch, count: int
) -> tuple[Any, Any]:
    """Return the state after `count` equal parts of a batch, and the mean of what they gave."""
    if count == 1:
        return differentiate(state, batch)
    # The leading axis, which is split over devices, stays the leading one.
    columns = jax.tree.map(lambda rows: rows.reshape(-1, count, *rows.shape[1:]), batch)

    def part(place: jax.Array | int) -> Batch:
        return jax.tree.map(lambda rows: jax.lax.dynamic_index_in_dim(rows, place, 1, keepdims=False), columns)

    def add(place: jax.Array, carry: Any) -> Any:
        state, sums = carry
        place = loops.after(place, *loops.elements(sums[0]))  # after all gradients of the part before
        state, found = differentiate(state, part(place))
        return state, jax.tree.map(jnp.add, sums, found)

    _, shapes = jax.eval_shape(lambda state: differentiate(state, part(0)), state)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.promote_types(leaf.dtype, jnp.float32)), shapes)
    state, sums = loops.fori_loop(0, count, add, (state, zeros))
    return state, jax.tree.map(lambda total: total / count, sums)


def norm(tree: Any) -> jax.Array:
    """Return the l2 norm of all leaves together, float32[]."""
    squares = [jnp.sum(jnp.square(jnp.abs(leaf.astype(jnp.float32)))) for leaf in jax.tree.leaves(tree)]
    return jnp.sqrt(sum(squares, jnp.zeros((), jnp.float32)))


def _mean_of_floats(tree: Any, axis_name: str) -> Any:
    """Average floating-point leaves over the axis; what else there is is the same on every device already."""

    def mean(leaf: Any) -> Any:
        if isinstance(leaf, Replicated) or not jnp.issubdtype(leaf.dtype, jnp.inexact):
            return leaf
        return jax.lax.pmean(leaf, axis_name)

    return jax.tree.map(mean, tree, is_leaf=lambda node: isinstance(node, Replicated))
