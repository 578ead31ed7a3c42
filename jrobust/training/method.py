"""The contract between a training method and the trainer, which knows no method."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import jax

from jrobust.replicated import Replicated

Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]


class Variables(NamedTuple):
    """What a method owns: `params` are trained; `state` (batch statistics, running losses, frozen nets) is carried."""

    params: Any
    state: Any


class Method(Protocol):
    """A training method: a frozen record of numbers and networks with four pure functions."""

    def with_axis(self, axis_name: str | None) -> Method:
        """Return this method for batches that are divided among the devices of an axis, None for whole ones.

        With an axis `loss` is called on each device with its own examples. What couples examples (batch norm, rows of a
        table, other images of the batch) speaks with the other devices by this name.
        """
        ...

    def init(self, key: jax.Array, batch: Batch) -> Variables:
        """Return fresh variables for batches of the shape of `batch`."""
        ...

    def loss(self, params: Any, state: Any, batch: Batch, key: jax.Array) -> tuple[jax.Array, tuple[Any, Metrics]]:
        """Return the scalar loss, the next state and scalar metrics; the inner maximisation is part of it.

        The loss is a mean over the examples of `batch`: the trainer averages it over devices.
        """
        ...

    def deployed(self, variables: Variables) -> Variables:
        """Return what is evaluated and exported of the variables: those of one network."""
        ...

    def logits(self, deployed: Variables, images: jax.Array, *, beta: float | None = None) -> jax.Array:
        """Return float32[B, K] for images float32[B, H, W, C] in [0, 1] from what `deployed` returned.

        `beta` replaces every ReLU by a softplus of that sharpness; None keeps the ReLU.
        """
        ...


__all__ = ["Batch", "Method", "Metrics", "Replicated", "Variables"]
