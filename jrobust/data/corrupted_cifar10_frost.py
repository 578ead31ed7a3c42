"""Frost for Corrupted CIFAR-10: the user's photographs, or ice that is computed."""

from __future__ import annotations

import functools
import hashlib
import pathlib
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from jrobust.data import counters
from jrobust.data import images as image_files
from jrobust.data.corrupted_cifar10_pixels import SIDE
from jrobust.errors import InputError

USED = 5  # of the six photographs frost1.png .. frost6.jpg, the original code draws from the first five
SHRUNK = 0.2
# Mean colour and standard deviation of those five in grey levels, measured: computed ice hides as much of an image
_PHOTOGRAPHS = (
    ((78, 149, 166), 19),
    ((201, 205, 214), 22),
    ((201, 205, 214), 22),
    ((138, 153, 165), 29),
    ((112, 123, 135), 43),
)
_COMPUTED_SIDE = 128


class Frost(NamedTuple):
    """Textures uint8[h, w, 3], and what a manifest says of them."""

    textures: tuple[np.ndarray, ...]
    origin: dict[str, str | list[str]]
    tag: str  # distinguishes files on disk; empty for computed ice


def photographs(folder: pathlib.Path) -> Frost:
    """Return the first five images of a folder, by name, shrunk to 20 % as the original code shrinks them.

    They are frost1.png .. frost6.jpg of Hendrycks' robustness repository, which are not distributed with this package.

    Raises:
      InputError: the folder is missing or without images, or an image is smaller than 165 x 165.
    """
    import cv2

    if not folder.is_dir():
        raise InputError(
            f"texture folder {folder} does not exist: expected images of frost; or leave "
            "data.options.textures empty for computed ice"
        )
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in image_files.SUFFIXES)[:USED]
    if not paths:
        raise InputError(f"texture folder {folder} holds no images: expected frost1.png to frost6.jpg, or others")
    textures = []
    for path in paths:
        image, _ = image_files.read(path)
        # bilinear without antialiasing, as there: it keeps the grain of the ice
        small = cv2.resize(image, (0, 0), fx=SHRUNK, fy=SHRUNK, interpolation=cv2.INTER_LINEAR)
        if min(small.shape[:2]) <= SIDE:
            raise InputError(f"texture {path} has shape {image.shape}: expected sides of at least 165 pixels")
        textures.append(small)
    digest = hashlib.sha256(b"".join(repr(t.shape).encode() + t.tobytes() for t in textures)).hexdigest()
    return Frost(
        tuple(textures),
        {"kind": "photographs", "files": [path.name for path in paths], "sha256": digest},
        f"-frost{digest[:8]}",
    )


@functools.cache
def computed() -> Frost:
    """Return ice that needs no photographs: clouds and needles of ice in the photographs' colours.

    It looks like frost but is other frost: a data set made with it is not comparable, pixel by pixel or in its hardest
    class, with one made with the photographs, and its manifest says so.
    """
    textures = tuple(_ice(k, *statistics) for k, statistics in enumerate(_PHOTOGRAPHS))
    note = "computed ice, no photographs: results on these images are not comparable with those of the original data"
    return Frost(textures, {"kind": "computed", "note": note}, "")


def _ice(number: int, mean: tuple[int, int, int], deviation: int) -> np.ndarray:
    rng = np.random.RandomState(counters.bits(0, counters.ICE, number))  # the same ice in every data set
    clouds = _standardised(ndimage.gaussian_filter(rng.normal(size=(_COMPUTED_SIDE,) * 2), 12, mode="wrap"))
    lines = [np.eye(5), np.eye(5)[::-1], np.ones((5, 1)), np.ones((1, 5))]
    noise = rng.normal(size=(len(lines), _COMPUTED_SIDE, _COMPUTED_SIDE))
    blurred = [ndimage.convolve(n, line, mode="wrap") for n, line in zip(noise, lines, strict=True)]
    needles = _standardised(np.max(blurred, axis=0))
    field = _standardised(clouds + needles)
    return np.clip(np.array(mean) + deviation * field[..., None], 0, 255).astype(np.uint8)


def _standardised(field: np.ndarray) -> np.ndarray:
    return (field - field.mean()) / field.std()
