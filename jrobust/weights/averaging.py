"""Averages of the parameters of models of one architecture: between two, of many, and of those that help.

All of it is computed in float32 or wider, leaf by leaf, and equal models average to themselves to the bit. A tree is
any pytree of arrays. Only floating-point numbers are averaged: others must be equal in all trees and stay.

M. Wortsman et al., "Robust fine-tuning of zero-shot models" (WiSE-FT), CVPR 2022; "Model soups: averaging weights of
multiple fine-tuned models improves accuracy without increasing inference time", ICML 2022.

Batch statistics are no parameters: the average of two networks' is not what the averaged network has. Leave them out,
and measure them anew on training images, or average networks whose statistics are the same and frozen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jrobust.errors import InputError
from jrobust.weights.arrays import some
from jrobust.weights.trees import named, refilled

Tree = Any


class Tried(NamedTuple):
    """What became of one ingredient of a greedy soup.

    Attributes:
      position: among the ingredients as they were given.
      alone: its accuracy.
      together: that of the mean of it and of all taken before it.
      taken: whether it stays in the mean.
    """

    position: int
    alone: float
    together: float
    taken: bool


class Greedy(NamedTuple):
    """A greedy soup, its accuracy, and what was tried, in that order."""

    tree: Tree
    accuracy: float
    tried: tuple[Tried, ...]


def interpolate(original: Tree, fine_tuned: Tree, share: float) -> Tree:
    """Return th0 + share (th1 - th0) over all parameters, with the types of the original (WiSE-FT).

    Shares 0 and 1 are the two models themselves.

    >>> interpolate({"w": np.float32([0, 4])}, {"w": np.float32([8, 4])}, 0.25)
    {'w': array([2., 4.], dtype=float32)}

    Raises:
      InputError: a share outside [0, 1], or trees that are not of one model.
    """
    if not 0 <= share <= 1:
        raise InputError(f"the share is {share:g}: expected a number from 0, the original, to 1, the fine-tuned model")
    _check_same(named(original), named(fine_tuned), "the fine-tuned model")
    if share in (0, 1):
        return fine_tuned if share else original
    mean = _Mean(original)
    mean.move(named(fine_tuned), share)
    return mean.tree()


def uniform(trees: Iterable[Tree]) -> Tree:
    """Return the arithmetic mean, with the types of the first (a uniform soup).

        m_k = m_{k-1} + (th_k - m_{k-1}) / k

    Holds the mean and one more tree, provided that the iterator lets go of what it has given.

    >>> uniform({"w": np.float32([n, 0])} for n in (1, 2, 6))
    {'w': array([3., 0.], dtype=float32)}

    Raises:
      InputError: no trees, or such as are not of one model.
    """
    mean: _Mean | None = None
    for tree in trees:
        if mean is None:
            mean = _Mean(tree)
        else:
            mean.add(tree, f"ingredient {mean.count + 1}")
        del tree  # before the next is made
    if mean is None:
        raise InputError("there is nothing to average: expected at least one model")
    return mean.tree()


def greedy(ingredients: Sequence[Callable[[], Tree]], accuracy_of: Callable[[Tree], float]) -> Greedy:
    """Return the greedy soup (Recipe 1 of Model soups).

    From the best of `ingredients` on held-out images to the worst, equal ones as they were given: one is added where
    the mean with it is more accurate than the mean without it; as accurate is not enough. The first is always taken.
    Holds three trees at most: the mean, an ingredient, and the mean with it.

    Args:
      ingredients: make a tree each, twice.
      accuracy_of: of a tree, on images that were not trained on, and that nothing is reported on.

    Raises:
      InputError: no ingredients, or such as are not of one model.
    """
    if not ingredients:
        raise InputError("there is nothing to average: expected at least one model")
    alone = [accuracy_of(load()) for load in ingredients]
    first, *rest = sorted(range(len(alone)), key=lambda position: -alone[position])  # stable: equal ones stay in order
    mean, best = _Mean(ingredients[first]()), alone[first]
    tried = [Tried(first, alone[first], alone[first], True)]
    for position in rest:
        candidate = mean.copy()
        candidate.add(ingredients[position](), f"ingredient {position + 1}")
        together = accuracy_of(candidate.tree())
        taken = together > best
        if taken:
            mean, best = candidate, together
        tried.append(Tried(position, alone[position], together, taken))
    return Greedy(mean.tree(), best, tuple(tried))


class _Mean:
    """A running mean."""

    def __init__(self, tree: Tree):
        self.count = 1
        self._like = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)
        self._leaves = {name: _wide(leaf) for name, leaf in named(tree).items()}

    def add(self, tree: Tree, what: str) -> None:
        """Take one more tree into the mean."""
        leaves = named(tree)
        _check_same(named(self._like), leaves, what)
        self.count += 1
        self.move(leaves, 1 / self.count)

    def move(self, leaves: Mapping[str, Any], share: float) -> None:
        """Go a part of the way to other leaves, one by one, so that no third model is held."""
        for name, leaf in leaves.items():
            mean = self._leaves[name]
            if _averaged(leaf):
                # Not (1 - share) a + share b, which rounds where both are the same.
                self._leaves[name] = mean + share * (_wide(leaf) - mean)
            elif not np.array_equal(leaf, mean):
                raise InputError(
                    f"{name} is no floating-point number and not the same in all models: nothing to average"
                )

    def copy(self) -> _Mean:
        """Return a mean that goes on from here by itself."""
        other = object.__new__(_Mean)
        other.count, other._like, other._leaves = self.count, self._like, dict(self._leaves)
        return other

    def tree(self) -> Tree:
        """Return the mean, with the types of the first tree."""
        types = named(self._like)
        return refilled(self._like, {name: leaf.astype(types[name].dtype) for name, leaf in self._leaves.items()})


def _averaged(leaf: Any) -> bool:
    return bool(jnp.issubdtype(leaf.dtype, jnp.floating))


def _wide(leaf: Any) -> Any:
    """Return a leaf in float32 or wider; whole numbers as they are."""
    return leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32)) if _averaged(leaf) else leaf


def _check_same(wanted: Mapping[str, Any], found: Mapping[str, Any], what: str) -> None:
    """Raise InputError where leaves are not those of the same model."""
    if other := sorted(set(wanted) ^ set(found)):
        raise InputError(f"{what} is of another model: one has {some(other)}, the other has not; average equal models")
    for name, leaf in wanted.items():
        if leaf.shape != found[name].shape:
            raise InputError(
                f"{what} is of another model: {name} has the shape {found[name].shape}, not {leaf.shape}; average equal"
                " models"
            )
