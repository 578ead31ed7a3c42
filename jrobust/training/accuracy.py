"""Accuracy on held-out images, as training goes."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jrobust.errors import InputError
from jrobust.training.method import Variables
from jrobust.training.parallel import AXIS, lay_out
from jrobust.training.precision import evaluation_precision

HostBatch = Mapping[str, np.ndarray]


def make_accuracy(logits: Callable[..., jax.Array], mesh: Mesh) -> Callable[[Variables, Iterable[HostBatch]], float]:
    """Return `accuracy(variables, batches)`, the fraction of right answers among the examples that are `valid`.

    Args:
      logits: `logits(variables, images) -> float32[B, K]`, of a method's deployed variables.
      mesh: the devices; each batch is padded to a multiple of them.

    Batches are dicts of `image` float32[B, H, W, C], `label` int32[B] and, where they are padded, `valid` bool[B], all
    of one shape, so that one program serves them. The counts stay on the device until the last batch. Several
    processes all read all of them, and each computes on its own part.
    """
    split, replicated = NamedSharding(mesh, PartitionSpec(AXIS)), NamedSharding(mesh, PartitionSpec())

    @functools.partial(jax.jit, out_shardings=replicated)
    def count(counts: jax.Array, variables: Variables, images: jax.Array, labels: jax.Array, valid: jax.Array):
        right = (jnp.argmax(logits(variables, images), axis=-1) == labels) & valid
        return counts + jnp.stack([right.sum(), valid.sum()])

    def accuracy(variables: Variables, batches: Iterable[HostBatch]) -> float:
        counts = lay_out(np.zeros(2, np.int32), replicated)
        with evaluation_precision():
            for batch in batches:
                size = len(batch["label"])
                valid = np.asarray(batch.get("valid", np.ones(size, bool)))
                arrays: list[Any] = [np.asarray(batch["image"]), np.asarray(batch["label"]), valid]
                rows = -size % mesh.size
                padded = [np.pad(array, [(0, rows)] + [(0, 0)] * (array.ndim - 1)) for array in arrays]
                counts = count(counts, variables, *(lay_out(array, split) for array in padded))
        right, seen = np.asarray(counts)
        if not seen:
            raise InputError("there is no image to measure the accuracy on: expected a test split that is not empty")
        return float(right / seen)

    return accuracy
