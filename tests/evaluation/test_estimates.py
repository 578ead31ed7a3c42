from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats

from jrobust.evaluation import estimates


@pytest.mark.parametrize(("hits", "count"), [(0, 10), (1, 10), (5, 10), (10, 10), (37, 1000), (999, 1000)])
def test_wilson_interval_is_scipys(hits, count):
    estimate = estimates.proportion(np.arange(count) < hits)
    expected = scipy.stats.binomtest(hits, count).proportion_ci(method="wilson")
    assert estimate.value == hits / count
    assert estimate.low == pytest.approx(expected.low, abs=1e-12)
    assert estimate.high == pytest.approx(expected.high, abs=1e-12)
    assert estimate.count == count


def test_wilson_interval_has_a_width_at_the_ends():
    assert estimates.proportion(np.zeros(10, bool)).high == pytest.approx(0.27753, abs=1e-5)
    assert estimates.proportion(np.ones(10, bool)).low == pytest.approx(0.72247, abs=1e-5)


def test_mean_interval():
    values = np.random.default_rng(0).normal(size=50)
    estimate = estimates.mean(values)
    half = scipy.stats.norm.ppf(0.975) * scipy.stats.sem(values)
    assert (estimate.low, estimate.high) == pytest.approx((values.mean() - half, values.mean() + half))


def test_nothing_measured_is_nan_and_one_example_has_no_interval():
    for estimate in (estimates.proportion(np.array([])), estimates.mean(np.array([np.nan]))):
        assert math.isnan(estimate.value) and math.isnan(estimate.low) and estimate.count == 0
    one = estimates.mean(np.array([0.5, np.nan]))
    assert one.value == 0.5 and one.count == 1 and math.isnan(one.low)


def test_box_agrees_with_matplotlibs_convention():
    cbook = pytest.importorskip("matplotlib.cbook")
    values = np.concatenate([np.random.default_rng(1).normal(size=40), [9.0, -7.0, np.nan]])
    stats = cbook.boxplot_stats(values[~np.isnan(values)])[0]
    got = dict(zip(estimates.BOX_COLUMNS, estimates.box(values), strict=True))
    assert got["q1"] == pytest.approx(stats["q1"])
    assert got["median"] == pytest.approx(stats["med"])
    assert got["q3"] == pytest.approx(stats["q3"])
    assert got["whisker_low"] == pytest.approx(stats["whislo"])
    assert got["whisker_high"] == pytest.approx(stats["whishi"])
    assert got["outliers"] == len(stats["fliers"]) >= 2
    assert got["count"] == 42


def test_box_of_nothing():
    assert estimates.box(np.array([np.nan])) == [None] * 7 + [0, 0]


def test_the_interval_of_a_bounded_measure_ends_at_its_bound():
    values = np.array([1.0, 1.0, 0.7])
    assert estimates.mean(values).high > 1
    assert (
        estimates.mean(values, highest=1).high == 1
        and estimates.mean(values, highest=1).low == estimates.mean(values).low
    )
