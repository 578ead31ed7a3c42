"""Closed forms, and PIL as the reference: what torchvision's transforms of PIL images compute."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays as any_array
from PIL import Image, ImageEnhance

from jrobust.data import augment
from jrobust.data.augment import Augmentation

PIL_JITTER = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
OURS = (augment.brightness, augment.contrast, augment.saturation)
jitted = [jax.jit(operation) for operation in OURS]


def floats(image):
    return jnp.asarray(image, jnp.float32)


@pytest.fixture
def image():
    return np.random.default_rng(5).integers(0, 256, (9, 13, 3), dtype=np.uint8)


@settings(deadline=None, max_examples=40)
@given(any_array(np.uint8, (5, 6, 3)), st.floats(0, 2, width=32), st.sampled_from(range(3)))
def test_each_jitter_is_pils(image, factor, which):
    expected = np.asarray(PIL_JITTER[which](Image.fromarray(image)).enhance(factor), np.int32)
    result = np.asarray(jitted[which](floats(image), jnp.float32(factor)))
    assert (result == np.rint(result)).all()
    assert abs(result - expected).max() <= 1
    assert (result != expected).mean() < 0.05  # only where a fused multiply-add crosses a whole level


def test_jitter_closed_forms():
    image = floats([[[100, 150, 200], [0, 10, 255]]])
    assert augment.brightness(image, 1.1).tolist() == [[[110, 165, 220], [0, 11, 255]]]
    assert augment.grey(image)[..., 0].tolist() == [[141, 35]]  # 140.75, 34.94
    assert augment.contrast(image, 0.5).tolist() == [[[94, 119, 144], [44, 49, 171]]]  # mean 88, cut to whole levels
    assert augment.saturation(image, 0.0).tolist() == [[[141] * 3, [35] * 3]]
    for operation in OURS:
        assert operation(image, 1.0).tolist() == image.tolist()


def test_the_contrast_mean_is_exact_for_large_images():
    image = np.full((600, 600, 1), 255, np.uint8)
    image[0, :3] = 0  # a mean of 254.998 in float32 sums could come out wrong
    assert int(augment.contrast(floats(image), 0.0)[0, 0, 0]) == 255


def test_jitter_applies_the_operations_in_the_order_given(image):
    factors = jnp.array([1.2, 0.8, 1.25])
    results = set()
    for order in ([0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]):
        expected = floats(image)
        for k in order:
            expected = OURS[k](expected, factors[k])
        result = augment.jitter(floats(image), factors, jnp.array(order))
        np.testing.assert_array_equal(result, expected)
        results.add(np.asarray(result).tobytes())
    assert len(results) == 6


def test_grey_images_have_no_saturation(image):
    grey = floats(image[..., :1])
    assert augment.saturation(grey, 0.0).tolist() == grey.tolist()
    expected = ImageEnhance.Contrast(Image.fromarray(image[..., 0])).enhance(0.7)
    assert abs(augment.contrast(grey, 0.7)[..., 0] - np.asarray(expected, np.int32)).max() <= 1
    result = augment.augment(
        image[None, ..., :1], jax.random.split(jax.random.key(0), 1), Augmentation(2, 0, True, 0.3, 5.0)
    )
    assert result.shape == (1, 9, 13, 1)


@pytest.mark.parametrize("degrees", [-15.0, -2.0, -0.3, 0.0, 1.7, 30.0, 90.0])
@pytest.mark.parametrize("shape", [(32, 32), (9, 13)])
def test_rotation_is_pils(degrees, shape):
    image = np.random.default_rng(2).integers(1, 256, (*shape, 3), dtype=np.uint8)
    if degrees == 90.0 and shape[0] != shape[1]:
        pytest.skip("PIL transposes")
    expected = np.asarray(Image.fromarray(image).rotate(degrees, Image.Resampling.NEAREST))
    result = np.asarray(jax.jit(augment.rotate)(floats(image), degrees))
    different = (result != expected).any(-1)
    assert different.mean() < 0.02 or (degrees == 90.0 and different.mean() < 0.07)  # source exactly between two pixels


def test_rotation_is_counter_clockwise_and_fills_with_zero():
    image = np.zeros((5, 5, 1), np.uint8)
    image[2, 4] = 9  # the right
    assert augment.rotate(floats(image), 90.0)[0, 2, 0] == 9  # goes to the top
    turned = augment.rotate(jnp.ones((8, 8, 1)), 45.0)
    assert turned[0, 0, 0] == 0 and turned[7, 7, 0] == 0 and turned[4, 4, 0] == 1


def test_padded_crops_are_all_shifts_and_filled_with_zero():
    image = np.arange(1, 17, dtype=np.uint8).reshape(4, 4, 1)
    padded = np.pad(image, ((2, 2), (2, 2), (0, 0)))
    windows = {padded[i : i + 4, j : j + 4].astype(np.float32).tobytes() for i in range(5) for j in range(5)}
    keys = jax.random.split(jax.random.key(0), 500)
    crops = np.asarray(augment.augment(np.tile(image, (500, 1, 1, 1)), keys, Augmentation(crop_padding=2)))
    counts: dict[bytes, int] = {}
    for crop in crops:
        counts[crop.tobytes()] = counts.get(crop.tobytes(), 0) + 1
    assert counts.keys() == windows and min(counts.values()) > 4  # 20 expected at each of the 25 places


def test_a_crop_never_leaves_the_image():
    image = jnp.arange(9).reshape(3, 3, 1)
    last = jnp.full(2, 1 - 2.0**-23)  # the largest number that is drawn
    assert augment.crop(image, last, 0, 1).item() == 8 and augment.crop(image, jnp.zeros(2), 0, 1).item() == 0
    for room in (2, 3, 6, 33, 1000):
        assert int(jnp.floor(last[0] * room)) == room - 1


def test_crops_of_a_larger_image():
    image = np.arange(36, dtype=np.uint8).reshape(6, 6, 1)
    keys = jax.random.split(jax.random.key(0), 100)
    crops = np.asarray(augment.augment(np.tile(image, (100, 1, 1, 1)), keys, Augmentation(crop_size=4)))
    assert crops.shape == (100, 4, 4, 1)
    assert {int(crop[0, 0, 0]) for crop in crops} == {6 * i + j for i in range(3) for j in range(3)}


def test_flips_are_left_to_right_for_half_of_the_images(image):
    keys = jax.random.split(jax.random.key(0), 400)
    results = np.asarray(augment.augment(np.tile(image, (400, 1, 1, 1)), keys, Augmentation(flip=True)))
    flipped = (results == image[:, ::-1]).all((1, 2, 3))
    same = (results == image).all((1, 2, 3))
    assert (flipped ^ same).all() and 150 < flipped.sum() < 250


def test_the_order_is_crop_flip_jitter_rotate(image):
    settings = Augmentation(crop_padding=3, flip=True, jitter=0.25, rotation=20.0)
    for seed in range(4):
        draws = jax.random.uniform(jax.random.key(seed), (8,))
        expected = augment.crop(jnp.asarray(image), draws[:2], 3, 0)
        expected = expected[:, ::-1] if draws[2] < 0.5 else expected
        order = jnp.array(augment.ORDERS[int(draws[6] * 6)])
        expected = augment.jitter(floats(expected), 0.75 + 0.5 * draws[3:6], order)
        expected = augment.rotate(expected, 40 * draws[7] - 20)
        np.testing.assert_allclose(augment.augment_one(jnp.asarray(image), jax.random.key(seed), settings), expected)


def test_jitter_stays_within_its_factors():
    image = np.full((300, 1, 1, 3), 100, np.uint8)  # grey: contrast and saturation do nothing: brightness alone is seen
    keys = jax.random.split(jax.random.key(0), 300)
    values = np.asarray(augment.augment(image, keys, Augmentation(jitter=0.25)))
    assert 75 <= values.min() < 78 and 121 < values.max() <= 125
    wide = np.asarray(augment.augment(image, keys, Augmentation(jitter=3.0)))
    assert 0 <= wide.min() < 5 and wide.max() == 255


def test_jitter_draws_every_order_equally_often():
    image = jnp.array([[[20.0, 90.0, 250.0]], [[200.0, 10.0, 60.0]]])
    factors = jnp.array([1.25, 0.75, 1.25])
    results = [np.asarray(augment.jitter(image, factors, jnp.array(order))).tobytes() for order in augment.ORDERS]
    assert len(set(results)) == 6 and len(set(augment.ORDERS)) == 6
    draws = jax.vmap(lambda key: jax.random.uniform(key, (8,)))(jax.random.split(jax.random.key(0), 600))
    counts = np.bincount((draws[:, 6] * 6).astype(int), minlength=7)
    assert counts[:6].min() > 60 and counts[6] == 0  # 100 expected


def test_rotations_are_uniform_within_their_limit():
    image = np.zeros((200, 41, 41, 1), np.uint8)
    image[:, 20, 40] = 1  # 20 pixels right of the centre
    keys = jax.random.split(jax.random.key(3), 200)
    turned = np.asarray(augment.augment(image, keys, Augmentation(rotation=30.0)))[..., 0]
    seen = turned.reshape(200, -1).any(1)  # a nearest-pixel rotation can lose a single one
    rows = turned[seen].reshape(seen.sum(), -1).argmax(1) // 41 - 20
    assert seen.mean() > 0.5 and -10 <= rows.min() < -8 and 8 < rows.max() <= 10  # 20 sin 30 = 10
