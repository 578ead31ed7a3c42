"""What TFDS prepares is read like the authors' files: splits, labels and, where records tell it, their order."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from jrobust.data import load, tfds_sets
from jrobust.data.matlab_sets import FLOWERS102_NAMES
from jrobust.errors import InputError


def prepare(root, name: str, splits: dict[str, list[dict]]) -> None:
    """Let TFDS write these records as one of its own data sets; the brightness of images counts them."""
    import tensorflow_datasets as tfds

    builder = tfds.builder(name, data_dir=str(root), file_format="array_record")
    side = builder.info.features["image"].shape[0] or 8

    def generate(split, records):
        for i, record in enumerate(records):
            yield f"{split}{i}", {"image": Image.fromarray(np.full((side, side, 3), 20 * i, np.uint8)), **record}

    builder._split_generators = lambda *args, **kwargs: {s: generate(s, records) for s, records in splits.items()}
    builder.download_and_prepare()


def order(source) -> list[int]:
    """Return which of the written records follow each other; JPEG changes an image by less than 10 levels."""
    return [round(source[i]["image"].mean() / 20) for i in range(len(source))]


def test_caltech101_is_numbered_by_folders_without_the_background(tmp_path):
    def records(*files):
        return [dict(zip(("label", "image/file_name"), file.split("/"), strict=True)) for file in files]

    train = records("faces/image_0002.jpg", "background_google/image_0001.jpg")
    test = records("accordion/image_0001.jpg", "faces/image_0001.jpg", "faces/image_0003.jpg", "ant/image_0003.jpg")
    prepare(tmp_path, "caltech101", {"train": train, "test": test})
    source = load("caltech101", "test", tmp_path)
    names = source.class_names
    assert len(names) == 101 and names[:5] == ("Faces", "Faces_easy", "Leopards", "Motorbikes", "accordion")
    assert names[5:8] == ("airplanes", "anchor", "ant") and names[-1] == "yin_yang"  # the rest as torchvision sorts it
    assert [names[source[i]["label"]] for i in range(5)] == ["Faces", "Faces", "Faces", "accordion", "ant"]
    assert source.labels.tolist() == [0, 0, 0, 4, 7] and order(source) == [1, 0, 2, 0, 3]
    assert load("tfds:caltech101", "train", tmp_path).class_names[0] == "accordion"  # by its own name as TFDS has it
    with pytest.raises(InputError, match="caltech101 has no split 'train': expected test"):
        load("caltech101", "train", tmp_path)


def test_oxford_pets_are_in_the_order_of_their_list_with_masks(tmp_path):
    import tensorflow_datasets as tfds

    listed = ["Bengal_199", "Bengal_19", "Bengal_1", "Bengal_200", "Bengal_20"]  # a part of the published test.txt
    trimap = np.full((8, 8), 2, np.uint8)
    trimap[2:6, 2:5], trimap[2:6, 5] = 1, 3
    shared = {"species": 0, "segmentation_mask": Image.fromarray(trimap)}
    shared["head_bbox"] = tfds.features.BBox(0.0, 0.0, 1.0, 1.0)
    files = ["beagle_3", *sorted(listed)]
    records = [{**shared, "file_name": f"{file}.jpg", "label": file.split("_")[0]} for file in files]
    prepare(tmp_path, "oxford_iiit_pet", {"test": records, "train": records[:1]})
    source = load("oxford_pets", "test", tmp_path)
    assert [source.class_names[k] for k in source.labels] == ["beagle"] + ["Bengal"] * 5
    assert order(source) == [0, *(files.index(file) for file in listed)]
    np.testing.assert_array_equal(source[0]["mask"], trimap == 1)
    smaller = load("oxford_pets", "test", tmp_path, image_size=4, fit="crop", resize=8)[0]
    np.testing.assert_array_equal(smaller["mask"], (trimap == 1)[2:6, 2:6])
    assert smaller["image"].shape == (4, 4, 3)


def test_pcam_is_in_the_order_of_its_files(tmp_path):
    prepare(tmp_path, "patch_camelyon", {"test": [{"id": f"test_{i}", "label": i % 2} for i in (10, 9, 1, 11)]})
    source = load("pcam", "test", tmp_path, image_size=8, fit="crop", resize=16)
    assert order(source) == [2, 1, 0, 3] and source.labels.tolist() == [1, 1, 0, 1]
    assert source.image_shape == (8, 8, 3)


def test_food101_calls_its_test_split_validation(tmp_path):
    records = [{"id": file, "label": file.split("/")[0]} for file in ("sushi/2", "apple_pie/7", "apple_pie/10")]
    prepare(tmp_path, "food101:2.1.0", {"validation": records})
    source = load("food101", "test", tmp_path)
    assert [source.class_names[k] for k in source.labels] == ["apple_pie", "apple_pie", "sushi"]
    assert order(source) == [2, 1, 0]  # 10 before 7


def test_the_names_and_splits_that_tfds_gives_the_others():
    """Labels and features are those of the installed TFDS; nothing is prepared."""
    import tensorflow_datasets as tfds

    for prepared in vars(tfds_sets).values():
        if not isinstance(prepared, tfds_sets.Prepared):
            continue
        version = ":2.1.0" if prepared.name == "food101" else ""
        features = dict(tfds.builder(prepared.name + version).info.features.items())
        if prepared not in (tfds_sets.STL10,):
            assert isinstance(features[prepared.sorted_by], tfds.features.Text), prepared.name
        names = features["label"].names
        assert len(prepared.class_names) in (0, len(names)) and set(prepared.renamed) <= set(names)
        if prepared is tfds_sets.FLOWERS102:
            assert [" ".join(name.split()) for name in names] == list(FLOWERS102_NAMES)


def test_keys():
    assert sorted(["t_10", "t_9", "t_100"], key=tfds_sets.as_counted) == ["t_9", "t_10", "t_100"]
    published = ["Abyssinian_205", "Abyssinian_20", "Abyssinian_210", "Abyssinian_29", "Abyssinian_2", "Abyssinian_30"]
    assert sorted(sorted(f"{x}.jpg" for x in published), key=tfds_sets.as_listed) == [f"{x}.jpg" for x in published]
