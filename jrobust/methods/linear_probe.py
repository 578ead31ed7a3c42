"""Linear probing: the head of a CLIP is trained on features of its tower, which stays as it is."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax

from jrobust.methods.network import NetworkMethod, clean_metrics
from jrobust.models.clip.linear_head import LinearHead
from jrobust.replicated import Replicated
from jrobust.training.method import Batch, Metrics, Variables


@dataclasses.dataclass(frozen=True)
class LinearProbe(NetworkMethod):
    """Minimise mean CE(g(f(x)), y) over the head g alone; f is the pre-trained tower, and is state.

    A step costs one forward pass of the tower: nothing is differentiated through it, and the optimizer has no moments
    of it. What is deployed is a whole network, so that it averages with fine-tuned ones.
    """

    classifier: LinearHead

    def init(self, key: jax.Array, batch: Batch) -> Variables:
        """Return fresh variables."""
        return self._with_frozen(super().init(key, batch))

    def start_from(self, variables: Variables, load: Callable[[Variables], Variables]) -> Variables:
        """Return variables in which tower and head are what `load` makes of the network."""
        return self._with_frozen(super().start_from(self.deployed(variables), load))

    def deployed(self, variables: Variables) -> Variables:
        """Return tower and head as the parameters of one network."""
        state = dict(variables.state)
        tower = state.pop("tower").value
        return Variables({"image": tower} | variables.params, state)

    def _with_frozen(self, network: Variables) -> Variables:
        trained = {"head": network.params["head"]}
        return Variables(trained, network.state | {"tower": Replicated(network.params["image"])})

    def loss(self, params: Any, state: Any, batch: Batch, key: jax.Array) -> tuple[jax.Array, tuple[Any, Metrics]]:
        """Return mean CE(x), the state as it is, and the metrics loss and accuracy."""
        features = self.classifier.tower(state["tower"].value, state, batch["image"])
        metrics = clean_metrics(self.classifier.head(params, state, features), batch["label"])
        return metrics["cross_entropy"], (state, metrics)
