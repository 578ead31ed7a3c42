"""Classes made equally large by transformed copies, as the ART paper does for GTSRB and Flower17."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

from jrobust.data.source import Source
from jrobust.errors import InputError

ROTATION = 15.0  # degrees
TRANSLATION = 2.5  # pixels
WARP = 0.3  # of the height, times U(0, 0.8)


def balanced(source: Source, per_class: int, seed: int = 0) -> Source:
    """Return a source with `per_class` images of every class: the originals, then transformed copies of them.

    The first `len(source)` images are the originals at their own positions. The copies follow class by class, cycling
    through the class's originals; copy `i` is a function of `seed` and `i`. GTSRB is balanced to 10,000 a class,
    Flower17 to 1,000.

    Raises:
      InputError: a class is larger than `per_class`, or has no image to copy.
    """
    return _Balanced(source, per_class, seed)


class _Balanced(Source):
    def __init__(self, source: Source, per_class: int, seed: int):
        counts = np.bincount(source.labels, minlength=len(source.class_names))
        largest, smallest = int(counts.argmax()), int(counts.argmin())
        if counts[largest] > per_class or counts[smallest] == 0:
            wrong = largest if counts[largest] > per_class else smallest
            raise InputError(
                f"class {source.class_names[wrong]!r} of {source.name} has {counts[wrong]} images: expected 1 "
                f"to {per_class} (data.balance_to), as originals are kept and copied; set it to at least {counts.max()}"
            )
        originals = [np.arange(len(source))]
        for k, count in enumerate(counts):
            originals.append(np.resize(np.flatnonzero(source.labels == k), per_class - count))
        self._original = np.concatenate(originals)
        self._source, self._seed = source, seed
        self.name, self.split, self.class_names = source.name, source.split, source.class_names
        self.labels, self.place = source.labels[self._original], source.place
        self.bias_names = source.bias_names
        self.biases = None if source.biases is None else source.biases[self._original]

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return self._source.image_shape

    def __getitem__(self, i: int) -> dict[str, Any]:
        i = range(len(self))[i]
        example = self._source[int(self._original[i])]
        kept: dict[str, Any] = {key: example[key] for key in ("image", "label", "bias") if key in example}
        if i >= len(self._source):
            kept["image"] = transform(kept["image"], np.random.default_rng([self._seed, i]))
        return kept


def transform(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return uint8[H, W, C] rotated, shifted and warped at random, each bilinear.

    Rotation by U(-15, 15) degrees about the centre, the edge repeated outside; translation by U(-2.5, 2.5) pixels in x
    and y, zero outside; projection that moves every coordinate of every corner by U(-d, d), d = 0.3 H U(0, 0.8), the
    edge repeated outside.
    """
    height, width = image.shape[:2]
    angle = np.deg2rad(rng.uniform(-ROTATION, ROTATION))
    shift_x, shift_y = rng.uniform(-TRANSLATION, TRANSLATION, 2)
    reach = WARP * height * rng.uniform(0, 0.8)
    corners = np.array([[0, 0], [width, 0], [width, height], [0, height]], np.float64)
    moved = corners + rng.uniform(-reach, reach, (4, 2))

    cos, sin, x, y = np.cos(angle), np.sin(angle), width / 2, height / 2
    turn = np.array([[cos, -sin, x - cos * x + sin * y], [sin, cos, y - sin * x - cos * y], [0, 0, 1]])
    image = _warp(image, turn, repeat_edge=True)
    image = _warp(image, np.array([[1, 0, -shift_x], [0, 1, -shift_y], [0, 0, 1]]), repeat_edge=False)
    return _warp(image, homography(corners, moved), repeat_edge=True)


def homography(start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """Return the 3x3 matrix, its last entry 1, that takes the four points `start` [4, 2] to `end` [4, 2]."""
    rows, values = [], []
    for (x, y), (u, v) in zip(start, end, strict=True):
        rows += [[x, y, 1, 0, 0, 0, -u * x, -u * y], [0, 0, 0, x, y, 1, -v * x, -v * y]]
        values += [u, v]
    return np.append(np.linalg.solve(np.array(rows), np.array(values)), 1).reshape(3, 3)


def _warp(image: np.ndarray, matrix: np.ndarray, *, repeat_edge: bool) -> np.ndarray:
    """Return the image whose pixel p is read at `matrix` p, in coordinates where (0, 0) is the image's corner."""
    height, width, channels = image.shape
    # PIL fills with zero: to repeat the edge, the image is padded by it; d <= 0.24 H, and a turn by 15 degrees reaches
    # no further than 0.15 of the longer side
    margin = int(np.ceil(0.25 * max(height, width))) + 2 if repeat_edge else 0
    if margin:
        rows = np.clip(np.arange(-margin, height + margin), 0, height - 1)
        columns = np.clip(np.arange(-margin, width + margin), 0, width - 1)
        image = image[rows[:, None], columns]
        matrix = np.array([[1, 0, margin], [0, 1, margin], [0, 0, 1]]) @ matrix
        matrix = matrix / matrix[2, 2]
    pil = Image.fromarray(image[..., 0] if channels == 1 else image)
    data = tuple(matrix.reshape(-1)[:8].tolist())
    warped = np.asarray(
        pil.transform((width, height), Image.Transform.PERSPECTIVE, data, Image.Resampling.BILINEAR, fillcolor=0)
    )
    return warped[..., None] if channels == 1 else warped
