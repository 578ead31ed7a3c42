"""Which image of a labelled set gets which value of a bias attribute, and which are held out, decided by a seed."""

from __future__ import annotations

import numpy as np

from jrobust.errors import InputError

# what is drawn; a part of the seed, so that one draw says nothing about another
CONFLICTS, UNIFORM, HELD_OUT, TRAIN_VALUES, TEST_VALUES, MOVED = range(6)


def stream(seed: int, what: int) -> np.random.RandomState:
    """Return a generator for one of the draws that make a data set.

    RandomState, because its stream is frozen: a data set must not change with the version of numpy.

    Raises:
      InputError: the seed is not in 0 .. 2**32 - 1.
    """
    if not 0 <= seed < 2**32:
        raise InputError(f"data.options.seed is {seed}: expected 0 to {2**32 - 1}")
    return np.random.RandomState([seed, what])


def correlated(labels: np.ndarray, num_classes: int, ratio: float, seed: int) -> np.ndarray:
    """Return int32[N]: a bias that equals the label but in `ratio` percent of each class, chosen by the seed.

    Of a class with n images round(n ratio / 100) are conflicting. Their values are spread over the other classes as
    evenly as possible (counts differ by at most one), and which ones get one more is rotated by seed and class.

    Raises:
      InputError: the ratio is not in [0, 100], or the seed is out of range.
    """
    check_ratio(ratio)
    draw = stream(seed, CONFLICTS)
    biases = np.array(labels, np.int32)
    turn = seed
    for k in range(num_classes):
        members = draw.permutation(np.flatnonzero(labels == k))
        chosen = members[: round(len(members) * ratio / 100)]
        biases[chosen] = (k + 1 + (turn + np.arange(len(chosen))) % (num_classes - 1)) % num_classes
        turn += len(chosen)
    return biases


def uniform(labels: np.ndarray, num_values: int, seed: int) -> np.ndarray:
    """Return int32[N]: a bias without relation to the label, as balanced as the counts allow.

    Within a class, and over the whole set, the counts of any two values differ by at most one.
    """
    draw = stream(seed, UNIFORM)
    biases = np.empty(len(labels), np.int32)
    turn = seed
    for k in np.unique(labels):
        members = draw.permutation(np.flatnonzero(labels == k))
        biases[members] = (turn + np.arange(len(members))) % num_values
        turn += len(members)
    return biases


def held_out(labels: np.ndarray, biases: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """Return bool[N]: a seeded choice of `fraction` of the images, stratified by (class, aligned).

    Of the aligned and of the conflicting images round(fraction n) each are chosen; their classes have shares as
    `shares` deals them.

    Raises:
      InputError: the fraction is not in [0, 1).
    """
    if not 0 <= fraction < 1:
        raise InputError(f"data.options.valid_fraction is {fraction}: expected at least 0 and less than 1")
    draw = stream(seed, HELD_OUT)
    chosen = np.zeros(len(labels), bool)
    for aligned in (True, False):
        members = np.flatnonzero((biases == labels) == aligned)
        chosen[stratified(labels, members, round(fraction * len(members)), draw)] = True
    return chosen


def stratified(labels: np.ndarray, members: np.ndarray, count: int, draw: np.random.RandomState) -> np.ndarray:
    """Return `count` of the positions `members`, drawn class by class, each class in proportion to its size."""
    classes, sizes = np.unique(labels[members], return_counts=True)
    chosen = [members[:0]]
    for k, take in zip(classes, shares(sizes, count), strict=True):
        chosen.append(draw.permutation(members[labels[members] == k])[:take])
    return np.concatenate(chosen)


def shares(sizes: np.ndarray, count: int) -> np.ndarray:
    """Return integers that sum to `count` in proportion to `sizes`: rounded down, then the largest remainders up.

    >>> shares(np.array([5, 3, 2]), 4).tolist()
    [2, 1, 1]
    """
    total = max(1, int(sizes.sum()))
    floor, remainder = np.divmod(count * sizes, total)
    floor[np.argsort(-remainder, kind="stable")[: count - int(floor.sum())]] += 1
    return floor


def check_ratio(ratio: float) -> None:
    """Raise if a ratio of bias-conflicting images is no percentage."""
    if not 0 <= ratio <= 100:
        raise InputError(f"data.options.ratio is {ratio:g}: expected the percentage of conflicting images, 0 to 100")
