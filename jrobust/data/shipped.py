"""Data that ship with a dependency: scikit-learn's handwritten digits, and the same in colour."""

from __future__ import annotations

import numpy as np

from jrobust.data import biases
from jrobust.data.source import Source, from_arrays
from jrobust.errors import InputError

TEST_EVERY = 5
# Any two differ by at least a half in some channel.
COLORS = {
    "red": (1.0, 0.0, 0.0),
    "orange": (1.0, 0.5, 0.0),
    "yellow": (1.0, 1.0, 0.0),
    "green": (0.0, 1.0, 0.0),
    "spring": (0.0, 1.0, 0.5),
    "cyan": (0.0, 1.0, 1.0),
    "blue": (0.0, 0.0, 1.0),
    "violet": (0.5, 0.0, 1.0),
    "magenta": (1.0, 0.0, 1.0),
    "white": (1.0, 1.0, 1.0),
}


def digits(split: str, image_size: int = 0) -> Source:
    """Return the UCI digits of scikit-learn: 8x8, grey, 1437 training and 360 test images of ten classes.

    The pixels 0..16 become round(255 x / 16). With the images ordered by class (order within a class kept), every
    fifth one is a test image: stratified, and the same on every machine and version.
    """
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    by_class = np.argsort(labels, kind="stable")
    is_test = np.zeros(len(labels), bool)
    is_test[by_class[::TEST_EVERY]] = True
    chosen = is_test if split == "test" else ~is_test
    pixels = np.rint(images[chosen].reshape(-1, 8, 8, 1) * (255 / 16)).astype(np.uint8)
    names = [str(k) for k in range(10)]
    return from_arrays(
        pixels, labels[chosen], names, name="digits", split=split, image_size=image_size, place="scikit-learn's digits"
    )


def colored_digits(
    split: str, image_size: int = 0, *, ratio: float, seed: int, valid_fraction: float, tint: float, jitter: float
) -> Source:
    """Return `digits` in light of ten colours, 8x8x3: in training the colour tells the class, in the test set not.

    A pixel is 1/4 + grey / 2 + tint (2 color - 1) + jitter n, cut to [0, 1]: the same colour, one of `COLORS`, and the
    same normal deviates n of the three channels over the whole image. So a change of 2 tint in every pixel turns a
    colour into any other, and leaves the digit as it is.

    The bias is the colour; that of class k is number k. In training it is `biases.correlated`, in the test set
    `biases.uniform`. The validation images are taken from the training set by `biases.held_out`.

    Args:
      split: "train", "validation" or "test".
      image_size: side to resize to; 0 for 8.
      ratio: percentage of bias-conflicting images of each class in training and validation.
      seed: decides which image has which colour and which are validation images.
      valid_fraction: part of the training images that is held out.
      tint: how far the light moves a channel up or down.
      jitter: standard deviation of the light's channels.

    Raises:
      InputError: an option is out of range, or leaves the split empty.
    """
    if not jitter >= 0:
        raise InputError(f"data.options.jitter is {jitter:g}: expected a standard deviation of at least 0")
    if not 0 <= tint <= 0.25:
        raise InputError(f"data.options.tint is {tint:g}: expected 0 to 0.25, at which light is cut off")
    grey = digits("test" if split == "test" else "train")
    labels = grey.labels
    if split == "test":
        color = biases.uniform(labels, len(COLORS), seed)
        chosen = np.ones(len(labels), bool)
    else:
        color = biases.correlated(labels, len(COLORS), ratio, seed)
        chosen = biases.held_out(labels, color, valid_fraction, seed) == (split == "validation")
    if not chosen.any():
        raise InputError(f"colored_digits has no {split} images with data.options.valid_fraction {valid_fraction:g}")
    draw = biases.stream(seed, biases.TEST_VALUES if split == "test" else biases.TRAIN_VALUES)
    light = tint * (2 * np.array(list(COLORS.values()))[color] - 1) + jitter * draw.standard_normal((len(labels), 3))
    levels = 0.25 + grey.arrays()["image"] / 510 + light[:, None, None]
    pixels = np.rint(255 * np.clip(levels, 0, 1)).astype(np.uint8)
    return from_arrays(
        pixels[chosen],
        labels[chosen],
        grey.class_names,
        name="colored_digits",
        split=split,
        biases=color[chosen],
        bias_names=list(COLORS),
        image_size=image_size,
        place=grey.place,
    )
