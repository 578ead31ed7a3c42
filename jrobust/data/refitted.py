"""A source whose images are resized once more after they are read."""

from __future__ import annotations

from typing import Any

import numpy as np

from jrobust.data import images as image_files
from jrobust.data.source import Source


def refitted(source: Source, size: int, fit: image_files.Fit) -> Source:
    """Return the source with its images, masks and boxes made squares of side `size`, the way `fit` says.

    Raises:
      InputError: the square is larger than what it is cut out of.
    """
    fit.check(size)
    return _Refitted(source, size, fit)


class _Refitted(Source):
    def __init__(self, source: Source, size: int, fit: image_files.Fit):
        self._source, self.image_size, self.fit = source, size, fit
        self.name, self.split, self.place = source.name, source.split, source.place
        self.class_names, self.bias_names = source.class_names, source.bias_names
        self.labels, self.biases = source.labels, source.biases

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return self.image_size, self.image_size, self._source.image_shape[-1]

    def __getitem__(self, i: int) -> dict[str, Any]:
        example = dict(self._source[i])
        height, width = np.shape(example["image"])[:2]
        example["image"] = image_files.resize(example["image"], self.image_size, self.fit)
        if "mask" in example:
            example["mask"] = image_files.resize_mask(example["mask"], self.image_size, self.fit)
        if "box" in example:
            example["box"] = image_files.scale_box(example["box"], (width, height), self.image_size, self.fit)
        return example

    def native(self) -> Source:
        return self._source.native()

    def resized(self, image: np.ndarray) -> np.ndarray:
        return super().resized(self._source.resized(image))
