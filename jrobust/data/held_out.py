"""A part of the training set that is held out of training, for data sets without a validation split of their own."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from jrobust.data.repeated import repeated
from jrobust.data.source import Source
from jrobust.errors import InputError


class Divided(NamedTuple):
    """A training set in two parts without a common image, each in the order of the whole."""

    train: Source
    validation: Source


def held_out(source: Source, count: int, seed: int) -> Divided:
    """Return a training set without `count` of its images, and these as the split `validation`.

    The draw is stratified by class: of a class with n of the N images count n / N are held out, rounded down or up so
    that all are `count`, those of the largest remainders up and of equal ones some by lot. Which images depends on the
    labels, `count` and `seed` alone. It is that of scikit-learn's `train_test_split`, which the released code of masked
    images calls, so that with the same seed and order of images the same ones are held out.

    Positions in either part count its own images. On the device `source` is there whole: `resident()` has `row`.

    >>> from jrobust.data.source import from_arrays
    >>> whole = from_arrays(np.zeros((12, 2, 2, 1)), np.repeat([0, 1], [8, 4]))
    >>> [(part.split, np.bincount(part.labels).tolist()) for part in held_out(whole, 3, seed=0)]
    [('train', [6, 3]), ('validation', [2, 1])]

    Raises:
      InputError: a class has a single image, or either part would have fewer images than there are classes; or the seed
        is not in 0 .. 2**32 - 1.
    """
    names, sizes = np.unique(source.labels, return_counts=True)
    if sizes.min() < 2:
        single = source.class_names[names[sizes.argmin()]]
        raise InputError(
            f"class {single!r} of {source.name} has one image: data.held_out needs two of each; set it to 0, or leave"
            " the class out"
        )
    if not len(names) <= count <= len(source) - len(names):
        raise InputError(
            f"data.held_out is {count}: expected {len(names)} to {len(source) - len(names)} of the {len(source)} images"
            f" of {source.name}, at least one of each of the {len(names)} classes on both sides, or 0 for none"
        )
    if not 0 <= seed < 2**32:
        raise InputError(f"the seed of data.held_out is {seed}: expected 0 to {2**32 - 1}; set data.held_out_seed")
    from sklearn.model_selection import train_test_split  # takes a second to import

    rows = train_test_split(
        np.arange(len(source)), train_size=len(source) - count, random_state=seed, stratify=source.labels
    )
    train, validation = map(np.sort, rows)
    return Divided(repeated(source, train), repeated(source, validation, split="validation"))
