"""Augmentation on the device, in the meaning that torchvision and PIL give it on uint8 images.

The order is resize, crop, flip, colour jitter, rotation (trap 15 of the ART code: each works on, and gives back, whole
grey levels). Images are float32 that hold the integers 0..255. Everything is per image and drawn from the image's own
key, so a result does not depend on the batch, its order, or the number of devices.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jrobust.data.device_resize import center_crop, resized
from jrobust.errors import InputError, unknown

ORDERS = tuple(itertools.permutations(range(3)))  # of brightness, contrast, saturation
WINDOW_AREA, WINDOW_ASPECT, WINDOW_DRAWS = (0.08, 1.0), (3 / 4, 4 / 3), 10


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """What is drawn for each training image; the defaults change nothing.

    Attributes:
      crop_padding: pixels of zero padding on each side before a random crop of the original size.
      crop_size: side of the random crop out of a larger image (the centre crop in evaluation); 0 for none.
      flip: mirror left and right with probability 1/2.
      jitter: brightness, contrast and saturation factors are U(max(0, 1 - jitter), 1 + jitter), in random order.
      rotation: degrees; the angle is U(-rotation, rotation).
      resized_crop: the random crop has random area and aspect and is resized to `crop_size`: `resized_crop` below.
      resize: the shorter side that images are resized to before the crop, on the device and in evaluation; 0 keeps
        them. With `crop_size` only.
      center_crop: the crop is that of the centre in training, too.
    """

    crop_padding: int = 0
    crop_size: int = 0
    flip: bool = False
    jitter: float = 0.0
    rotation: float = 0.0
    resized_crop: bool = False
    resize: int = 0
    center_crop: bool = False

    def __post_init__(self):
        for name in ("crop_padding", "resize", "crop_size", "jitter", "rotation"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
                raise InputError(f"data.augment.{name} is {value!r}: expected a number of at least 0")
            if (name.startswith("crop") or name == "resize") and value != int(value):
                raise InputError(f"data.augment.{name} is {value!r}: expected whole pixels")
        if self.resized_crop and (not self.crop_size or self.crop_padding):
            raise InputError(
                f"data.augment.resized_crop with crop_size {self.crop_size} and crop_padding {self.crop_padding}: "
                "expected the side to resize to in crop_size, and no padding"
            )
        if (self.resize or self.center_crop) and (not self.crop_size or self.crop_padding or self.resized_crop):
            field = "resize" if self.resize else "center_crop"
            raise InputError(
                f"data.augment.{field} with crop_size {self.crop_size}, crop_padding {self.crop_padding} and "
                f"resized_crop {self.resized_crop}: expected the side to cut out in crop_size, and no "
                "other crop"
            )
        if self.resize and self.resize < self.crop_size:
            raise InputError(
                f"data.augment.crop_size is {self.crop_size}, but images are resized to {self.resize}: lower it, or "
                "raise data.augment.resize"
            )

    @classmethod
    def of(cls, config: Augmentation | Mapping[str, Any] | None) -> Augmentation:
        """Return the augmentation of a config section, which may leave fields out.

        Raises:
          InputError: it has a field that does not exist here, or a negative value.
        """
        if isinstance(config, Augmentation):
            return config
        fields = [field.name for field in dataclasses.fields(cls)]
        given = {} if config is None else {key: config[key] for key in config}
        for key in given:
            if key not in fields:
                raise unknown("augmentation", key, fields)
        return cls(**given)


def output_shape(
    image_shape: tuple[int, int, int], augmentation: Augmentation | Mapping | None
) -> tuple[int, int, int]:
    """Return the shape of the images that training and evaluation see.

    >>> output_shape((256, 256, 3), Augmentation(crop_size=224))
    (224, 224, 3)
    >>> output_shape((64, 64, 3), Augmentation(resize=256, crop_size=224))
    (224, 224, 3)

    Raises:
      InputError: the crop is larger than the (padded) image; in evaluation nothing is padded, so it must fit as it is.
    """
    height, width, channels = image_shape
    size = int(Augmentation.of(augmentation).crop_size)
    if not size:
        return height, width, channels
    if size > min(height, width) and not Augmentation.of(augmentation).resize:
        raise InputError(
            f"data.augment.crop_size is {size}, but the images are {height}x{width}: lower it, or set data.image_size"
        )
    return size, size, channels


def augment(images: jax.Array, keys: jax.Array, augmentation: Augmentation) -> jax.Array:
    """Return float32[B, H', W', C] holding integers 0..255, for uint8[B, H, W, C] and one key an image."""
    return jax.vmap(lambda image, key: augment_one(image, key, augmentation))(images, keys)


def augment_one(image: jax.Array, key: jax.Array, augmentation: Augmentation) -> jax.Array:
    """Return one augmented image, float32[H', W', C], for uint8[H, W, C]."""
    a = augmentation
    # one draw for all: cheaper to compile and to run than a key for each, and switching one part off leaves the rest
    draws = jax.random.uniform(key, (8,), jnp.float32)  # float32 also under x64
    if a.resize:
        image = resized(image, int(a.resize), int(a.crop_size) if a.center_crop else 0)
    elif a.center_crop:
        image = center_crop(image, int(a.crop_size))
    if a.resized_crop:
        image = resized_crop(
            image, random_window(jax.random.fold_in(key, 1), image.shape[0], image.shape[1]), int(a.crop_size)
        )
    elif a.crop_padding or (a.crop_size and not a.center_crop):
        image = crop(image, draws[:2], int(a.crop_padding), int(a.crop_size))
    if a.flip:
        image = jnp.where(draws[2] < 0.5, image[:, ::-1], image)
    image = image.astype(jnp.float32)
    if a.jitter:
        low, high = max(0.0, 1 - a.jitter), 1 + a.jitter
        order = jnp.array(ORDERS)[(draws[6] * len(ORDERS)).astype(jnp.int32)]
        image = jitter(image, low + (high - low) * draws[3:6], order)
    if a.rotation:
        image = rotate(image, a.rotation * (2 * draws[7] - 1))
    return image


def crop(image: jax.Array, place: jax.Array, padding: int, size: int) -> jax.Array:
    """Return a crop of side `size` (0: of the original size) of the zero-padded [H, W, C].

    `place`, two numbers in [0, 1), is where between the first and the last possible row and column it begins.
    """
    padded = jnp.pad(image, ((padding, padding), (padding, padding), (0, 0)))
    height, width = (size, size) if size else image.shape[:2]
    room = jnp.array([padded.shape[0] - height + 1, padded.shape[1] - width + 1])
    top, left = jnp.floor(place * room).astype(jnp.int32)
    return jax.lax.dynamic_slice(padded, (top, left, jnp.zeros_like(top)), (height, width, image.shape[2]))


def random_window(key: jax.Array, height: int, width: int) -> jax.Array:
    """Return top, left, height, width of a random window of an image, int32[4], as torchvision's RandomResizedCrop.

    Its area is U(0.08, 1) of the image's and the logarithm of width / height is U(log 3/4, log 4/3); the first of ten
    draws that fits is taken and put down uniformly. If none fits it is the largest central window whose aspect is the
    image's, brought into 3/4 .. 4/3.
    """
    draws = jax.random.uniform(key, (2 * WINDOW_DRAWS + 2,), jnp.float32)
    area = height * width * (WINDOW_AREA[0] + (WINDOW_AREA[1] - WINDOW_AREA[0]) * draws[:WINDOW_DRAWS])
    low, high = math.log(WINDOW_ASPECT[0]), math.log(WINDOW_ASPECT[1])
    aspect = jnp.exp(low + (high - low) * draws[WINDOW_DRAWS:-2])
    widths, heights = jnp.rint(jnp.sqrt(area * aspect)), jnp.rint(jnp.sqrt(area / aspect))
    fits = (widths >= 1) & (widths <= width) & (heights >= 1) & (heights <= height)
    first = jnp.argmax(fits)
    size = jnp.stack([heights[first], widths[first]])
    corner = jnp.floor(draws[-2:] * (jnp.array([height, width]) - size + 1))
    whole = (min(height, round(width / WINDOW_ASPECT[0])), min(width, round(height * WINDOW_ASPECT[1])))
    central = jnp.array([(height - whole[0]) // 2, (width - whole[1]) // 2, *whole], jnp.int32)
    return jnp.where(fits[first], jnp.concatenate([corner, size]).astype(jnp.int32), central)


def resized_crop(image: jax.Array, window: jax.Array, size: int) -> jax.Array:
    """Return the window (top, left, height, width) of [H, W, C] resized to side `size`, bilinear with antialiasing.

    It is cut out first, so that nothing outside the window counts, and resized as PIL's Image.resize: an output pixel
    is the mean of the window's pixels under a triangle, whose half width is one output pixel where that is more than
    one input pixel, else one input pixel; first along rows, then along columns, each rounded to whole levels.
    """
    top, left, height, width = window
    down = triangle_weights(top, height, image.shape[0], size)
    across = triangle_weights(left, width, image.shape[1], size)
    exact = jax.lax.Precision.HIGHEST  # accelerators round the factors of products to 8 or 11 bits
    rows = jnp.floor(jnp.einsum("ow,hwc->hoc", across, image.astype(jnp.float32), precision=exact) + 0.5)
    return jnp.floor(jnp.einsum("oh,hwc->owc", down, rows, precision=exact) + 0.5)


def triangle_weights(start: jax.Array, length: jax.Array, total: int, size: int) -> jax.Array:
    """Return float32[size, total]: how much of each input pixel is in each of `size` output pixels; rows sum to 1."""
    scale = length / size
    centre = start + (jnp.arange(size, dtype=jnp.float32)[:, None] + 0.5) * scale
    place = jnp.arange(total, dtype=jnp.float32)[None, :]
    weight = jnp.maximum(0, 1 - jnp.abs(place + 0.5 - centre) / jnp.maximum(scale, 1))
    weight = jnp.where((place >= start) & (place < start + length), weight, 0)
    return weight / jnp.sum(weight, axis=1, keepdims=True)


def jitter(image: jax.Array, factors: jax.Array, order: jax.Array) -> jax.Array:
    """Apply operation `order[0]`, then `order[1]`, `order[2]`; 0 is brightness, 1 contrast, 2 saturation.

    All three are computed at each of the three places and one is selected: 9 pointwise operations, no branches.
    """
    operations = (brightness, contrast, saturation)
    for place in range(3):
        results = [operation(image, factor) for operation, factor in zip(operations, factors, strict=True)]
        image = jnp.where(order[place] == 0, results[0], jnp.where(order[place] == 1, results[1], results[2]))
    return image


def brightness(image: jax.Array, factor: jax.Array) -> jax.Array:
    """Return `factor * image`."""
    return blend(jnp.zeros_like(image), image, factor)


def contrast(image: jax.Array, factor: jax.Array) -> jax.Array:
    """Return `m + factor * (image - m)`, m the mean of the grey image rounded to a whole level."""
    levels = grey(image).astype(jnp.int32)
    mean = (2 * jnp.sum(levels) + levels.size) // (2 * levels.size)  # floor(mean + 1/2), exactly
    return blend(jnp.broadcast_to(mean.astype(jnp.float32), image.shape), image, factor)


def saturation(image: jax.Array, factor: jax.Array) -> jax.Array:
    """Return `g + factor * (image - g)`, g the grey image; nothing changes for C = 1."""
    return blend(jnp.broadcast_to(grey(image), image.shape), image, factor)


def grey(image: jax.Array) -> jax.Array:
    """Return 0.299 R + 0.587 G + 0.114 B rounded, [H, W, 1]; the image itself for C = 1."""
    if image.shape[-1] == 1:
        return image
    red, green, blue = jnp.moveaxis(image.astype(jnp.int32), -1, 0)
    # PIL's fixed point: the three weights times 2^16, and half of 2^16 to round
    return ((19595 * red + 38470 * green + 7471 * blue + 0x8000) >> 16)[..., None].astype(jnp.float32)


def blend(start: jax.Array, end: jax.Array, factor: jax.Array) -> jax.Array:
    """Return `start + factor * (end - start)`, clipped to 0..255 and cut to whole levels as PIL's Image.blend does."""
    return jnp.floor(jnp.clip(start + factor * (end - start), 0, 255))


def rotate(image: jax.Array, degrees: jax.Array) -> jax.Array:
    """Return [H, W, C] turned counter-clockwise about its centre: nearest pixel, zero where nothing was.

    The source of the pixel whose centre is p is c + R(p - c), c = (W/2, H/2), as in PIL's Image.rotate.
    """
    height, width, channels = image.shape
    angle = jnp.deg2rad(degrees)
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    y = jnp.arange(height, dtype=jnp.float32)[:, None] + 0.5 - height / 2
    x = jnp.arange(width, dtype=jnp.float32)[None, :] + 0.5 - width / 2
    column = jnp.floor(cos * x - sin * y + width / 2).astype(jnp.int32)
    row = jnp.floor(sin * x + cos * y + height / 2).astype(jnp.int32)
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    flat = jnp.clip(row, 0, height - 1) * width + jnp.clip(column, 0, width - 1)
    turned = jnp.take(image.reshape(-1, channels), flat, axis=0, mode="clip")
    return jnp.where(inside[..., None], turned, 0)
