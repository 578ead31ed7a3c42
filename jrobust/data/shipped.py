"""Data that ship with a dependency: scikit-learn's handwritten digits."""

from __future__ import annotations

import numpy as np

from jrobust.data.source import Source, from_arrays

TEST_EVERY = 5


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
