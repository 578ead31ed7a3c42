"""Small training images are enlarged on the device, level for level as PIL does it; evaluation sees the same."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from jrobust.data import Augmentation, evaluation_batches, for_evaluation, from_arrays, make_prepare, output_shape
from jrobust.data.device_resize import resized
from jrobust.errors import InputError

DRAW = np.random.default_rng(2)
UPSAMPLED = {"resize": 256, "crop_size": 224, "center_crop": True}


@pytest.mark.parametrize(
    "shape, side, center", [((64, 64), 256, 224), ((32, 32), 256, 224), ((47, 33), 50, 49), ((40, 40), 35, 35)]
)
def test_it_is_pils_level_for_level(transformed, shape, side, center):
    enlarge = jax.jit(lambda image: resized(image, side, center))
    for image in (DRAW.integers(0, 256, (*shape, 3), dtype=np.uint8), np.indices((*shape, 3)).sum(0) % 2 * 255):
        image = image.astype(np.uint8)
        np.testing.assert_array_equal(enlarge(image), transformed(image, side, center))


def test_training_and_evaluation_see_the_same_images(transformed):
    images = DRAW.integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)
    source = from_arrays(images, [0, 1, 2, 0, 1])
    batch = jax.jit(make_prepare(UPSAMPLED))({"index": np.array([4, 2])}, source.resident(), jax.random.key(0))
    assert source.resident()["image"].shape == (5, 32, 32, 3)  # small on the device
    expected = np.stack([transformed(images[i], 256, 224) for i in (4, 2)]) / np.float32(255)
    np.testing.assert_allclose(batch["image"], expected, atol=1e-7)
    seen = for_evaluation(source, UPSAMPLED)
    assert seen.image_shape == output_shape(source.image_shape, UPSAMPLED) == (224, 224, 3)
    (evaluated,) = evaluation_batches(seen, 5, crop_size=224)
    np.testing.assert_allclose(evaluated["image"][[4, 2]], batch["image"], atol=1e-7)
    np.testing.assert_array_equal(evaluated["label"], source.labels)
    assert for_evaluation(source, {"crop_size": 16}) is source
    # what is corrupted at the size of the files and then resized goes the same way
    smaller = for_evaluation(from_arrays(images, source.labels, image_size=16), UPSAMPLED)
    for each in (seen, smaller):
        assert each.native().image_shape == (32, 32, 3)
        np.testing.assert_array_equal(each.resized(each.native()[3]["image"]), each[3]["image"])


def test_masks_and_boxes_follow():
    mask = np.zeros((1, 8, 8), np.uint8)
    mask[0, 2:6, 4:8] = 1
    source = from_arrays(np.zeros((1, 8, 8, 3)), [0], masks=mask, boxes=[[4, 2, 8, 6]], biases=[0], bias_names=["a"])
    seen = for_evaluation(source, {"resize": 16, "crop_size": 12})[0]
    assert seen["box"].tolist() == [6, 2, 14, 10] and seen["bias"] == 0
    expected = np.zeros((12, 12))
    expected[2:10, 6:] = 1
    np.testing.assert_array_equal(seen["mask"], expected)


def test_the_centre_is_cut_out_without_resizing_too():
    images = DRAW.integers(0, 256, (1, 9, 11, 3), dtype=np.uint8)
    prepare = jax.jit(make_prepare({"crop_size": 4, "center_crop": True}))
    batch = prepare({"index": np.array([0])}, from_arrays(images, [0]).resident(), jax.random.key(1))
    np.testing.assert_allclose(batch["image"][0] * 255, images[0, 2:6, 4:8], atol=1e-4)


def test_after_resizing_the_crop_may_be_random():
    source = from_arrays(DRAW.integers(0, 256, (1, 8, 8, 3), dtype=np.uint8), [0])
    prepare = jax.jit(make_prepare({"resize": 16, "crop_size": 12}))
    whole = np.asarray(resized(source[0]["image"], 16))
    crops = [prepare({"index": np.array([0])}, source.resident(), jax.random.key(i))["image"][0] for i in range(4)]
    for image in crops:
        places = [whole[t : t + 12, c : c + 12] for t in range(5) for c in range(5)]
        assert min(abs(np.asarray(image) * 255 - place).max() for place in places) < 1e-3
    assert any((crops[0] != image).any() for image in crops[1:])


@pytest.mark.parametrize("resident", [True, False])
def test_captions_go_with_their_images(arrays, resident):
    images, labels = arrays
    tokens = np.arange(23 * 2 * 3).reshape(23, 2, 3)
    index = np.array([20, 3], np.int32)
    fields = {"image": images, "label": labels, "tokens": tokens, "row": np.arange(23)[::-1]}
    if resident:
        batch, rows = make_prepare(None)({"index": index}, fields, jax.random.key(0)), [2, 19]
    else:
        given = {"index": index} | {name: fields[name][index] for name in ("image", "label", "tokens")}
        batch, rows = make_prepare(None)(given, None, jax.random.key(0)), [20, 3]
    np.testing.assert_array_equal(batch["tokens"], tokens[rows])


def test_settings_that_cannot_be():
    for fields in (
        {"resize": 8},
        {"center_crop": True},
        {"resize": 8, "crop_size": 4, "crop_padding": 1},
        {"center_crop": True, "crop_size": 4, "resized_crop": True},
    ):
        with pytest.raises(InputError, match=r"augment.(resize|center_crop) with crop_size .* expected the side"):
            Augmentation(**fields)
    with pytest.raises(InputError, match="crop_size is 9, but images are resized to 8: lower it"):
        Augmentation(resize=8, crop_size=9)
    with pytest.raises(InputError, match=r"data.augment.resize is 8.5: expected whole pixels"):
        Augmentation(resize=8.5, crop_size=8)
