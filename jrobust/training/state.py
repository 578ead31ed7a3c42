"""What a training run carries from step to step, as one pytree."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jrobust.training.method import Variables


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """The whole state of a run but for the input pipeline's.

    Attributes:
      step: int32[], number of updates done.
      params: what is trained.
      state: what the method carries besides (batch statistics, running losses, frozen features).
      opt_state: of the optimizer.
    """

    step: Any
    params: Any
    state: Any
    opt_state: Any

    @property
    def variables(self) -> Variables:
        """What the method's `logits` takes."""
        return Variables(self.params, self.state)


def create(variables: Variables, tx: optax.GradientTransformation) -> TrainState:
    """Return the state before the first update; every leaf has a buffer of its own, as donation asks for."""
    params, state = jax.tree.map(jnp.copy, (variables.params, variables.state))
    return TrainState(jnp.zeros((), jnp.int32), params, state, tx.init(params))


def count_parameters(params: Any) -> int:
    """Return the number of scalars in a tree of arrays or of their shapes.

    >>> count_parameters({"kernel": jnp.zeros((3, 4)), "bias": jnp.zeros(4)})
    16
    """
    return sum(int(leaf.size) for leaf in jax.tree.leaves(params))
