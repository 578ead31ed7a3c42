"""Everything that can be wrong with data is one line that names it."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from PIL import Image

from jrobust.data import Augmentation, from_arrays, load
from jrobust.errors import InputError


def fails(match: str):
    return pytest.raises(InputError, match=match)


def test_names_and_folders(tmp_path):
    with fails("unknown data set 'cifar1'.*did you mean 'cifar10'"):
        load("cifar1", "train", tmp_path)
    with fails("unknown data set ''"):
        load("", "train", tmp_path)
    with fails("unknown data set 'npz:'"):
        load("npz:", "train", tmp_path)
    with fails("unknown split 'tests'.*did you mean 'test'"):
        load("cifar10", "tests", tmp_path)
    with fails("unknown split of digits 'validation'"):
        load("digits", "validation")
    with fails("no data folder given for cifar10: set --config.data.dir"):
        load("cifar10", "train")
    with fails(re.escape(f"'{tmp_path}/nowhere' does not exist") + ".*prepare_data.py cifar10"):
        load("cifar10", "train", tmp_path / "nowhere")
    with fails("image size -1 is negative"):
        load("digits", "train", image_size=-1)


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "svhn", "gtsrb", "flower17", "cub200", "tiny_imagenet"])
def test_what_is_not_there_is_said_with_the_command_that_gets_it(tmp_path, name):
    with fails(f"^{name} was not found in .*: looked for .*python launch/prepare_data.py {name} --dir=") as error:
        load(name, "train", tmp_path)
    assert "\n" not in str(error.value)


def test_cifar10_files(layouts):
    layouts.cifar10()
    file = layouts.root / "cifar-10-batches-bin" / "data_batch_3.bin"
    whole = file.read_bytes()
    file.write_bytes(whole[:-1])
    with fails("data_batch_3.bin has 21510 bytes, no multiple of the 3073"):
        load("cifar10", "train", layouts.root)
    file.write_bytes(whole[:3073])
    with fails("different numbers of images .*data_batch_3.bin 1,"):
        load("cifar10", "train", layouts.root)
    file.write_bytes(bytes([200]) + whole[1:])
    with fails(r"label 200 of image 14 .* out of range: expected 0 to 9 \(10 classes\)"):
        load("cifar10", "train", layouts.root)
    file.unlink()
    with fails("lacks data_batch_3.bin"):
        load("cifar10", "train", layouts.root)
    with fails("cifar10 has no split 'validation'"):
        load("cifar10", "validation", layouts.root)
    layouts.write_text("cifar-10-batches-bin/batches.meta.txt", "airplane")
    with fails("has 1 classes: expected 10"):
        load("cifar10", "test", layouts.root)


def test_cut_off_archives(layouts):
    (layouts.root / "cifar-10-binary.tar.gz").write_bytes(b"\x1f\x8b\x08 cut off")
    with fails("cifar-10-binary.tar.gz cannot be read as .tar.gz"):
        load("cifar10", "train", layouts.root)
    (layouts.root / "train_32x32.mat").write_bytes(b"MATLAB 5.0 MAT-file, cut off")
    with fails("train_32x32.mat cannot be read as a MATLAB file"):
        load("svhn", "train", layouts.root)


def test_svhn_labels_and_shape(layouts):
    from scipy.io import savemat

    file = layouts.root / "test_32x32.mat"
    savemat(file, {"X": np.zeros((32, 32, 3, 2), np.uint8), "y": np.array([[0], [10]], np.uint8)})
    with fails("labels 0 to 10: expected 1 to 10"):
        load("svhn", "test", layouts.root)
    savemat(file, {"X": np.zeros((32, 32, 3, 3), np.uint8), "y": np.array([[1], [10]], np.uint8)})
    with fails("expected X"):
        load("svhn", "test", layouts.root)


def test_tfds_in_another_format_and_damaged(layouts):
    layouts.tfds("cifar10", {"train": (layouts.images(9, 32, 32, 3), np.arange(9))})
    with fails("TFDS cannot read split 'test'"):
        load("cifar10", "test", layouts.root)
    (records,) = layouts.root.glob("cifar10/*/*.array_record*")
    whole = records.read_bytes()
    records.write_bytes(whole[: len(whole) // 2])
    with fails("TFDS cannot read split 'train'.*prepare it again"):
        load("cifar10", "train", layouts.root)
    (info,) = layouts.root.rglob("dataset_info.json")
    info.write_text(json.dumps(json.loads(info.read_text()) | {"fileFormat": "tfrecord"}))
    with fails("prepared as tfrecord.*expected array_record"):
        load("cifar10", "train", layouts.root)
    with fails("holds nothing prepared by TFDS"):
        load("tfds:mnist", "train", layouts.root)


def test_npz_files(layouts):
    path, images = layouts.root / "own.npz", np.zeros((3, 4, 4, 3), np.uint8)
    with fails("own.npz does not exist"):
        load("npz:own.npz", "train", layouts.root)

    def expect(match: str, **arrays):
        np.savez(path, **arrays)
        with fails(match):
            load("npz:own.npz", "train", layouts.root)

    expect("has no array 'train_labels': found train_images", train_images=images)
    expect("labels of .* have shape", train_images=images, train_labels=[0, 1])
    expect("label 2 of image 1", train_images=images, train_labels=[0, 2, 1], class_names=["a", "b"])
    expect("pickled objects", train_images=images, train_labels=np.array([0, None, 1], object))
    expect("expected integers", train_images=images, train_labels=[0.0, 1.0, 1.0])
    expect("label -1 of image 1", train_images=images, train_labels=[0, -1, 1])
    np.savez_compressed(path, train_images=layouts.images(9, 32, 32, 3), train_labels=np.zeros(9, int))
    whole = path.read_bytes()
    for length in (0, 10, len(whole) // 2, len(whole) - 5):
        path.write_bytes(whole[:length])
        with fails("cannot be read as an .npz"):
            load("npz:own.npz", "train", layouts.root)
    path.write_bytes(whole[:1000] + bytes(1000) + whole[2000:])
    with fails("cannot be read as an .npz"):
        load("npz:own.npz", "train", layouts.root)


def test_image_folders(layouts):
    layouts.folder("own", {"a": 2, "b": 2})
    layouts.folder("own", {"z": 1}, splits=("test",))
    with fails("class folder 'z', which .*train lacks"):
        load("own", "test", layouts.root)
    with fails("no such folder"):
        load("image_folder:other", "train", layouts.root)
    (layouts.root / "empty" / "train" / "a").mkdir(parents=True)
    with fails("holds no images of the train split"):
        load("empty", "train", layouts.root)
    (layouts.root / "bare" / "train").mkdir(parents=True)
    with fails("no class folders"):
        load("bare", "train", layouts.root)
    layouts.write_image("own/train/b/other_size.png", 9, 8)
    with fails("other_size.png has shape .*set data.image_size"):
        load("own", "train", layouts.root).arrays()
    assert load("own", "train", layouts.root, image_size=8).arrays()["image"].shape == (5, 8, 8, 3)
    broken = layouts.root / "own/train/a/001.png"
    broken.write_bytes(broken.read_bytes()[:60])
    with fails("001.png cannot be decoded"):
        load("own", "train", layouts.root, image_size=8).arrays()
    Image.fromarray(np.zeros((8, 8), np.uint16)).save(broken)
    with fails("001.png has pixel mode I.*8 bits"):
        load("own", "train", layouts.root, image_size=8).arrays()


def test_cub200_and_tiny_imagenet_lists(layouts):
    layouts.cub200()
    layouts.write_text("CUB_200_2011/image_class_labels.txt", "1 1", "2 3", "3 1", "4 2", "5 2")
    with fails(r"label 2 of image 0 in .*CUB_200_2011 is out of range: expected 0 to 1"):
        load("cub200", "train", layouts.root)
    layouts.write_text("CUB_200_2011/image_class_labels.txt", "1 1", "2 1", "3 1")
    with fails("image_class_labels.txt lists 3 images, images.txt 5"):
        load("cub200", "train", layouts.root)
    layouts.cub200()
    layouts.write_text("CUB_200_2011/bounding_boxes.txt", *(f"{i} 1 2 x 4" for i in range(1, 6)))
    with fails("bounding_boxes.txt holds a field that is no number"):
        load("cub200", "train", layouts.root)
    layouts.write_text("CUB_200_2011/bounding_boxes.txt", "1 2 3")
    with fails("bounding_boxes.txt line 1 has 3 fields: expected 5"):
        load("cub200", "train", layouts.root)
    (layouts.root / "CUB_200_2011/bounding_boxes.txt").unlink()
    with fails("bounding_boxes.txt cannot be read"):
        load("cub200", "train", layouts.root)
    layouts.cub200()
    (layouts.root / "CUB_200_2011/images/002.Auklet/d.jpg").unlink()
    with fails("d.jpg is missing"):
        load("cub200", "train", layouts.root).arrays()
    layouts.tiny_imagenet()
    layouts.write_text("tiny-imagenet-200/val/val_annotations.txt", "val_0.JPEG\tn09\t0\t1\t2\t3")
    with fails("has class 'n09'"):
        load("tiny_imagenet", "test", layouts.root)


def test_gtsrb_without_its_labels(layouts):
    layouts.write_image("GTSRB/Final_Training/Images/00000/0.ppm")
    with fails("put GT-final_test.csv into"):
        load("gtsrb", "test", layouts.root)
    layouts.write_text("GT-final_test.csv", "Filename,ClassId", "00000.ppm,1")
    with fails("GT-final_test.csv cannot be read"):
        load("gtsrb", "test", layouts.root)


def test_arrays():
    images, labels = np.zeros((2, 4, 4, 3), np.uint8), [0, 1]
    for bad, match in (
        (images.astype(np.int64), "type int64: expected uint8"),
        (images + 1.5, r"lie in \[1.5, 1.5\]: expected floats in \[0, 1\]"),
        (images - 0.5, "lie in"),
        (images * np.nan, "lie in"),
        (images[..., :2], "expected .* C = 1 or 3"),
        (images[:0], "have shape"),
    ):
        with fails(match):
            from_arrays(bad, labels)
    with fails("boxes of arrays|boxes of memory"):
        from_arrays(images, labels, boxes=np.zeros((2, 3)))
    with fails("boxes of memory hold NaN"):
        from_arrays(images, labels, boxes=np.full((2, 4), np.nan))
    with fails("masks of memory have type float64"):
        from_arrays(images, labels, masks=np.zeros((2, 4, 4)))
    with fails("bias -1"):
        from_arrays(images, labels, biases=[0, -1])


def test_augmentation_settings():
    with fails("unknown augmentation 'flips'.*did you mean 'flip'"):
        Augmentation.of({"flips": True})
    with fails("data.augment.jitter is -1"):
        Augmentation(jitter=-1)
    with fails("data.augment.crop_size is 1.5: expected whole pixels"):
        Augmentation(crop_size=1.5)
