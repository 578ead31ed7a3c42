"""Numbers with their uncertainty: proportions, means, and the five numbers of a box plot."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

Z95 = 1.959963984540054  # the 97.5 % point of the standard normal


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval over the examples; NaN where nothing was measured.

    Attributes:
      value: the share or the mean.
      low, high: the interval; NaN where fewer than two examples give none.
      count: number of examples behind it.
      interval: how the interval was made, "wilson" or "normal".
    """

    value: float
    low: float
    high: float
    count: int
    interval: str

    def to_json(self) -> dict[str, Any]:
        """Return a dict in which NaN is None."""
        return {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in dataclasses.asdict(self).items()}

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Estimate:
        """Return what `to_json` was made from."""
        values: dict[str, Any] = {k: math.nan if v is None else v for k, v in fields.items()}
        return cls(**values)


def proportion(hits: np.ndarray) -> Estimate:
    """Return the share of true entries of `hits` bool[N] with the Wilson score interval (Wilson 1927).

        (p + z^2 / 2n +- z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n),   z = 1.96

    It stays in [0, 1] and has a positive width at p = 0 and p = 1, where the normal interval has none.

    >>> e = proportion(np.array([True] * 8 + [False] * 2))
    >>> round(e.low, 4), e.value, round(e.high, 4)
    (0.4902, 0.8, 0.9433)
    """
    hits = np.asarray(hits, bool)
    n = hits.size
    if n == 0:
        return Estimate(math.nan, math.nan, math.nan, 0, "wilson")
    p, z2 = float(hits.mean()), Z95**2
    center = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = Z95 * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    return Estimate(p, min(max(center - half, 0.0), p), max(min(center + half, 1.0), p), n, "wilson")


def worst_case(results: Sequence[np.ndarray]) -> np.ndarray:
    """Return, image by image, whether it withstood everything: the AND over members bool[N], clean ones included.

    >>> worst_case([np.array([True, True, False]), np.array([True, False, True])]).tolist()
    [True, False, False]
    """
    return np.logical_and.reduce([np.asarray(result, bool) for result in results])


def mean(values: np.ndarray, *, highest: float = math.inf) -> Estimate:
    """Return the mean of `values` float[N] with the normal interval, mean +- 1.96 s / sqrt(N); NaN entries are dropped.

    The interval ends at `highest`, the largest value there can be.

    >>> e = mean(np.array([1.0, 2.0, 3.0, float("nan")]))
    >>> e.value, e.count, round(e.high - e.value, 4)
    (2.0, 3, 1.1316)
    """
    values = np.asarray(values, np.float64)
    values = values[~np.isnan(values)]
    if values.size == 0:
        return Estimate(math.nan, math.nan, math.nan, 0, "normal")
    average = float(values.mean())
    if values.size == 1:
        return Estimate(average, math.nan, math.nan, 1, "normal")
    half = Z95 * float(values.std(ddof=1)) / math.sqrt(values.size)
    return Estimate(average, average - half, min(average + half, highest), values.size, "normal")


def mean_of_groups(groups: Sequence[np.ndarray]) -> Estimate:
    """Return the mean over groups of the share of true entries of each, bool[n_g], none of them empty.

        m = (1 / G) sum_g p_g,   m +- 1.96 sqrt(sum_g p_g (1 - p_g) / (n_g - 1)) / G,   cut to [0, 1]

    >>> e = mean_of_groups([np.array([True, True, False, False]), np.array([True, True])])
    >>> e.value, e.count, round(e.value - e.low, 4)
    (0.75, 6, 0.2829)
    """
    shares = [float(np.mean(group)) for group in groups]
    value, count = math.fsum(shares) / len(groups), sum(len(group) for group in groups)
    if min(len(group) for group in groups) < 2:
        return Estimate(value, math.nan, math.nan, count, "normal")
    variance = sum(p * (1 - p) / (len(group) - 1) for p, group in zip(shares, groups, strict=True))
    half = Z95 * math.sqrt(variance) / len(groups)
    return Estimate(value, max(value - half, 0.0), min(value + half, 1.0), count, "normal")


BOX_COLUMNS = ("q1", "median", "q3", "whisker_low", "whisker_high", "mean", "variance", "outliers", "count")


def box(values: np.ndarray) -> list[float | int | None]:
    """Return the numbers of a box plot in the order of `BOX_COLUMNS`; NaN entries are dropped, no entries give None.

    Quartiles by linear interpolation; a whisker ends at the outermost value within 1.5 interquartile ranges of the box;
    the variance is the sample's (divided by N - 1).

    >>> box(np.array([1.0, 2.0, 3.0, 4.0, 100.0]))
    [2.0, 3.0, 4.0, 1.0, 4.0, 22.0, 1902.5, 1, 5]
    """
    values = np.asarray(values, np.float64)
    values = values[~np.isnan(values)]
    if values.size == 0:
        return [None] * 7 + [0, 0]
    q1, median, q3 = (float(q) for q in np.percentile(values, [25, 50, 75]))
    reach = 1.5 * (q3 - q1)
    inside = values[(values >= q1 - reach) & (values <= q3 + reach)]
    variance = float(values.var(ddof=1)) if values.size > 1 else None
    whiskers = [float(inside.min()), float(inside.max())]
    return [q1, median, q3, *whiskers, float(values.mean()), variance, int(values.size - inside.size), int(values.size)]
