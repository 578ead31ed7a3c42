"""Image files and their pixels: decoding, and resizing to a square together with boxes and masks."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import NamedTuple

import numpy as np
from PIL import Image

from jrobust.errors import InputError, unknown

SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})
FITS = ("squeeze", "crop")
FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


class Placement(NamedTuple):
    """Where the square lies in the resized picture, all in pixels of the latter."""

    width: int
    height: int
    left: int
    top: int


@dataclasses.dataclass(frozen=True)
class Fit:
    """How a picture becomes a square of a given size.

    Attributes:
      fit: with "squeeze" the aspect is ignored. With "crop" the shorter side becomes `resize` and the longer one
        floor(resize longer / shorter), of which the central square is cut out, as torchvision's Resize and CenterCrop
        do.
      resize: of "crop", at least the size; 0 is the size itself, so that one side of the picture is whole.
      filter: "bilinear" or "bicubic" (a = -1/2), both of PIL: with antialiasing, rounded to whole levels.
      border: so many pixels of every side are no part of a picture that is read, and are cut off before all else.
    """

    fit: str = "squeeze"
    resize: int = 0
    filter: str = "bilinear"
    border: int = 0

    def __post_init__(self):
        if self.fit not in FITS:
            raise unknown("data.options.fit", self.fit, FITS)
        if self.filter not in FILTERS:
            raise unknown("data.options.filter", self.filter, FILTERS)
        if self.resize and (self.resize < 0 or self.fit != "crop"):
            raise InputError(
                f"data.options.resize is {self.resize} with fit {self.fit!r}: expected the shorter side before the "
                'crop in pixels, with fit "crop"; or 0'
            )

    def check(self, size: int) -> None:
        """Raise InputError if `size`, the side of the square or 0 for images as they are, is not one for this."""
        if self.resize and not 0 < size <= self.resize:
            raise InputError(
                f"data.options.resize is {self.resize} and the image size {size}: expected a square of 1 to "
                f"{self.resize} pixels to cut out; set data.image_size"
            )

    def place(self, original: tuple[int, int], size: int) -> Placement:
        """Return where the square of a picture with this width and height lies."""
        if self.fit == "squeeze":
            return Placement(size, size, 0, 0)
        width, height = ((self.resize or size) * side // min(original) for side in original)
        return Placement(width, height, round((width - size) / 2), round((height - size) / 2))


SQUEEZE = Fit()


def read(path: pathlib.Path, size: int = 0, fit: Fit = SQUEEZE) -> tuple[np.ndarray, tuple[int, int]]:
    """Return the image of a file, without its border, as uint8[H, W, 3], and its width and height before resizing.

    Args:
      path: an image file of 8 bits a channel; grey, palette and alpha images become RGB.
      size: side of the square to resize to; 0 keeps the size.
      fit: how it becomes a square.

    Raises:
      InputError: the file is missing, cut off, no image, has more than 8 bits a channel, or is nothing but border.
    """
    rgb = _open(path, "RGB")
    if fit.border:
        width, height = rgb.size
        if min(rgb.size) <= 2 * fit.border:
            raise InputError(
                f"image {path} has {width}x{height} pixels: expected more than a border of {fit.border} on every side"
            )
        rgb = rgb.crop((fit.border, fit.border, width - fit.border, height - fit.border))
    original = rgb.size
    if size:
        rgb = _cut(rgb, size, fit, FILTERS[fit.filter])
    return np.asarray(rgb), original


def read_mask(path: pathlib.Path, foreground: int) -> np.ndarray:
    """Return uint8[H, W], 1 where the pixels of a grey or palette image are `foreground`, else 0.

    Raises:
      InputError: the file is missing or cannot be decoded.
    """
    mask = (np.asarray(_open(path)) == foreground).astype(np.uint8)
    if mask.ndim != 2:
        raise InputError(f"mask {path} has shape {mask.shape}: expected one channel; unpack the data set again")
    return mask


def _open(path: pathlib.Path, mode: str | None = None) -> Image.Image:
    try:
        with Image.open(path) as image:
            if image.mode == "F" or image.mode.startswith("I"):
                raise InputError(f"image {path} has pixel mode {image.mode}: expected 8 bits a channel; convert it")
            return image.convert(mode) if mode else image.copy()
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f"image {path} is missing: restore the file, or unpack the data set again") from None
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"image {path} cannot be decoded ({reason}): replace the file or remove it") from error


def resize(image: np.ndarray, size: int, fit: Fit = SQUEEZE) -> np.ndarray:
    """Return uint8[H, W, C], C = 1 or 3, as uint8[size, size, C]."""
    grey = image.shape[-1] == 1
    pil = Image.fromarray(image[..., 0] if grey else image)
    resized = np.asarray(_cut(pil, size, fit, FILTERS[fit.filter]))
    return resized[..., None] if grey else resized


def _cut(image: Image.Image, size: int, fit: Fit, resampling: Image.Resampling) -> Image.Image:
    width, height, left, top = fit.place(image.size, size)
    resized = image.resize((width, height), resampling)
    return resized if (width, height) == (size, size) else resized.crop((left, top, left + size, top + size))


def resize_mask(mask: np.ndarray, size: int, fit: Fit = SQUEEZE) -> np.ndarray:
    """Return uint8[H, W] as uint8[size, size], nearest neighbour."""
    return np.asarray(_cut(Image.fromarray(mask), size, fit, Image.Resampling.NEAREST))


def scale_box(box: np.ndarray, original: tuple[int, int], size: int, fit: Fit = SQUEEZE) -> np.ndarray:
    """Return boxes float32[..., 4] (x0, y0, x1, y1) in pixels of the square, not clipped to it.

    >>> scale_box(np.array([10.0, 10.0, 30.0, 20.0]), (40, 20), 80).tolist()
    [20.0, 40.0, 60.0, 80.0]
    """
    if not size:
        return np.asarray(box, np.float32)
    width, height, left, top = fit.place(original, size)
    factors = np.array([width / original[0], height / original[1]] * 2)
    return (np.asarray(box, np.float64) * factors - np.array([left, top] * 2)).astype(np.float32)
