"""The data sets on which models are tried without training: PMG-AFT's sixteen, tasks of `shapes`, ImageNet's shifts."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from jrobust.data import shapes
from jrobust.data.registry import load
from jrobust.data.source import Source
from jrobust.errors import InputError, unknown

# Images that are no thumbnails become squares of this side: the middle of a picture whose shorter side is made 256.
SIDE = 224
CROP = MappingProxyType({"fit": "crop", "resize": 256})
NATIVE: Mapping[str, Any] = MappingProxyType({})
BATCH, EVERY = 256, 20  # of the sample in PMG-AFT's tables


class ZeroShotSet(NamedTuple):
    """A data set as it is evaluated.

    Attributes:
      column: its name in tables.
      name: by which it is loaded.
      image_size: `SIDE`, or 0 where images keep their size, in which the attack then moves.
      options: what else it is loaded with.
      split: the images that are evaluated.
    """

    column: str
    name: str
    image_size: int = SIDE
    options: Mapping[str, Any] = CROP
    split: str = "test"


# the columns of the paper's tables, in their order
PAPER = {
    "cifar10": ZeroShotSet("C10", "cifar10", 0, NATIVE),
    "cifar100": ZeroShotSet("C100", "cifar100", 0, NATIVE),
    "stl10": ZeroShotSet("STL", "stl10", 0, NATIVE),
    "sun397": ZeroShotSet("SUN", "sun397"),
    "food101": ZeroShotSet("Food", "food101"),
    "oxford_pets": ZeroShotSet("Pets", "oxford_pets"),
    "flowers102": ZeroShotSet("Flow", "flowers102"),
    "dtd": ZeroShotSet("DTD", "dtd"),
    "eurosat": ZeroShotSet("EuroS", "eurosat"),
    "fgvc_aircraft": ZeroShotSet("FGVC", "fgvc_aircraft"),
    "tiny_imagenet": ZeroShotSet("TinyIN", "tiny_imagenet"),
    "imagenet": ZeroShotSet("IN", "imagenet"),
    "caltech101": ZeroShotSet("Cal101", "caltech101"),
    "caltech256": ZeroShotSet("Cal256", "caltech256"),
    "stanford_cars": ZeroShotSet("Cars", "stanford_cars"),
    "pcam": ZeroShotSet("PCAM", "pcam"),
}
SETS = PAPER | {
    f"shapes:{task}": ZeroShotSet(task, "shapes", 0, MappingProxyType({"task": task})) for task in shapes.TASKS
}

# ImageNet and what has its classes, in the order of the tables of model soups; images as Xiao et al. 2023 take them
SHIFT_CROP = MappingProxyType({"fit": "crop", "resize": SIDE, "filter": "bicubic"})
SHIFTS = {
    f"shift:{name}": ZeroShotSet(column, name, options=SHIFT_CROP)
    for name, column in {
        "imagenet": "IN",
        "imagenet_v2": "V2",
        "imagenet_r": "R",
        "imagenet_sketch": "Sketch",
        "objectnet": "ObjectNet",
        "imagenet_a": "A",
        "imagenet_samples": "IN samples",
    }.items()
}


def load_set(name: str, dir: str | pathlib.Path = "", **options: Any) -> Source:
    """Return the images of a set of `SETS` or `SHIFTS` on which models are evaluated, at its size.

    Args:
      name: one of them, such as "cifar10", "shapes:color" or "shift:imagenet_v2".
      dir: the data folder; none for the tasks of `shapes`.
      **options: settings of the data set, as for `load`; what is said of it here stands.

    >>> source = load_set("shapes:color", seed=1)
    >>> source.class_names[:2], source.image_shape
    (('red', 'yellow'), (32, 32, 3))

    Raises:
      InputError: no such set, or it cannot be loaded.
    """
    known = SETS | SHIFTS
    if name not in known:
        raise unknown("zero-shot set", name, known)
    entry = known[name]
    return load(entry.name, entry.split, dir, image_size=entry.image_size, **{**options, **entry.options})


def strided_rows(count: int, batch: int = BATCH, every: int = EVERY) -> np.ndarray:
    """Return the sample of PMG-AFT's tables: the positions i below `count` with floor(i / batch) mod every = 0.

    Where images are ordered by class, as in folders, it has few classes.

    >>> strided_rows(10, batch=2, every=3)
    array([0, 1, 6, 7])

    Raises:
      InputError: `batch` or `every` is below 1.
    """
    if batch < 1 or every < 1:
        raise InputError(f"a sample of every {every}th batch of {batch} images: expected at least 1 of both")
    return np.flatnonzero(np.arange(count) // batch % every == 0)
