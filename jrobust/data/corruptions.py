"""Eight corruptions of RGB images with which a trained model is tested.

Sampling follows imgaug 0.4.0, which does not run with NumPy 2; the draws are our own, one key for each image.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

from jrobust.data import counters
from jrobust.data.source import Source
from jrobust.errors import InputError, unknown

# The paper leaves the size of Dropout's cells open. imgaug's documentation shows (0.02, 0.25) beside the probability
# (0, 0.05) that the paper takes; its default without `size_percent` is 3 to 8 cells a side.
DROPOUT_CELLS = (0.02, 0.25)
PLACES = ("native", "resized")

Cells = tuple[float, float]


def corrupt(
    image: np.ndarray, name: str, rng: np.random.Generator, *, dropout_cells: Cells = DROPOUT_CELLS
) -> np.ndarray:
    """Return a corrupted copy of an image, uint8[H, W, 3].

    | name | draws and effect |
    |---|---|
    | gaussian | s ~ U(0, 2.55); adds one n ~ N(0, s) a pixel, the same on all channels; rounded |
    | salt_pepper | a pixel becomes grey 255 Beta(1/2, 1/2) with probability 0.001 |
    | cutout | two squares of side 0.2 H, centres ~ U over the image, become 128 |
    | dropout | p ~ U(0, 0.05); cells of an h x w grid (see `dropout_cells`) become 0 with probability p |
    | rotation | angle ~ U(-30, 30) degrees about the centre, bilinear, mirrored border |
    | perspective | s ~ U(0.05, 0.15); corners move inwards by abs(N(0, s)) of the side; what is between is shown |
    | jpeg | quality round(1 + 99 (1 - c/101)), c the integer part of U(80, 95): 22 to 8 |
    | gaussian_blur | sigma ~ U(1, 3), mirrored border |

    Args:
      image: uint8[H, W, 3].
      name: one of `CORRUPTIONS`.
      rng: all randomness comes from it.
      dropout_cells: `dropout` draws u ~ U(low, high) for each side and has max(int(u * side), 3) cells along it.

    Raises:
      InputError: no such corruption.
      ValueError: the image has another shape or type.
    """
    if name not in _FUNCTIONS:
        raise unknown("corruption", name, CORRUPTIONS)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3:
        raise ValueError(f"image {image.dtype}{list(image.shape)}: expected uint8[H, W, 3]")
    if name == "dropout":
        return _dropout(image, rng, dropout_cells)
    return _FUNCTIONS[name](image, rng)


def corrupted(
    source: Source, name: str, seed: int = 0, at: str = "native", *, dropout_cells: Cells = DROPOUT_CELLS
) -> Source:
    """Return the source with one of `CORRUPTIONS` on every image; the draws are fixed by (seed, name, position).

    Its examples have `image`, `label` and, where the source has it, `bias`. `arrays()` keeps the corrupted split, so
    that all models are tested on the same images.

    Args:
      source: RGB images.
      name: one of `CORRUPTIONS`.
      seed: decides all draws.
      at: "native" corrupts the image at the size of its file, and then resizes as the source does; "resized" corrupts
        the image that the source returns.
      dropout_cells: see `corrupt`.

    Raises:
      InputError: no such corruption or `at`, grey images, a bad seed, or cells that are no two numbers in (0, 1].
    """
    if name not in _FUNCTIONS:
        raise unknown("corruption", name, CORRUPTIONS)
    if at not in PLACES:
        raise unknown("place of corruption", at, PLACES)
    if source.image_shape[-1] != 3:
        raise InputError(f"{source.name} has grey images: corruptions expect RGB images")
    if len(dropout_cells) != 2 or not 0 < dropout_cells[0] <= dropout_cells[1] <= 1:
        raise InputError(
            f"dropout_cells are {dropout_cells}: expected two fractions of a side, such as {DROPOUT_CELLS}"
        )
    counters.bits(seed, 0, 0)  # raises for a bad seed
    return _Corrupted(source, name, seed, at, dropout_cells)


class _Corrupted(Source):
    def __init__(self, source: Source, corruption: str, seed: int, at: str, cells: Cells):
        self._source, self._base = source, source.native() if at == "native" else source
        self._corruption, self._seed, self._at, self._cells = corruption, seed, at, cells
        self.name, self.split, self.place = f"{source.name} with {corruption}", source.split, source.place
        self.class_names, self.labels = source.class_names, source.labels
        self.bias_names, self.biases, self.image_size = source.bias_names, source.biases, source.image_size

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return self._source.image_shape

    def __getitem__(self, i: int) -> dict[str, Any]:
        example = self._base[i]
        stream = counters.CORRUPTED + CORRUPTIONS.index(self._corruption)
        rng = np.random.Generator(counters.bits(self._seed, stream, i))
        image = corrupt(example["image"], self._corruption, rng, dropout_cells=self._cells)
        if self._at == "native":
            image = self._source.resized(image)
        # boxes and masks do not follow the geometric ones
        return {"image": image} | {key: example[key] for key in ("label", "bias") if key in example}


def _gaussian(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    scale = rng.uniform(0, 0.01 * 255)
    noise = rng.normal(0, scale, image.shape[:2])
    return np.clip(np.rint(image + noise[..., None]), 0, 255).astype(np.uint8)


def _salt_pepper(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    hit = rng.random(image.shape[:2]) < 0.001
    grey = np.rint(255 * rng.beta(0.5, 0.5, image.shape[:2])).astype(np.uint8)
    return np.where(hit[..., None], grey[..., None], image)


def _cutout(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    height, width = image.shape[:2]
    half = 0.2 * height / 2
    result = image.copy()
    for y, x in rng.random((2, 2)) * (height, width):
        top, bottom = (min(max(int(edge), 0), height) for edge in (y - half, y + half))
        left, right = (min(max(int(edge), 0), width) for edge in (x - half, x + half))
        result[top:bottom, left:right] = 128
    return result


def _dropout(image: np.ndarray, rng: np.random.Generator, cells: Cells = DROPOUT_CELLS) -> np.ndarray:
    height, width = image.shape[:2]
    probability = rng.uniform(0, 0.05)
    rows, columns = (max(int(u * side), 3) for u, side in zip(rng.uniform(*cells, 2), (height, width), strict=True))
    kept = rng.random((rows, columns)) >= probability
    nearest = kept[(np.arange(height) * rows // height)[:, None], np.arange(width) * columns // width]
    return np.where(nearest[..., None], image, np.uint8(0))


def _rotation(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return _rotate(image, rng.uniform(-30, 30))


def _rotate(image: np.ndarray, degrees: float) -> np.ndarray:
    import cv2

    height, width = image.shape[:2]
    matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), degrees, 1.0)
    return cv2.warpAffine(image, matrix, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)


def _perspective(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    scale = rng.uniform(0.05, 0.15)
    return _show_between(image, np.abs(rng.normal(0, scale, (4, 2))) % 1)


def _show_between(image: np.ndarray, jitter: np.ndarray) -> np.ndarray:
    """Return the quadrangle whose corners lie `jitter` [4, 2] (of the sides, x and y) inwards, as an H x W image."""
    import cv2

    height, width = image.shape[:2]
    inwards = np.array([[0, 0], [1, 0], [1, 1], [0, 1]]) * (1 - 2 * jitter) + jitter  # clockwise from the top left
    points = inwards * (width, height)
    total, difference = points.sum(1), points[:, 1] - points[:, 0]
    order = [total.argmin(), difference.argmin(), total.argmax(), difference.argmax()]
    corners = points[order].astype(np.float32)
    top, right, bottom, left = np.linalg.norm(corners - np.roll(corners, -1, 0), axis=1)
    # a quadrangle may be all but a line; two pixels can still be resized
    target_width, target_height = max(int(max(top, bottom)), 2), max(int(max(left, right)), 2)
    # imgaug counts edges of pixels here and centres of pixels in the warp
    target = np.array([[0, 0], [target_width, 0], [target_width, target_height], [0, target_height]], np.float32)
    matrix = cv2.getPerspectiveTransform(corners, target)
    warped = cv2.warpPerspective(
        image, matrix, (target_width, target_height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT
    )
    if (target_height, target_width) == (height, width):
        return warped
    larger = height > target_height or width > target_width
    return cv2.resize(warped, (width, height), interpolation=cv2.INTER_AREA if larger else cv2.INTER_LINEAR)


def _jpeg(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return jpeg(image, jpeg_quality(rng.uniform(80, 95)))


def jpeg_quality(compression: float) -> int:
    """Return Pillow's quality, 1 to 100, for imgaug's compression, whose integer part is one of 0 to 100.

    >>> jpeg_quality(80.0), jpeg_quality(94.99)
    (22, 8)
    """
    return round(1 + 99 * (1 - int(compression) / 101))


def jpeg(image: np.ndarray, quality: int) -> np.ndarray:
    """Return uint8[H, W, 3] as it is after JPEG with a quality of Pillow."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file))


def _gaussian_blur(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    import cv2

    sigma = rng.uniform(1, 3)
    size = blur_size(sigma)
    return cv2.GaussianBlur(image, (size, size), sigmaX=sigma, sigmaY=sigma, borderType=cv2.BORDER_REFLECT_101)


def blur_size(sigma: float) -> int:
    """Return the odd side of the kernel that imgaug gives a Gaussian of `sigma` < 5.

    >>> blur_size(1.0), blur_size(2.0), blur_size(2.99), blur_size(3.0)
    (5, 7, 9, 9)
    """
    size = math.floor(max((3.3 if sigma < 3 else 2.9) * sigma, 5))
    return size + 1 - size % 2


_FUNCTIONS: dict[str, Callable[[np.ndarray, np.random.Generator], np.ndarray]] = {
    "gaussian": _gaussian,
    "salt_pepper": _salt_pepper,
    "cutout": _cutout,
    "dropout": _dropout,
    "rotation": _rotation,
    "perspective": _perspective,
    "jpeg": _jpeg,
    "gaussian_blur": _gaussian_blur,
}
CORRUPTIONS = tuple(_FUNCTIONS)
