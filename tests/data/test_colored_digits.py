"""Coloured digits: counts of every cell, pixels, and what the seed decides."""

from __future__ import annotations

import numpy as np
import pytest

from jrobust.data import biases, load
from jrobust.errors import InputError

# what a seed chooses, which must never change
CORRELATED = [0, 1, 3, 3, 2, 1, 2, 1, 0, 1, 2, 3, 0, 0, 2, 3, 0, 1, 2, 3]


def fails(match: str):
    return pytest.raises(InputError, match=match)


def table_of(source) -> np.ndarray:
    """Count the images of each (class, color)."""
    table = np.zeros((10, 10), int)
    np.add.at(table, (source.labels, source.biases), 1)
    return table


def spread(counts) -> int:
    return int(np.ptp(counts))


def test_colored_digits_of_the_test_set_are_as_balanced_as_they_can_be():
    table = table_of(load("colored_digits", "test"))
    assert table.sum() == 360 and set(table.reshape(-1)) == {3, 4}
    assert table.sum(0).tolist() == [36] * 10
    assert max(spread(row) for row in table) == 1


@pytest.mark.parametrize("ratio, a_class", [(0.5, 1), (2.0, 3), (10.0, 14)])
def test_colored_digits_of_the_training_set_conflict_at_the_ratio(ratio, a_class):
    parts = [load("colored_digits", split, ratio=ratio, seed=3) for split in ("train", "validation")]
    table = sum(table_of(part) for part in parts)
    digits = np.bincount(load("digits", "train").labels)
    assert table.sum(1).tolist() == digits.tolist()
    conflicting = [np.delete(table[k], k) for k in range(10)]
    assert [row.sum() for row in conflicting] == [round(n * ratio / 100) for n in digits]
    assert abs(np.sum(conflicting) / 10 - a_class) < 1 and max(map(spread, conflicting)) <= 1
    held_out = parts[1]
    aligned = held_out.labels == held_out.biases
    assert (~aligned).sum() == round(0.1 * np.sum(conflicting)) and len(held_out) in (143, 144)
    assert spread(np.bincount(held_out.labels[aligned])) <= 1


def test_colored_digits_are_the_digits_in_colored_light():
    plain, colored = load("digits", "test"), load("colored_digits", "test", jitter=0.0, tint=0.2)
    assert colored.bias_names[:2] == ("red", "orange") and colored.image_shape == (8, 8, 3)
    signs = {0: (1, -1, -1), 1: (1, 0, -1), 7: (0, -1, 1), 9: (1, 1, 1)}  # red, orange, violet, white
    for i in range(360):
        example, grey = colored[i], plain[i]["image"].astype(float)
        assert example["label"] == plain[i]["label"] and example["bias"] == colored.biases[i]
        if example["bias"] in signs:
            expected = 255 / 4 + grey / 2 + 0.2 * 255 * np.array(signs[example["bias"]])
            assert abs(example["image"] - expected).max() <= 0.5


def test_a_change_of_twice_the_tint_makes_any_color_of_any_other():
    source = load("colored_digits", "test", jitter=0.0)
    plain = load("digits", "test").arrays()["image"] / 510 + 0.25
    light = (source.arrays()["image"] / 255 - plain)[:, 0, 0]
    lights = np.array([light[source.biases == b].mean(0) for b in range(10)])
    distances = abs(lights[:, None] - lights).max(-1)
    assert distances.max() < 0.21 and distances[~np.eye(10, dtype=bool)].min() > 0.09


def test_jitter_moves_the_light_of_an_image_by_its_deviation():
    exact, moved = (load("colored_digits", "train", jitter=jitter).arrays() for jitter in (0.0, 0.05))
    change = (moved["image"].astype(float) - exact["image"]) / 255
    assert np.ptp(change.reshape(-1, 64, 3), axis=1).max() <= 2 / 255  # but for rounding the same in all pixels
    shifts = change.mean((1, 2))
    assert abs(shifts.mean()) < 0.004 and abs(shifts.std() - 0.05) < 0.004
    assert abs(np.corrcoef(shifts.T)[0, 1]) < 0.1  # channel by channel


def test_colored_digits_depend_on_the_seed_alone():
    one, two, other = (load("colored_digits", "train", seed=seed) for seed in (5, 5, 6))
    for key, value in one.arrays().items():
        np.testing.assert_array_equal(value, two.arrays()[key])
    assert (one.biases != other.biases).any()
    assert biases.correlated(np.arange(20) % 4, 4, 25, 1).tolist() == CORRELATED
    assert load("colored_digits", "test", image_size=16).image_shape == (16, 16, 3)


def test_options_of_colored_digits_out_of_range():
    for option, value, match in [
        ("ratio", -1.0, "ratio is -1: expected the percentage"),
        ("seed", -1, "seed is -1: expected 0 to"),
        ("valid_fraction", 1.0, "valid_fraction is 1.0: expected at least 0"),
        ("jitter", -0.1, "jitter is -0.1: expected a standard deviation"),
        ("tint", 0.3, "tint is 0.3: expected 0 to 0.25"),
    ]:
        with fails(match):
            load("colored_digits", "train", **{option: value})
    with fails("no validation images with data.options.valid_fraction 0"):
        load("colored_digits", "validation", valid_fraction=0.0)
    with fails("unknown option of colored_digits 'ratios'.*did you mean 'ratio'"):
        load("colored_digits", "train", ratios=1)
    with fails("data.options.seed is 0.5: colored_digits expects a whole number such as 0"):
        load("colored_digits", "train", seed=0.5)
    with fails("data.options.ratio is True: colored_digits expects a number"):
        load("colored_digits", "train", ratio=True)
    with fails("data.options.ratio is nan: colored_digits expects a finite number"):
        load("colored_digits", "train", ratio=float("nan"))
    with fails("digits takes no options, but config.data.options has 'ratio'"):
        load("digits", "train", ratio=1.0)


def test_shares_add_up():
    draw = np.random.default_rng(0)
    for _ in range(50):
        sizes = draw.integers(1, 30, 6)
        count = int(draw.integers(0, sizes.sum() + 1))
        taken = biases.shares(sizes, count)
        assert taken.sum() == count and (abs(taken - count * sizes / sizes.sum()) < 1).all() and (taken <= sizes).all()
