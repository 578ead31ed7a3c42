from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from jrobust.errors import InputError
from jrobust.evaluation import Subject, masking


def brightness(weights, images, labels):
    """The channel of the label, a value for each of 2 x 2 patches, times a weight of the subject."""
    chosen = jnp.take_along_axis(images, labels[:, None, None, None], 3)[..., 0]
    return chosen.reshape(-1, 2, 2, 2, 2).mean((2, 4)) * weights


@pytest.fixture
def patches(make_images):
    """Five images of 4 x 4 pixels. Their relevance is `shades` / 255; the third has no object."""
    shades = np.array(
        [[[255, 0], [110, 60]], [[60, 255], [0, 0]], [[255] * 2] * 2, [[0, 0], [0, 0]], [[20, 60], [255, 0]]]
    )
    labels = np.array([0, 1, 0, 1, 1])
    pixels = np.zeros((5, 4, 4, 3), np.uint8)
    pixels[np.arange(5), :, :, labels] = shades.repeat(2, 1).repeat(2, 2)
    masks = np.full((5, 4, 4), 2, np.uint8)
    masks[0, :2, :2], masks[0, 0, 2] = 1, 1  # of five pixels four are in the first patch, one in the second
    masks[1, :, 0] = 3
    masks[1, 0, 1] = 1
    masks[3, 3, 3] = masks[4, 2, 0] = 1
    logits = lambda weights, images, beta=None: images.mean((1, 2))[:, :2] * weights
    subject = Subject("bright", ["red", "green"], logits, jnp.float32(1.0), relevance=brightness)
    return subject, make_images(pixels, labels, masks=masks)


def test_means_over_images_with_an_object(patches):
    record = masking.run(*patches, masking.Settings(0.3, (0.1, 0.3, 0.9)), batch_size=2, progress=False)
    # Above 0.3 are patches 0 and 2 of image 0, patch 1 of image 1, none of image 3 and patch 2 of image 4.
    expected = {
        "image_masking_rate": [0.5, 0.25, 0.0, 0.25],
        "object_masking_rate": [4 / 5, 0.0, 0.0, 1.0],
        "iou": [4 / 9, 0.0, 0.0, 1 / 4],
    }
    for name, values in expected.items():
        np.testing.assert_allclose(np.delete(record.columns[name], 2), values, rtol=1e-6)
        assert np.isnan(record.columns[name][2])
        assert record.metrics[name].value == pytest.approx(np.mean(values)) and record.metrics[name].count == 4
    assert record.metrics["accuracy"].value == 4 / 5  # the black image counts as the first class
    assert record.checks == {"images_without_object": 1}
    assert record.warnings == ["1 of 5 images have no object in their mask: they are left out"]
    assert set(record.columns) == {"index", "label", "prediction", "correct", "margin", *expected}


def test_thresholds(patches):
    record = masking.run(*patches, masking.Settings(0.3, (0.9, 0.1, 0.3)), batch_size=2, progress=False)
    curve = record.curves["threshold"]
    assert [point["x"] for point in curve] == [0.1, 0.3, 0.9]
    assert [point["image_masking_rate"].value for point in curve] == [7 / 16, 4 / 16, 3 / 16]
    assert curve[1]["iou"] == record.metrics["iou"]
    rows = record.tables["thresholds"]["rows"]
    assert [row[0] for row in rows] == [0.1, 0.3, 0.9] and rows[2][1] == 3 / 16
    none = masking.run(*patches, masking.Settings(0.3, ()), batch_size=2, progress=False)
    assert none.metrics == record.metrics and not none.curves and not none.tables


def test_what_of_a_mask_is_the_object(patches):
    record = masking.run(*patches, masking.Settings(0.3, (), (1, 3)), batch_size=2, progress=False)
    assert record.columns["iou"][1] == 0 and record.columns["object_masking_rate"][0] == pytest.approx(4 / 5)
    wider = masking.run(*patches, masking.Settings(0.1, (), (1, 3)), batch_size=2, progress=False)
    assert wider.columns["object_masking_rate"][1] == pytest.approx(3 / 5)
    assert (
        masking.run(*patches, masking.Settings(0.1, ()), batch_size=2, progress=False).columns["object_masking_rate"][1]
        == 1
    )


def test_pictures(patches):
    arrays = masking.run(*patches, masking.Settings(0.3, ()), batch_size=2, progress=False).arrays
    assert arrays["relevance"].shape == (5, 2, 2) and arrays["object"].dtype == bool
    np.testing.assert_array_equal(arrays["masked"][0], [[True, False], [True, False]])
    assert arrays["object"][0].sum() == 5
    pixels = arrays["masked"].repeat(2, 1).repeat(2, 2)[..., None]
    np.testing.assert_array_equal(arrays["filled"], np.where(pixels, np.roll(arrays["image"], -1, 0), arrays["image"]))


def test_what_does_not_fit(patches, photos, make_images):
    subject, source = patches
    with pytest.raises(InputError, match="has no masks: suite masking needs images with a field `mask`"):
        masking.run(subject, photos)
    with pytest.raises(InputError, match="'plain' has no relevance of patches"):
        masking.run(Subject("plain", ["a"], subject.logits), source)
    with pytest.raises(InputError, match=r"threshold 1.5 is out of range"):
        masking.Settings(thresholds=(0.1, 1.5))
    with pytest.raises(InputError, match="object_values is empty"):
        masking.Settings(object_values=())
    thirds = Subject("thirds", ["red", "green"], subject.logits, jnp.float32(1.0), relevance=_thirds)
    with pytest.raises(InputError, match="images of 4x4 pixels have no 3x3 patches of whole pixels"):
        masking.run(thirds, source, progress=False)


def _thirds(weights, images, labels):
    return jnp.ones((len(images), 3, 3))
