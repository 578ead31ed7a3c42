"""Random bits on the host that belong to an image, whatever else is drawn before or beside it."""

from __future__ import annotations

import numpy as np

from jrobust.errors import InputError

# what is drawn; a corruption of a test set has the stream CORRUPTED plus its number, shapes have nine from SHAPES
ICE, CIFAR10_TRAIN, CIFAR10_TEST, CORRUPTED, SHAPES = 0, 1, 2, 16, 128


def bits(seed: int, stream: int, index: int) -> np.random.Philox:
    """Return the random bits of one image, or of another thing that is counted.

    Philox is a cipher of a counter: two keys give unrelated streams, so what is drawn for an image depends neither on
    the order in which images are made nor on the number of workers. The bits are frozen; of numpy's distributions over
    them those of `np.random.RandomState` are, too.

    Args:
      seed: of the whole data set, in 0 .. 2**64 - 1.
      stream: what is drawn, in 0 .. 2**16 - 1.
      index: the position of the image in its split, in 0 .. 2**48 - 1.

    >>> int(bits(0, 1, 2).random_raw()) == int(bits(0, 1, 2).random_raw())
    True

    Raises:
      InputError: the seed is negative or too large.
    """
    if not 0 <= seed < 2**64:
        raise InputError(f"data seed {seed} is out of range: expected 0 to 2**64 - 1")
    return np.random.Philox(key=np.array([seed, (stream << 48) | index], np.uint64))
