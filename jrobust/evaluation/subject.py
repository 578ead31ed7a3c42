"""What is evaluated: a function of variables and images, and the names of its classes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import jax

from jrobust.errors import InputError


class ZeroShotModel(Protocol):
    """A model whose classes are texts, and that was fine-tuned from another one."""

    def for_classes(self, prompts: Sequence[Sequence[str]]) -> Subject:
        """Return the same model as a classifier of other classes, a list of texts each.

        Where the numbers of classes are equal, the `logits` of two results compare equal, so that they share programs.
        """

    def interpolated(self, share: float) -> Subject:
        """Return (1 - share) original + share fine-tuned, for the subject's own classes and with its own `zero_shot`.

        Shares 0 and 1 are the original and the fine-tuned model exactly.
        """


@dataclasses.dataclass(frozen=True, eq=False)
class Subject:
    """A classifier to evaluate.

    A function of your own is a subject in one line, whatever library made it:

    >>> Subject("mine", ["cat", "dog"], lambda weights, images, beta=None: images.mean((1, 2)) @ weights, [[1.0, 0.0]])
    Subject(name='mine', 2 classes, 2 parameters)

    Attributes:
      name: how records and tables call it.
      class_names: one name a class, in the order of the logits.
      logits: `logits(variables, images, *, beta=None) -> float32[B, K]`, for images float32[B, H, W, C] in [0, 1];
        the normalisation is inside it. It is a static argument of compiled functions, hence hashable; `beta` asks for
        softplus in the place of ReLU (only the attack on attributions does).
      variables: any pytree of arrays. An argument of every compiled function: what `logits` captures instead is baked
        into the programs as constants, which is slow for large models.
      feature_map: `feature_map(variables, images, perturbation) -> (logits, map)`: the logits where `perturbation`, of
        the map's shape or a number, is added to the network's last feature map float[B, h, w, D], and that map. For
        Grad-CAM; None where there is none. Hashable, as `logits`.
      dtype: the compute dtype of the network's body, for the record.
      step: the training step the variables come from, for the record; None if unknown.
      note: what every record of it is to warn of, such as a choice by test images; "" for nothing.
      relevance: `relevance(variables, images, labels) -> float32[B, g, g]` in [0, 1], the patches on which the logit of
        each label rests, rows from the top; None where a network has no patches. Hashable, as `logits`.
      zero_shot: the model behind it, for other classes; None where classes are no texts.
    """

    name: str
    class_names: Sequence[str]
    logits: Callable[..., jax.Array]
    variables: Any = ()
    dtype: str = "float32"
    step: int | None = None
    feature_map: Callable[..., tuple[jax.Array, jax.Array]] | None = None
    note: str = ""
    relevance: Callable[..., jax.Array] | None = None
    zero_shot: ZeroShotModel | None = None

    def __post_init__(self):
        try:
            hash((self.logits, self.feature_map, self.relevance))
        except TypeError as error:
            raise InputError(
                f"a function of subject {self.name!r} is not hashable: expected a plain function or a method"
                " of a frozen object; pass arrays through `variables`"
            ) from error

    def __repr__(self) -> str:
        return f"Subject(name={self.name!r}, {len(self.class_names)} classes, {self.parameters} parameters)"

    @property
    def parameters(self) -> int:
        """Number of scalars in `variables.params`, or in all of `variables` where there is no such part."""
        tree = getattr(self.variables, "params", self.variables)
        return sum(int(jax.numpy.size(leaf)) for leaf in jax.tree.leaves(tree))


def replicated(subject: Subject, mesh: jax.sharding.Mesh | None) -> Subject:
    """Put the variables on every device: those of a checkpoint may be bound to one, and batches lie on all."""
    if mesh is None:
        return subject
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    return dataclasses.replace(subject, variables=jax.device_put(subject.variables, everywhere))
