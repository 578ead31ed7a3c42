"""The mean and deviation of a source's channels, for networks that are normalised by their training set."""

from __future__ import annotations

import numpy as np

from jrobust.data.source import Source


def channel_statistics(source: Source) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the mean and the standard deviation of each channel over all pixels of a source, in [0, 1].

    mean_c = sum_v v n_c(v) / (255 M) and std_c = sqrt(sum_v v^2 n_c(v) / M - (sum_v v n_c(v) / M)^2) / 255, where
    n_c(v) counts the pixels of level v and M all pixels: exact integers, so the order of reading does not matter.

    >>> from jrobust.data.source import from_arrays
    >>> channel_statistics(from_arrays(np.array([[[[0]], [[255]]]], np.uint8), [0]))
    ((0.5,), (0.5,))
    """
    images = source.arrays()["image"]
    channels = images.shape[-1]
    counts = np.zeros((channels, 256), np.int64)
    for start in range(0, len(images), 1024):
        part = images[start : start + 1024].reshape(-1, channels)
        for c in range(channels):
            counts[c] += np.bincount(part[:, c], minlength=256)
    levels = np.arange(256)
    total = counts.sum(1)
    mean = counts @ levels / total
    variance = counts @ levels**2 / total - mean**2
    std = np.sqrt(np.maximum(variance, 0))
    return tuple((mean / 255).tolist()), tuple((std / 255).tolist())
