"""Just train twice: what a first network gets wrong, a second one sees many times (Liu et al. 2021).

The first stage is `Identification`. The second is training on the rows of `upsampled`: `Standard` or, with BiasAdv,
`JTT`, which holds the first network frozen.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jrobust import keys
from jrobust.errors import InputError
from jrobust.methods.debiasing import Debiasing, Terms
from jrobust.methods.network import NetworkMethod, clean_metrics
from jrobust.training.method import Batch, Metrics, Replicated, Variables


@dataclasses.dataclass(frozen=True)
class Identification(NetworkMethod):
    """Minimise mean CE(x), and remember of each training image whether its newest prediction was wrong.

    The predictions are those of training: batch statistics, augmented images, weights that change between batches. What
    is remembered after the last epoch is the error set of JTT's released code.

    Attributes:
      num_examples: the size of the training set.
    """

    num_examples: int = 0

    def __post_init__(self) -> None:
        if self.num_examples < 1:
            raise InputError("method 'identification' remembers each training image: their number is missing")

    def init(self, key: jax.Array, batch: Batch) -> Variables:
        """Return a fresh network and `wrong` bool[N], False where an image was never seen."""
        network = super().init(key, batch)
        return Variables(network.params, {"network": network.state, "wrong": jnp.zeros(self.num_examples, bool)})

    def start_from(self, variables: Variables, load: Callable[[Variables], Variables]) -> Variables:
        """Return the variables with the network started from what `load` makes of it."""
        network = load(self.deployed(variables))
        return Variables(network.params, variables.state | {"network": network.state})

    def deployed(self, variables: Variables) -> Variables:
        """Return the network without what it remembers."""
        return Variables(variables.params, variables.state["network"])

    def loss(self, params: Any, state: Any, batch: Batch, key: jax.Array) -> tuple[jax.Array, tuple[Any, Metrics]]:
        """Return mean CE(x), the next state, and metrics."""
        labels, index, noise = batch["label"], batch["index"], keys.per_example(key, batch["index"])
        out = self.classifier.apply(params, state["network"], batch["image"], train=True, keys=noise)
        rows, wrong_now = self.gathered((index, jnp.argmax(out.logits, -1) != labels))  # every device keeps all rows
        wrong = state["wrong"].at[rows].set(wrong_now, mode="drop")
        metrics = clean_metrics(out.logits, labels)
        return metrics["cross_entropy"], ({"network": out.batch_stats, "wrong": wrong}, metrics)


def upsampled(wrong: np.ndarray, copies: int, count: Literal["total", "extra"] = "total") -> np.ndarray:
    """Return the rows of the upsampled training set D_up, int64[M]: every image once, those of the error set often.

    Args:
      wrong: bool[N], the error set.
      copies: N_up, how often an image of the error set is there in all ("total", the paper), or besides its first
        ("extra", the released code, which puts N_up copies behind the original set).
      count: which of the two.

    >>> upsampled(np.array([False, True, False]), 3).tolist()
    [0, 1, 2, 1, 1]

    Raises:
      InputError: fewer than one copy.
    """
    if copies < 1:
        raise InputError(f"jtt.copies is {copies}: expected at least 1")
    return np.concatenate([np.arange(len(wrong)), np.repeat(np.flatnonzero(wrong), copies - (count == "total"))])


@dataclasses.dataclass(frozen=True)
class JTT(Debiasing):
    """Minimise mean CE(x; theta) on the upsampled set, phi frozen as the first stage left it: for BiasAdv only.

    phi is state, not parameters: it gets no gradient, no weight decay and no moments.
    """

    def init(self, key: jax.Array, batch: Batch) -> Variables:
        """Return two fresh networks; `with_biased` puts the first stage's in the place of the biased one."""
        fresh = super().init(key, batch)
        debiased = Variables({"debiased": fresh.params["debiased"]}, {"debiased": fresh.state["debiased"]})
        return self.with_biased(debiased, super().biased(fresh))

    def with_biased(self, variables: Variables, network: Variables) -> Variables:
        """Return the variables with `network` as the frozen phi."""
        return Variables(variables.params, variables.state | {"biased": Replicated(network)})

    def biased(self, variables: Variables) -> Variables:
        """Return phi with its batch statistics."""
        return variables.state["biased"].value

    def start_from(self, variables: Variables, load: Callable[[Variables], Variables]) -> Variables:
        """Return the variables with theta started from what `load` makes of it; phi has been trained already."""
        debiased = load(self.debiased(variables))
        return Variables(
            variables.params | {"debiased": debiased.params}, variables.state | {"debiased": debiased.state}
        )

    def terms(self, params: Any, state: Any, batch: Batch, key: jax.Array) -> Terms:
        """Return the loss; the weights of both images are 1, as the copies are JTT's weights."""
        theta = self.forward(self.debiased(Variables(params, state)), batch["image"], batch["index"], key)
        metrics = clean_metrics(theta.logits, batch["label"])
        state = state | {"debiased": theta.batch_stats}
        return Terms(metrics["cross_entropy"], jnp.ones(batch["label"].shape), state, metrics)
