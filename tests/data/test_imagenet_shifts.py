"""The sets that share ImageNet's classes: their folders, labels, ObjectNet's border, and how they are evaluated."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from jrobust.data import load, zero_shot_sets
from jrobust.data.class_prompts import prompts
from jrobust.data.imagenet_names import wnids
from jrobust.data.imagenet_subsets import OBJECTNET
from jrobust.data.images import Fit
from jrobust.data.registry import DATA_SETS
from jrobust.errors import InputError
from tests.data.test_zero_shot_tfds import prepare

FOLDERS = {
    "imagenet_samples": "imagenet-samples",
    "imagenet_r": "imagenet-r",
    "imagenet_a": "imagenet-a",
    "imagenet_sketch": "sketch",
}


def test_what_is_official():
    official = {name: (DATA_SETS[name].counts["test"], DATA_SETS[name].num_classes) for name in DATA_SETS}
    assert official["imagenet_v2"] == (10_000, 1000) and official["imagenet_r"] == (30_000, 1000)
    assert official["imagenet_sketch"] == (50_889, 1000) and official["imagenet_a"] == (7500, 1000)
    assert official["objectnet"] == (18_574, 113)


def test_imagenet_v2_numbers_its_folders(layouts):
    root = "imagenetv2-matched-frequency-format-val"
    for folder in (0, 2, 10, 100, 999):
        layouts.write_image(f"{root}/{folder}/b.jpeg")
    source = load("imagenet_v2", "test", layouts.root)
    assert source.labels.tolist() == [0, 2, 10, 100, 999] and source.class_names == wnids()
    assert [path.parent.name for path in source.paths] == ["0", "2", "10", "100", "999"]
    layouts.write_image(f"{root}/1000/b.jpeg")
    with pytest.raises(InputError, match="has folder '1000', which is none of the 1000 classes"):
        load("imagenet_v2", "test", layouts.root)


@pytest.mark.parametrize("name", FOLDERS)
def test_labels_are_those_of_imagenet_whatever_classes_are_there(layouts, name):
    for k in (988, 6, 13):
        layouts.write_image(f"{FOLDERS[name]}/{wnids()[k]}/a.JPEG")
    layouts.write_text(f"{FOLDERS[name]}/README.txt", "not a class")
    source = load(name, "test", layouts.root)
    assert source.labels.tolist() == [6, 13, 988] and source.class_names == wnids()
    layouts.write_image(f"{FOLDERS[name]}/n00000001/a.JPEG")
    with pytest.raises(InputError, match="'n00000001', which is none of the 1000 classes"):
        load(name, "test", layouts.root)


def test_objectnet_has_the_folders_that_imagenet_has_without_their_border(layouts, transformed):
    root = "objectnet-1.0/images"
    for folder in ("wok", "air_freshener", "chair"):
        image = layouts.write_image(f"{root}/{folder}/a.png", height=20, width=34)
    source = load("objectnet", "test", layouts.root)
    assert [source.class_names[k] for k in source.labels] == ["chair", "wok"]
    assert len(source.class_names) == 113 and set(source.class_names) == set(OBJECTNET)
    image = np.asarray(Image.open(layouts.root / f"{root}/chair/a.png"))
    np.testing.assert_array_equal(source[0]["image"], image[2:18, 2:32])
    small = load("objectnet", "test", layouts.root, image_size=8, fit="crop", filter="bicubic")
    np.testing.assert_array_equal(small[0]["image"], transformed(image[2:18, 2:32], 8, 8, "bicubic"))
    native = small.native()
    np.testing.assert_array_equal(small.resized(native[0]["image"]), small[0]["image"])  # the border goes once
    Image.fromarray(image[:4]).save(layouts.root / f"{root}/wok/a.png")
    with pytest.raises(InputError, match="34x4 pixels: expected more than a border of 2 on every side"):
        small[1]


def test_sets_are_evaluated_at_224_pixels(layouts, transformed):
    image = layouts.write_image(f"imagenet-a/{wnids()[6]}/a.jpg", height=250, width=300)
    source = zero_shot_sets.load_set("shift:imagenet_a", layouts.root)
    assert (source.image_size, source.fit) == (224, Fit("crop", 224, "bicubic"))
    np.testing.assert_array_equal(source[0]["image"], transformed(image, 224, 224, "bicubic"))


def test_their_classes_are_called_as_those_of_imagenet():
    for template in ("", "openai_80"):
        assert prompts("imagenet_v2", wnids(), template) == prompts("imagenet", wnids(), template)
    assert prompts("imagenet_a", wnids())[278] == ["This is a photo of a kit fox"]


@pytest.mark.parametrize("name", ["imagenet_v2/matched-frequency", "imagenet_a"])
def test_what_tfds_prepares(tmp_path, name):
    records = [{"file_name": f"{k}/{f}.jpg", "label": wnids()[k]} for k, f in ((6, "b"), (999, "a"), (6, "a"))]
    prepare(tmp_path, name, {"test": records})
    source = load(name.partition("/")[0], "test", tmp_path)
    assert source.labels.tolist() == [6, 6, 999] and source.class_names == wnids()
    assert [round(source[i]["image"].mean() / 20) for i in range(3)] == [2, 0, 1]
