"""Image files and their pixels: decoding, and resizing to a square together with boxes and masks."""

from __future__ import annotations

import pathlib

import numpy as np
from PIL import Image

from jrobust.errors import InputError

SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})
FITS = ("squeeze", "crop")


def read(path: pathlib.Path, size: int = 0, fit: str = "squeeze") -> tuple[np.ndarray, tuple[int, int]]:
    """Return the image of a file as uint8[H, W, 3] and its width and height before resizing.

    Args:
      path: an image file of 8 bits a channel; grey, palette and alpha images become RGB.
      size: side of the square to resize to; 0 keeps the size.
      fit: how a picture that is no square becomes one; see `resize`.

    Raises:
      InputError: the file is missing, cut off, no image, or has more than 8 bits a channel.
    """
    try:
        with Image.open(path) as image:
            if image.mode == "F" or image.mode.startswith("I"):
                raise InputError(f"image {path} has pixel mode {image.mode}: expected 8 bits a channel; convert it")
            rgb = image.convert("RGB")
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f"image {path} is missing: restore the file, or unpack the data set again") from None
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"image {path} cannot be decoded ({reason}): replace the file or remove it") from error
    original = rgb.size
    if size:
        rgb = _fitted(rgb, size, fit)
    return np.asarray(rgb), original


def resize(image: np.ndarray, size: int, fit: str = "squeeze") -> np.ndarray:
    """Return uint8[H, W, C], C = 1 or 3, as uint8[size, size, C], bilinear with antialiasing.

    With `fit` "squeeze" the aspect is ignored. With "crop" the shorter side becomes `size` and the longer one
    floor(size longer / shorter), of which the central `size` pixels are cut out, as torchvision's Resize and CenterCrop
    do.
    """
    grey = image.shape[-1] == 1
    pil = Image.fromarray(image[..., 0] if grey else image)
    resized = np.asarray(_fitted(pil, size, fit))
    return resized[..., None] if grey else resized


def _fitted(image: Image.Image, size: int, fit: str) -> Image.Image:
    width, height = size, size
    if fit == "crop":
        shorter = min(image.size)
        width, height = (size * side // shorter for side in image.size)
    resized = image.resize((width, height), Image.Resampling.BILINEAR)
    if (width, height) == (size, size):
        return resized
    left, top = round((width - size) / 2), round((height - size) / 2)
    return resized.crop((left, top, left + size, top + size))


def resize_mask(mask: np.ndarray, size: int) -> np.ndarray:
    """Return uint8[H, W] as uint8[size, size], nearest neighbour."""
    return np.asarray(Image.fromarray(mask).resize((size, size), Image.Resampling.NEAREST))


def scale_box(box: np.ndarray, original: tuple[int, int], size: int) -> np.ndarray:
    """Return boxes float32[..., 4] (x0, y0, x1, y1) in pixels of the square that the image was resized to.

    >>> scale_box(np.array([10.0, 10.0, 30.0, 20.0]), (40, 20), 80).tolist()
    [20.0, 40.0, 60.0, 80.0]
    """
    if not size:
        return np.asarray(box, np.float32)
    width, height = original
    factors = np.array([size / width, size / height, size / width, size / height])
    return (np.asarray(box, np.float64) * factors).astype(np.float32)
