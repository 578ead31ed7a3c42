"""A source with captions for each image, as token ids, for training on pairs of images and texts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from jrobust.data import shapes
from jrobust.data.source import Arrays, Source
from jrobust.errors import InputError


def captioned(source: Source, tokens: np.ndarray) -> Source:
    """Return the source whose examples, batches and arrays also have `tokens` int32[D, T], the captions of the image.

    A source that is on the device with fewer images than examples (`row` of `resident`) has them there once for each
    example then, as its examples have captions of their own: give captions before `repeated`.

    Args:
      source: N images.
      tokens: integers [N, D, T], D captions of T ids for each image.

    Raises:
      InputError: `tokens` are no integers of at least 0, have another shape, or are not N times at least one caption.
    """
    return _Captioned(source, tokens)


def shapes_tokens(source: Source, draws: int, length: int) -> np.ndarray:
    """Return int32[N, draws, length]: captions 0 .. draws - 1 of each image of a split of `shapes`, by its own words.

    Raises:
      InputError: the source is no split of `shapes`, there are no draws, or a caption is longer than `length`.
    """
    if draws < 1:
        raise InputError(f"{draws} captions for each image: expected at least 1")
    drawn = [shapes.tokens(shapes.captions(source, draw=draw), length) for draw in range(draws)]
    return np.stack(drawn, axis=1)


class _Captioned(Source):
    def __init__(self, source: Source, tokens: np.ndarray):
        array = np.asarray(tokens)
        shape, what = list(array.shape), f"{source.name} {source.split} with its {len(source)} images"
        if not np.issubdtype(array.dtype, np.integer) or array.ndim != 3 or not array.size or len(array) != len(source):
            raise InputError(f"tokens are {array.dtype}{shape}: expected integers [{len(source)}, D, T] for {what}")
        if array.min() < 0 or array.max() > np.iinfo(np.int32).max:
            raise InputError(f"tokens of {what} lie in {array.min()} .. {array.max()}: expected ids of a vocabulary")
        self.tokens = array.astype(np.int32)
        self._source = source
        self.name, self.split, self.place = source.name, source.split, source.place
        self.class_names, self.bias_names, self.image_size = source.class_names, source.bias_names, source.image_size
        self.labels, self.biases = source.labels, source.biases

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return self._source.image_shape

    def __getitem__(self, i: int) -> dict[str, Any]:
        return {**self._source[i], "tokens": self.tokens[i]}

    def examples(self, index: Sequence[int] | np.ndarray) -> Arrays:
        return {**self._source.examples(index), "tokens": self.tokens[np.asarray(index)]}

    def arrays(self) -> Arrays:
        return {**self._source.arrays(), "tokens": self.tokens}

    def resident(self) -> Arrays:
        arrays = dict(self._source.resident())
        if "row" in arrays:
            row = arrays.pop("row")
            arrays = {key: value[row] for key, value in arrays.items()}
        return {**arrays, "tokens": self.tokens}

    def native(self) -> Source:
        native = self._source.native()
        return self if native is self._source else _Captioned(native, self.tokens)

    def resized(self, image: np.ndarray) -> np.ndarray:
        return self._source.resized(image)
