"""Natural training: cross-entropy on clean images, the baseline of every paper."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax

from jrobust import keys
from jrobust.methods.network import NetworkMethod, clean_metrics
from jrobust.training.method import Batch, Metrics


@dataclasses.dataclass(frozen=True)
class Standard(NetworkMethod):
    """Minimise the mean cross-entropy of clean images; batch norm on batch statistics, dropout on."""

    def loss(self, params: Any, state: Any, batch: Batch, key: jax.Array) -> tuple[jax.Array, tuple[Any, Metrics]]:
        """Return mean CE(x), the next batch statistics, and the metrics loss and accuracy."""
        out = self.classifier.apply(
            params, state, batch["image"], train=True, keys=keys.per_example(key, batch["index"])
        )
        metrics = clean_metrics(out.logits, batch["label"])
        return metrics["cross_entropy"], (out.batch_stats, metrics)
