"""What the methods that train one classifier have in common: its variables and its logits."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable
from typing import Any, Self

import jax
import jax.numpy as jnp

from jrobust.attacks import cross_entropy
from jrobust.models.network import Network
from jrobust.training.method import Batch, Metrics, Variables


@dataclasses.dataclass(frozen=True)
class NetworkMethod(abc.ABC):
    """A method whose parameters are those of one classifier and whose state is its batch statistics."""

    classifier: Network

    def init(self, key: jax.Array, batch: Batch) -> Variables:
        """Return fresh variables of the classifier; the shape of the images is the classifier's own."""
        del batch
        return Variables(*self.classifier.init(key))

    @abc.abstractmethod
    def loss(self, params: Any, state: Any, batch: Batch, key: jax.Array) -> tuple[jax.Array, tuple[Any, Metrics]]:
        """Return the scalar loss, the next batch statistics and metrics; see `jrobust.training.method.Method`."""

    def start_from(self, variables: Variables, load: Callable[[Variables], Variables]) -> Variables:
        """Return fresh variables in which every network starts from what `load` makes of its own."""
        return load(variables)

    def with_axis(self, axis_name: str | None) -> Self:
        """Return this method for a batch that is divided among the devices of an axis."""
        return dataclasses.replace(self, classifier=self.classifier.with_axis(axis_name))

    def gathered(self, rows: Any) -> Any:
        """Return arrays of one row an example for the whole batch: of several devices those of all in turn."""
        axis = self.classifier.axis_name
        return rows if axis is None else jax.lax.all_gather(rows, axis, tiled=True)

    def deployed(self, variables: Variables) -> Variables:
        """Return the variables of the one network that is evaluated and exported."""
        return variables

    def logits(self, deployed: Variables, images: jax.Array, *, beta: float | None = None) -> jax.Array:
        """Return float32[B, K] in inference mode, masks without noise; `beta` puts softplus in the place of ReLU."""
        return self.classifier.apply(deployed.params, deployed.state, images, beta=beta, mask_mode="mean").logits


def accuracy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Return the share of examples whose largest logit is the label's, float32[]."""
    return jnp.mean(jnp.argmax(logits, -1) == labels)


def clean_metrics(logits: jax.Array, labels: jax.Array) -> Metrics:
    """Return the mean cross-entropy and the accuracy on the clean images of a batch."""
    return {"cross_entropy": jnp.mean(cross_entropy(logits, labels)), "train_accuracy": accuracy(logits, labels)}
