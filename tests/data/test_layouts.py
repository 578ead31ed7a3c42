"""Every layout gives back exactly what was written to it."""

from __future__ import annotations

import tarfile

import numpy as np
import pytest

from jrobust.data import load
from jrobust.data.folders import split_of_rar
from jrobust.errors import InputError


def test_digits_are_stratified_and_complete():
    from sklearn.datasets import load_digits

    train, test = load("digits", "train"), load("digits", "test")
    assert (len(train), len(test)) == (1437, 360)
    assert train.image_shape == (8, 8, 1) and train.class_names == tuple("0123456789")
    everything = np.concatenate([train.arrays()["image"], test.arrays()["image"]])
    assert everything.max() == 255 and everything.min() == 0
    official = np.rint(load_digits().images * 255 / 16).astype(np.uint8)
    assert sorted(x.tobytes() for x in everything) == sorted(x.tobytes() for x in official)
    ratio = np.bincount(test.labels) / (np.bincount(test.labels) + np.bincount(train.labels))
    assert abs(ratio - 0.2).max() < 0.005


def test_image_size_resizes_on_reading():
    source = load("digits", "test", image_size=12)
    assert source.image_shape == (12, 12, 1) and source.arrays()["image"].shape == (360, 12, 12, 1)


@pytest.mark.parametrize("where", [".", "cifar10"])
def test_cifar10_from_the_binary_files(layouts, where):
    written = layouts.cifar10()
    if where != ".":
        (layouts.root / where).mkdir()
        (layouts.root / "cifar-10-batches-bin").rename(layouts.root / where / "cifar-10-batches-bin")
    for split in ("train", "test"):
        source = load("cifar10", split, layouts.root)
        assert source.class_names[:2] == ("airplane", "automobile")
        np.testing.assert_array_equal(source.arrays()["image"], written[split][0])
        np.testing.assert_array_equal(source.arrays()["label"], written[split][1])


def test_cifar10_from_the_folder_itself_and_from_the_archive(layouts, tmp_path_factory):
    written = layouts.cifar10()
    folder = layouts.root / "cifar-10-batches-bin"
    direct = load("cifar10", "train", folder)
    other = tmp_path_factory.mktemp("archive")
    with tarfile.open(other / "cifar-10-binary.tar.gz", "w:gz") as archive:
        archive.add(folder, "cifar-10-batches-bin")
    packed = load("cifar10", "train", other)
    for source in (direct, packed):
        np.testing.assert_array_equal(source.arrays()["image"], written["train"][0])
    assert [p.name for p in other.iterdir()] == ["cifar-10-binary.tar.gz"]  # nothing was extracted


@pytest.mark.parametrize("name, tfds_name", [("cifar10", "cifar10"), ("svhn", "svhn_cropped")])
def test_tfds_and_the_authors_files_are_the_same_images_in_the_same_order(layouts, tmp_path_factory, name, tfds_name):
    if name == "cifar10":
        written = layouts.cifar10(per_file=30)
    else:
        from scipy.io import savemat

        written = {}
        for split, count in (("train", 60), ("test", 20)):
            images, labels = layouts.images(count, 32, 32, 3), layouts.rng.integers(0, 10, count)
            mat = {"X": images.transpose(1, 2, 3, 0), "y": np.where(labels == 0, 10, labels).astype(np.uint8)[:, None]}
            savemat(layouts.root / f"{split}_32x32.mat", mat)
            written[split] = images, labels
    prepared = type(layouts)(tmp_path_factory.mktemp("tfds"))
    prepared.tfds(tfds_name, written)
    for split in ("train", "test"):
        files, records = load(name, split, layouts.root), load(name, split, prepared.root)
        assert files.place != records.place and files.class_names == records.class_names
        assert files.image_shape == records.image_shape == (32, 32, 3)
        for key in ("image", "label"):
            np.testing.assert_array_equal(files.arrays()[key], records.arrays()[key])
            assert files.arrays()[key].dtype == records.arrays()[key].dtype
        np.testing.assert_array_equal(files.arrays()["image"], written[split][0])
        assert records[3]["label"] == files[3]["label"] and isinstance(records[3]["label"], int)
    assert load(f"tfds:{tfds_name}", "train[:50%]", prepared.root).image_shape == (32, 32, 3)


def test_cifar100_takes_the_fine_label(layouts):
    images, coarse, fine = layouts.images(6, 32, 32, 3), np.arange(6), np.array([99, 0, 7, 3, 3, 1])
    planes = images.transpose(0, 3, 1, 2).reshape(6, -1)
    content = np.concatenate([coarse[:, None], fine[:, None], planes], 1).astype(np.uint8).tobytes()
    folder = layouts.root / "cifar-100-binary"
    folder.mkdir()
    (folder / "train.bin").write_bytes(content)
    (folder / "test.bin").write_bytes(content)
    source = load("cifar100", "test", layouts.root)
    np.testing.assert_array_equal(source.labels, fine)
    np.testing.assert_array_equal(source.arrays()["image"], images)
    assert len(source.class_names) == 100


