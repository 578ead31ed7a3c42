from __future__ import annotations

import numpy as np
import pytest

from jrobust.data import balance, balanced, from_arrays
from jrobust.errors import InputError


@pytest.fixture
def source():
    images = np.random.default_rng(0).integers(0, 256, (6, 16, 16, 3), dtype=np.uint8)
    return from_arrays(images, [0, 1, 1, 2, 2, 2], biases=np.arange(6))


def test_originals_are_kept_and_classes_filled_by_cycling_through_them(source):
    result = balanced(source, 5, seed=1)
    assert len(result) == 15 and np.bincount(result.labels).tolist() == [5, 5, 5]
    assert result.image_shape == (16, 16, 3) and result.class_names == source.class_names
    for i in range(6):
        np.testing.assert_array_equal(result[i]["image"], source[i]["image"])
    assert [result[i]["bias"] for i in range(6, 15)] == [0, 0, 0, 0, 1, 2, 1, 3, 4]
    assert (
        [result[i]["label"] for i in range(15)] == result.labels.tolist() == [0, 1, 1, 2, 2, 2, *[0] * 4, 1, 1, 1, 2, 2]
    )
    copies = [result[i]["image"] for i in range(6, 10)]
    assert len({copy.tobytes() for copy in [source[0]["image"], *copies]}) == 5
    with pytest.raises(IndexError):
        result[15]


def test_a_copy_depends_on_seed_and_position_alone(source):
    one, again, other = balanced(source, 5, 1), balanced(source, 5, 1), balanced(source, 5, 2)
    np.testing.assert_array_equal(again[9]["image"], one.arrays()["image"][9])
    assert (other[9]["image"] != one[9]["image"]).any()
    np.testing.assert_array_equal(one[-1]["image"], one[14]["image"])


def test_classes_that_cannot_be_balanced(source):
    with pytest.raises(InputError, match=r"class '2' .* has 3 images: expected 1 to 2 .*at least 3"):
        balanced(source, 2)
    empty = from_arrays(np.zeros((1, 2, 2, 3), np.uint8), [0], ["a", "b"])
    with pytest.raises(InputError, match=r"class 'b' .* has 0 images"):
        balanced(empty, 2)


def test_grey_images():
    result = balanced(from_arrays(np.zeros((1, 8, 8), np.uint8) + 7, [0]), 3)
    assert result.arrays()["image"].shape == (3, 8, 8, 1)


def test_the_edge_is_repeated_except_in_the_translation():
    class Fixed:
        """Draws the largest values: angle 15, shift `shift`, no warp."""

        def __init__(self, shift):
            self.draws = [15.0, np.array([shift, 0.0]), 0.0, np.zeros((4, 2))]

        def uniform(self, *args):
            return self.draws.pop(0)

    image = np.full((16, 16, 3), 200, np.uint8)
    assert (balance.transform(image, Fixed(0.0)) == 200).all()
    shifted = balance.transform(image, Fixed(2.0))
    assert (shifted[:, :2] == 0).all() and (shifted[:, 2:] == 200).all()


def test_a_warp_moves_the_corners_and_repeats_the_edge():
    corners = np.array([[0, 0], [8, 0], [8, 8], [0, 8]], float)
    moved = corners + np.array([[1, 2], [-1, 0.5], [0, -2], [2, 1]])
    matrix = balance.homography(corners, moved)
    for start, end in zip(corners, moved, strict=True):
        x, y, w = matrix @ np.append(start, 1)
        np.testing.assert_allclose([x / w, y / w], end)
    np.testing.assert_allclose(balance.homography(corners, corners), np.eye(3), atol=1e-12)
    ramp = np.repeat(np.arange(16, dtype=np.uint8)[None, :, None] * 10, 16, 0)
    shift = balance.homography(corners, corners + np.array([3, 0]))  # read three pixels further right
    np.testing.assert_array_equal(
        balance._warp(ramp, shift, repeat_edge=True)[0, :, 0], [*range(30, 151, 10), *[150] * 3]
    )
    np.testing.assert_array_equal(
        balance._warp(ramp, shift, repeat_edge=False)[0, :, 0], [*range(30, 151, 10), *[0] * 3]
    )
    half = balance._warp(ramp, balance.homography(corners, corners + np.array([0.5, 0])), repeat_edge=True)
    np.testing.assert_array_equal(half[3, :4, 0], [5, 15, 25, 35])  # bilinear


def test_the_rotation_turns_about_the_centre():
    class Turn:
        def __init__(self):
            self.draws = [15.0, np.zeros(2), 0.0, np.zeros((4, 2))]

        def uniform(self, *args):
            return self.draws.pop(0)

    bright = np.zeros((33, 33, 1), np.uint8)
    bright[16, 16] = 255
    turned = balance.transform(bright, Turn())
    assert np.unravel_index(turned.argmax(), turned.shape)[:2] == (16, 16)
    right = np.zeros((33, 33, 1), np.uint8)
    right[15:18, 29:32] = 255  # 14 pixels right of the centre: 14 sin 15 = 3.6 up or down, 0.5 to the left
    row, column, _ = np.unravel_index(balance.transform(right, Turn()).argmax(), right.shape)
    assert abs(abs(row - 16) - 3.6) < 1.5 and abs(column - 29.5) < 1.5


def test_every_pixel_of_a_large_warp_has_a_source():
    """The padding that repeats the edge is wide enough: a white image stays white but for the translation."""
    white = np.full((20, 20, 1), 255, np.uint8)

    class NoShift:
        def __init__(self, seed):
            self.rng = np.random.default_rng(seed)

        def uniform(self, low, high, size=None):
            if size == 2:
                return np.zeros(2)
            extreme = self.rng.choice([low, high], size)  # only the extremes
            return extreme

    for seed in range(200):
        assert (balance.transform(white, NoShift(seed)) == 255).all()
