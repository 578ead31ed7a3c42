"""From a config to the splits of its data set."""

from __future__ import annotations

import functools
from typing import Any

from jrobust import data


def source(config: Any, split: str) -> data.Source:
    """Return a split of the data set of a config; with data.held_out `train` and `validation` are parts of the former.

    Raises:
      InputError: it cannot be had.
    """
    section = config.data
    # Runs of earlier versions have no options.
    of = section.name, section.dir, section.image_size, tuple(sorted(section.get("options", {}).items()))
    if split == "test" or (drawn := held_out_draw(config)) is None:
        return _load(*of, split)
    divided = _divided(*of, *drawn)
    return divided.train if split == "train" else divided.validation


def held_out_draw(config: Any) -> tuple[int, int] | None:
    """Return how many training images are held out and with which seed they are drawn, None for none.

    >>> import ml_collections
    >>> held_out_draw(ml_collections.ConfigDict({"seed": 3, "data": {"held_out": 20, "held_out_seed": -1}}))
    (20, 3)
    """
    count = config.data.get("held_out", 0)  # runs of earlier versions have none
    if not count:
        return None
    seed = config.data.held_out_seed
    return count, config.seed if seed == -1 else seed


@functools.lru_cache(maxsize=3)  # the runs of a study mostly read the same splits
def _load(name: str, dir: str, image_size: int, options: tuple[tuple[str, Any], ...], split: str) -> data.Source:
    return data.load(name, split, dir, image_size=image_size, **dict(options))


@functools.lru_cache(maxsize=1)
def _divided(
    name: str, dir: str, image_size: int, options: tuple[tuple[str, Any], ...], count: int, seed: int
) -> data.Divided:
    return data.held_out(_load(name, dir, image_size, options, "train"), count, seed)
