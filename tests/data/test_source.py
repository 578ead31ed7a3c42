from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from jrobust.data import balanced, channel_statistics, from_arrays, load, repeated
from jrobust.data.images import scale_box
from jrobust.errors import InputError


def test_floats_are_rounded_to_levels_and_grey_images_get_a_channel():
    levels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16)
    for images in (levels, levels / 255, (levels / np.float32(255)).astype(np.float32), levels[..., None]):
        source = from_arrays(images, [0])
        assert source.image_shape == (16, 16, 1)
        np.testing.assert_array_equal(source[0]["image"][..., 0], levels[0])
    assert from_arrays(levels, [3]).class_names == ("0", "1", "2", "3")


def test_resizing_is_pils_bilinear_and_takes_boxes_and_masks_along(arrays):
    images, labels = arrays
    masks, boxes = (images[..., 0] > 127).astype(np.uint8), np.tile([0.0, 2.0, 4.0, 8.0], (23, 1))
    source = from_arrays(images, labels, boxes=boxes, masks=masks, image_size=12)
    expected = np.asarray(Image.fromarray(images[5]).resize((12, 12), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(source[5]["image"], expected)
    assert source[5]["box"].tolist() == [0, 3, 6, 12] and source[5]["mask"].shape == (12, 12)
    assert set(np.unique(source[5]["mask"])) == {0, 1}


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 500), st.integers(1, 500), st.integers(1, 300))
def test_a_box_keeps_its_place_relative_to_the_image(width, height, size):
    box = np.array([0.25 * width, 0.5 * height, width, height])
    np.testing.assert_allclose(scale_box(box, (width, height), size), size * np.array([0.25, 0.5, 1, 1]), rtol=1e-6)


def test_examples_and_arrays_agree_with_single_reads(layouts):
    layouts.folder("own", {"a": 70, "b": 70}, splits=("train",))
    source = load("own", "train", layouts.root)
    whole = source.arrays()
    assert whole is source.arrays()  # kept
    for i in (0, 63, 64, 139):
        np.testing.assert_array_equal(whole["image"][i], source[i]["image"])
    part = source.examples(np.array([139, 2]))
    np.testing.assert_array_equal(part["image"], whole["image"][[139, 2]])
    assert part["label"].tolist() == [1, 0] and part["label"].dtype == np.int32


def test_channel_statistics_are_those_of_all_pixels(arrays):
    images, labels = arrays
    mean, std = channel_statistics(from_arrays(images, labels))
    np.testing.assert_allclose(mean, (images / 255).mean((0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(std, (images / 255).std((0, 1, 2)), rtol=1e-12)
    assert channel_statistics(from_arrays(np.full((1, 2, 2, 3), 51, np.uint8), [0])) == ((0.2,) * 3, (0.0,) * 3)


def test_a_bias_is_known_without_decoding_and_has_names(arrays):
    images, labels = arrays
    source = from_arrays(images, labels, biases=(np.arange(23) + 1) % 4)
    assert source.biases.dtype == np.int32 and source.biases.tolist() == ((np.arange(23) + 1) % 4).tolist()
    assert source.bias_names == ("0", "1", "2", "3") and source[2]["bias"] == 3
    named = from_arrays(images, labels, biases=labels, bias_names=["red", "green", "blue", "black"])
    assert named.bias_names == ("red", "green", "blue", "black")
    assert from_arrays(images, labels).biases is None and from_arrays(images, labels).bias_names == ()
    with pytest.raises(InputError, match=r"bias 2 of image 2 .*expected 0 to 1"):
        from_arrays(images, labels, biases=labels, bias_names=["red", "green"])
    copies = balanced(source, 9)
    assert copies.biases.tolist() == [copies[i]["bias"] for i in range(27)] and copies.bias_names == source.bias_names
    few = from_arrays(images, np.minimum(labels, 1), biases=np.zeros(23, int))
    assert few.bias_names == ("0", "1")  # as many as classes: the other split may have the other value


def test_a_resized_source_knows_its_native_size(arrays):
    images, labels = arrays
    plain = from_arrays(images, labels, boxes=np.ones((23, 4)), biases=labels)
    assert plain.native() is plain and plain.image_size == 0
    np.testing.assert_array_equal(plain.resized(images[0]), images[0])
    source = from_arrays(images, labels, boxes=np.ones((23, 4)), biases=labels, image_size=12)
    native = source.native()
    assert source.image_size == 12 and native.image_shape == (8, 8, 3) and native.image_size == 0
    np.testing.assert_array_equal(native.arrays()["image"], images)
    assert native[4]["box"].tolist() == [1] * 4 and native.biases.tolist() == labels.tolist()
    np.testing.assert_array_equal(source.resized(native[4]["image"]), source[4]["image"])
    assert source[4]["box"].tolist() == [1.5] * 4 and source.bias_names == native.bias_names


def test_a_repeated_source_keeps_each_image_once(arrays):
    images, labels = arrays
    source = from_arrays(images, labels, biases=(labels + np.arange(23) // 12) % 3, image_size=4)
    rows = [5, 5, 0, 22, 5]
    copies = repeated(source, rows)
    assert len(copies) == 5 and copies.labels.tolist() == labels[rows].tolist()
    assert copies.biases.tolist() == source.biases[rows].tolist() and copies.image_shape == (4, 4, 3)
    for i, row in enumerate(rows):
        np.testing.assert_array_equal(copies[i]["image"], source[row]["image"])
    np.testing.assert_array_equal(copies.examples([3, 1])["image"], source.examples([22, 5])["image"])
    resident = copies.resident()
    assert resident["image"] is source.arrays()["image"] and resident["row"].tolist() == rows
    assert resident["row"].dtype == np.int32 and "row" not in source.resident()
    twice = repeated(copies, [4, 3, 3])
    assert twice.resident()["row"].tolist() == [5, 22, 22] and twice.labels.tolist() == labels[[5, 22, 22]].tolist()
    assert copies.native().image_shape == (8, 8, 3) and len(copies.native()) == 5 and copies.image_size == 4
    np.testing.assert_array_equal(copies.arrays()["image"], source.arrays()["image"][rows])


@pytest.mark.parametrize("rows", [[], [23], [-1], [0.0, 1.0], [[0]]])
def test_rows_that_are_no_positions(arrays, rows):
    with pytest.raises(InputError, match=r"expected (integers|positions)"):
        repeated(from_arrays(*arrays), rows)


def test_arrays_in_memory_do_not_need_tfds():
    program = (
        "import sys; sys.modules['tensorflow_datasets'] = None; import numpy as np;"
        "from jrobust import data; s = data.from_arrays(np.zeros((4, 2, 2, 3)), [0, 1, 0, 1]);"
        "assert len(list(data.evaluation_batches(s, 3))) == 2;"
        "assert len(next(data.TrainBatches(s, 2, 0, resident=True))['index']) == 2;"
        "assert len(data.load('digits', 'test')) == len(data.load('colored_digits', 'test')) == 360"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
