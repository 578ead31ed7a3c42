"""A window of random area and aspect, resized: PIL is the reference for the pixels, torchvision for the draws."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jrobust.data import augment, from_arrays, make_prepare
from jrobust.data.augment import Augmentation
from jrobust.errors import InputError

IMAGE = np.random.default_rng(5).integers(0, 256, (23, 31, 3), dtype=np.uint8)
cropped = {
    size: jax.jit(lambda image, window, size=size: augment.resized_crop(image, window, size)) for size in (6, 17, 40)
}


@pytest.mark.parametrize("size", sorted(cropped))
def test_a_resized_window_is_pils(size):
    draw = np.random.default_rng(0)
    differ = []
    for _ in range(100):
        height, width = draw.integers(1, 24), draw.integers(1, 32)
        top, left = draw.integers(0, 24 - height), draw.integers(0, 32 - width)
        window = Image.fromarray(IMAGE[top : top + height, left : left + width])
        expected = np.asarray(window.resize((size, size), Image.Resampling.BILINEAR), np.int32)
        result = np.asarray(cropped[size](IMAGE, jnp.array([top, left, height, width])))
        assert (result == np.rint(result)).all()
        assert abs(result - expected).max() <= 1
        differ.append((result != expected).mean())
    # weights are multiples of 1 / (2 size): as many sums are exact halves, which PIL's fixed point puts on either side
    assert np.mean(differ) < 0.75 / size


def test_the_whole_image_at_its_own_size_is_itself():
    square = IMAGE[:17, :17]
    np.testing.assert_array_equal(cropped[17](square, jnp.array([0, 0, 17, 17])), square)
    np.testing.assert_array_equal(cropped[17](IMAGE, jnp.array([3, 9, 17, 17])), IMAGE[3:20, 9:26])


def windows(height, width, count=4000):
    keys = jax.random.split(jax.random.key(3), count)
    return np.asarray(jax.jit(jax.vmap(lambda key: augment.random_window(key, height, width)))(keys)).T


def test_windows_have_the_areas_aspects_and_places_of_torchvision():
    top, left, height, width = windows(200, 200)
    assert min(top.min(), left.min()) == 0 and (top + height).max() == (left + width).max() == 200
    assert (top + height)[height < 150].max() == (left + width)[width < 150].max() == 200
    assert ((height == 200) & (width == 200)).mean() < 0.01  # what is taken where none of ten draws fits
    aspect, area = width / height, width * height / 200**2
    assert 0.73 < aspect.min() < 0.77 and 1.3 < aspect.max() < 1.37
    assert 0.075 < area.min() < 0.085 and area.max() > 0.97
    small = area < 0.5  # where every draw fits
    assert abs(area[small].mean() - 0.29) < 0.01 and abs(np.log(aspect[small]).mean()) < 0.01
    assert abs(np.log(aspect[small]).std() - math.log(16 / 9) / math.sqrt(12)) < 0.01
    room = (top / (200 - height + 1))[height < 150], (left / (200 - width + 1))[width < 150]
    for place in room:
        assert abs(place.mean() - 0.5) < 0.02 and abs(place.std() - 1 / math.sqrt(12)) < 0.02
    assert abs(np.corrcoef(*(place[:1500] for place in room))[0, 1]) < 0.1


def test_where_no_draw_fits_it_is_the_widest_central_window():
    top, left, height, width = windows(10, 400, count=50)
    assert (np.stack([top, height, left, width]).T == [0, 10, (400 - 13) // 2, 13]).any(0).all()
    fallback = width == 13
    assert fallback.any() and set(left[fallback]) >= {193}
    tall = windows(400, 10, count=50)
    assert (tall.T == [193, 0, 13, 10]).all(1).any()


def test_in_training_it_is_drawn_for_each_image_from_its_own_key():
    images = np.stack([IMAGE[:20, :20]] * 3)
    source = from_arrays(images, [0, 1, 2])
    prepare = jax.jit(make_prepare({"resized_crop": True, "crop_size": 12}))
    one = prepare({"index": np.array([0, 1, 2])}, source.resident(), jax.random.key(0))["image"]
    other = prepare({"index": np.array([2, 0, 1])}, source.resident(), jax.random.key(0))["image"]
    assert one.shape == (3, 12, 12, 3) and one.min() >= 0 and one.max() <= 1
    np.testing.assert_array_equal(one[2], other[0])
    assert (one[0] != one[1]).any()
    flipped = jax.jit(make_prepare({"resized_crop": True, "crop_size": 12, "flip": True}))
    again = flipped({"index": np.array([0, 1, 2])}, source.resident(), jax.random.key(0))["image"]
    for a, b in zip(np.asarray(one), np.asarray(again), strict=True):
        assert (a == b).all() or (a == b[:, ::-1]).all()  # the window does not depend on what else is drawn


def test_it_needs_a_size_and_no_padding():
    for fields in ({}, {"crop_size": 8, "crop_padding": 1}):
        with pytest.raises(InputError, match=r"resized_crop with crop_size .* expected the side to resize to"):
            Augmentation(resized_crop=True, **fields)