def test_cub200_boxes_follow_the_resized_image(layouts):
    images = layouts.cub200()
    train = load("cub200", "train", layouts.root)
    assert train.class_names == ("001.Albatross", "002.Auklet")
    assert train.labels.tolist() == [0, 1, 1]  # ids 2, 4, 5
    np.testing.assert_array_equal(train[1]["image"], images[4])
    assert train[1]["box"].tolist() == [4, 2, 14, 7]
    resized = load("cub200", "test", layouts.root, image_size=40)  # ids 1, 3; width 20 -> 40, height 10 -> 40
    assert resized.image_shape == (40, 40, 3)
    assert resized.arrays()["box"].tolist() == [[2, 8, 22, 28], [6, 8, 26, 28]]


def test_tiny_imagenet(layouts):
    layouts.tiny_imagenet()
    train, test = (load("tiny_imagenet", split, layouts.root, image_size=32) for split in ("train", "test"))
    assert train.class_names == ("goldfish", "crane")
    # val_1.JPEG, of the first class, comes first
    assert train.labels.tolist() == [0, 0, 0, 1, 1, 1] and test.labels.tolist() == [0, 1]
    assert train.arrays()["box"][2].tolist() == [1, 1, 15, 20] and test[0]["box"].tolist() == [2, 2.5, 3, 3.5]


@pytest.mark.parametrize("name", ["gtsrb", "image_folder:gtsrb", "flower17", "own"])
def test_image_folders_number_classes_in_sorted_order(layouts, name):
    folder = name.rpartition(":")[2]
    layouts.folder(folder, {"b": 2, "a": 1, "c": 3})
    (layouts.root / folder / "train" / "b" / "readme.txt").write_text("no image")
    source = load(name, "train", layouts.root)
    assert source.class_names == ("a", "b", "c") and source.labels.tolist() == [0, 1, 1, 2, 2, 2]
    assert source.image_shape == (8, 8, 3)


def test_a_class_that_has_no_test_images_keeps_its_number(layouts):
    layouts.folder("own", {"a": 1, "b": 1, "c": 1}, splits=("train",))
    layouts.folder("own", {"c": 2}, splits=("test",))
    source = load("own", "test", layouts.root)
    assert source.class_names == ("a", "b", "c") and source.labels.tolist() == [2, 2]


def test_gtsrb_as_its_authors_distribute_it(layouts):
    for class_name in ("00000", "00001"):
        layouts.write_image(f"GTSRB/Final_Training/Images/{class_name}/00000_00000.ppm", 9, 11)
    image = layouts.write_image("GTSRB/Final_Test/Images/00000.ppm", 16, 16)
    layouts.write_image("GTSRB/Final_Test/Images/00001.ppm", 16, 16)
    layouts.write_text("GT-final_test.csv", "Filename;Width;ClassId", "00000.ppm;16;1", "00001.ppm;16;0")
    assert load("gtsrb", "train", layouts.root, image_size=32).image_shape == (32, 32, 3)
    test = load("gtsrb", "test", layouts.root)
    assert test.labels.tolist() == [1, 0]
    np.testing.assert_array_equal(test[0]["image"], image)


def test_flower17_is_split_72_to_8_by_a_frozen_rule(layouts):
    labels = np.repeat(np.arange(17), 80)
    train = split_of_rar(labels)
    assert np.bincount(labels[train]).tolist() == [72] * 17 and (~train).sum() == 136
    assert np.flatnonzero(~train)[:8].tolist() == [13, 24, 33, 49, 52, 58, 61, 70]  # must never change
    for class_name in ("rose", "daisy"):
        for i in range(10):
            layouts.write_image(f"flower17/{class_name}/{i}.png")
    parts = [load("flower17", split, layouts.root) for split in ("train", "test")]
    assert [len(part) for part in parts] == [18, 2]
    assert len({path for part in parts for path in part.paths}) == 20


def test_npz(layouts):
    images, labels = layouts.images(5, 6, 7), np.array([0, 2, 1, 0, 0])
    boxes, bias, masks = np.ones((5, 4)), np.array([1, 0, 1, 0, 1]), np.ones((5, 6, 7), bool)
    np.savez(
        layouts.root / "own.npz",
        **{"train_images": images, "train_labels": labels, "test_images": images[:2] / 255, "test_labels": labels[:1]},
        **{"train_boxes": boxes, "train_biases": bias, "train_masks": masks},
    )
    np.savez(layouts.root / "svhn.npz", test_images=images / 255.0, test_labels=labels, class_names=["a", "b", "c"])
    source = load("npz:own.npz", "train", layouts.root)
    assert source.name == "own" and source.image_shape == (6, 7, 1) and source.class_names == ("0", "1", "2")
    assert {key: value.dtype.name for key, value in source.arrays().items()} == {
        **{"image": "uint8", "label": "int32", "box": "float32", "bias": "int32", "mask": "uint8"}
    }
    assert source[0]["bias"] == 1
    named = load("svhn", "test", layouts.root)
    assert named.class_names == ("a", "b", "c")
    np.testing.assert_array_equal(named.arrays()["image"][..., 0], images)


def test_an_absolute_path_needs_no_data_folder(tmp_path):
    images = np.zeros((2, 4, 4, 3), np.uint8)
    np.savez(tmp_path / "own.npz", train_images=images, train_labels=[0, 1])
    assert len(load(f"npz:{tmp_path / 'own.npz'}", "train")) == 2
    with pytest.raises(InputError, match=r"no data folder given for npz:own\.npz"):
        load("npz:own.npz", "train")
