"""A source whose examples are those of another one, in another order and multiplicity, without copies of images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from jrobust.data.source import Arrays, Source
from jrobust.errors import InputError


def repeated(source: Source, rows: Sequence[int] | np.ndarray, *, split: str = "") -> Source:
    """Return the source whose example i is `source[rows[i]]`.

    `index` in batches is the position in the new source, so two copies of an image are augmented differently. On the
    device the images are there once: `resident()` is that of `source` with `row` int32[M].

    Args:
      source: where the examples come from.
      rows: integers [M], M >= 1, in 0 .. len(source) - 1; a position may occur many times or never.
      split: what records call the split; without it as that of `source`.

    Raises:
      InputError: `rows` is empty, not integer, or out of range.
    """
    return _Repeated(source, rows, split)


class _Repeated(Source):
    def __init__(self, source: Source, rows: Sequence[int] | np.ndarray, split: str = ""):
        array = np.asarray(rows)
        if array.ndim != 1 or not len(array) or not np.issubdtype(array.dtype, np.integer):
            raise InputError(f"rows are {array.dtype}{list(array.shape)}: expected integers [M] with M of at least 1")
        if array.min() < 0 or array.max() >= len(source):
            raise InputError(
                f"rows lie in {array.min()} .. {array.max()}: expected positions in {source.name} {source.split}, "
                f"0 .. {len(source) - 1}"
            )
        self.rows = array.astype(np.int32)
        self._source = source
        self.name, self.split, self.place = source.name, split or source.split, source.place
        self.class_names, self.bias_names, self.image_size = source.class_names, source.bias_names, source.image_size
        self.labels = source.labels[self.rows]
        self.biases = None if source.biases is None else source.biases[self.rows]

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return self._source.image_shape

    def __getitem__(self, i: int) -> dict[str, Any]:
        return self._source[int(self.rows[i])]

    def examples(self, index: Sequence[int] | np.ndarray) -> Arrays:
        return self._source.examples(self.rows[np.asarray(index)])

    def resident(self) -> Arrays:
        arrays = self._source.resident()
        return {**arrays, "row": arrays["row"][self.rows] if "row" in arrays else self.rows}

    def native(self) -> Source:
        native = self._source.native()
        return self if native is self._source else _Repeated(native, self.rows, self.split)

    def resized(self, image: np.ndarray) -> np.ndarray:
        return self._source.resized(image)
