"""Each of the layouts in which the sets of zero-shot evaluation are distributed: images, labels and their order."""

from __future__ import annotations

import json
import tarfile

import numpy as np
import pytest
from PIL import Image

from jrobust.data import load
from jrobust.data.archives import STL10_NAMES
from jrobust.data.matlab_sets import FLOWERS102_NAMES
from jrobust.data.registry import DATA_SETS
from jrobust.errors import InputError

OFFICIAL = {  # images that are evaluated, and classes
    **{"stl10": (8000, 10), "sun397": (108_754, 397), "food101": (25_250, 101), "oxford_pets": (3669, 37)},
    **{"flowers102": (6149, 102), "dtd": (1880, 47), "eurosat": (27_000, 10), "fgvc_aircraft": (3333, 100)},
    **{"imagenet": (50_000, 1000), "caltech101": (8677, 101), "caltech256": (30_607, 257)},
    **{"stanford_cars": (8041, 196), "pcam": (32_768, 2), "tiny_imagenet": (10_000, 200)},
}


def fails(match: str):
    return pytest.raises(InputError, match=match)


def read(layouts, name, split="test", **options):
    """Return the file names (from the last folder on) and the labels of a split, and the source."""
    source = load(name, split, layouts.root, **options)
    return [path.relative_to(path.parents[1]).as_posix() for path in source.paths], source.labels.tolist(), source


def pets(layouts, masks=True):
    """Write three breeds of which one has a number that is not the next."""
    rows = {"trainval": ["Abyssinian_1 1 1 1", "Bengal_3 6 1 2"], "test": ["Bengal_201 6 1 2", "Abyssinian_20 1 1 1"]}
    for part, listed in rows.items():
        layouts.write_text(f"oxford-iiit-pet/annotations/{part}.txt", *listed)
        for row in listed:
            file = row.split()[0]
            layouts.write_image(f"oxford-iiit-pet/images/{file}.jpg", 20, 40)
            if masks:
                trimap = layouts.rng.integers(1, 4, (20, 40), dtype=np.uint8)
                (layouts.root / "oxford-iiit-pet/annotations/trimaps").mkdir(exist_ok=True)
                Image.fromarray(trimap).save(layouts.root / f"oxford-iiit-pet/annotations/trimaps/{file}.png")


def flowers(layouts, ids, labels):
    from scipy.io import savemat

    folder = layouts.root / "flowers-102"
    folder.mkdir(exist_ok=True)
    savemat(folder / "imagelabels.mat", {"labels": np.array([labels], np.uint8)})
    splits = {"trnid": [[1]], "valid": [[2]], "tstid": [ids]}
    savemat(folder / "setid.mat", {key: np.array(value, np.uint16) for key, value in splits.items()})


def cars(layouts, rows):
    """Write annotations x1, y1, x2, y2, class, file of the test split."""
    from scipy.io import savemat

    fields = [(name, object) for name in ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2", "class", "fname")]
    (layouts.root / "stanford_cars/devkit").mkdir(parents=True, exist_ok=True)
    names = np.array(["AM General Hummer SUV 2000", "Acura RL Sedan 2012"], object)
    savemat(layouts.root / "stanford_cars/devkit/cars_meta.mat", {"class_names": names})
    annotations = {"annotations": np.array([tuple(row) for row in rows], fields)[None]}
    savemat(layouts.root / "stanford_cars/cars_test_annos_withlabels.mat", annotations)


def test_what_is_official():
    for name, (images, classes) in OFFICIAL.items():
        assert (DATA_SETS[name].counts["test"], DATA_SETS[name].num_classes) == (images, classes)


@pytest.mark.parametrize("packed", [False, True])
def test_stl10_is_stored_by_columns(layouts, packed):
    images, labels = layouts.images(3, 96, 96, 3), np.array([10, 1, 4], np.uint8)
    folder = layouts.root / "stl10_binary"
    folder.mkdir()
    (folder / "test_X.bin").write_bytes(images.transpose(0, 3, 2, 1).tobytes())
    (folder / "test_y.bin").write_bytes(labels.tobytes())
    if packed:
        with tarfile.open(layouts.root / "stl10_binary.tar.gz", "w:gz", compresslevel=1) as archive:
            archive.add(folder, "stl10_binary")
        folder.rename(layouts.root / "elsewhere")
    source = load("stl10", "test", layouts.root)
    np.testing.assert_array_equal(source.arrays()["image"], images)
    assert source.labels.tolist() == [9, 0, 3] and source.class_names == STL10_NAMES
    if not packed:
        (folder / "test_y.bin").write_bytes(b"\x01\x02")
        with fails("test_X.bin has 82944 bytes and test_y.bin 2: expected 27648 bytes an image"):
            load("stl10", "test", layouts.root)
        (folder / "test_y.bin").write_bytes(b"\x01\x00\x02")
        with fails("label -1 of image 1"):
            load("stl10", "test", layouts.root)


def test_food101_is_in_the_order_of_its_json(layouts):
    listed = {"sushi": ["sushi/2", "sushi/10"], "apple_pie": ["apple_pie/7"]}
    (layouts.root / "food-101/meta").mkdir(parents=True)
    (layouts.root / "food-101/meta/test.json").write_text(json.dumps(listed))
    layouts.write_text("food-101/meta/train.txt", "apple_pie/1", "waffles/1")
    files, labels, source = read(layouts, "food101")
    assert files == ["sushi/2.jpg", "sushi/10.jpg", "apple_pie/7.jpg"] and labels == [1, 1, 0]
    assert source.class_names == ("apple_pie", "sushi", "waffles")  # of both splits, sorted
    assert read(layouts, "food101", "train")[1] == [0, 2]
    layouts.write_text("food-101/meta/test.json", "[1]")
    with fails("test.json cannot be read as JSON lists by class"):
        read(layouts, "food101")


def test_oxford_pets_with_the_breeds_that_are_there(layouts):
    pets(layouts)
    files, labels, source = read(layouts, "oxford_pets")
    assert files == ["images/Bengal_201.jpg", "images/Abyssinian_20.jpg"] and labels == [1, 0]
    assert source.class_names == ("Abyssinian", "Bengal")
    example = source[0]
    trimap = np.asarray(Image.open(layouts.root / "oxford-iiit-pet/annotations/trimaps/Bengal_201.png"))
    np.testing.assert_array_equal(example["mask"], trimap == 1)  # the border, 3, is outside
    assert example["mask"].shape == example["image"].shape[:2] == (20, 40)
    assert read(layouts, "oxford_pets", "train", image_size=16)[2].arrays()["mask"].shape == (2, 16, 16)
    middle = read(layouts, "oxford_pets", image_size=12, fit="crop", resize=20)[2][0]["mask"]
    np.testing.assert_array_equal(middle, (trimap == 1)[4:16, 14:26])


def test_oxford_pets_without_trimaps_and_with_broken_lists(layouts):
    pets(layouts, masks=False)
    assert set(read(layouts, "oxford_pets")[2][0]) == {"image", "label"}
    lists = "oxford-iiit-pet/annotations"
    for rows, match in (
        (["Bengal_1 two 1 1"], r"test.txt line 1 is 'Bengal_1 two 1 1': expected <breed>_<number> <class"),
        (["Bengal_1 0 1 1"], "line 1 is"),
        (["Bengal_1 6 1 1", "Bengal_2 7 1 1"], "give the class 'Bengal' two numbers"),
        (["Birman_1 6 1 1"], "call class 6 both 'Bengal' and 'Birman'"),
        ([], "holds no images of the test split"),
    ):
        layouts.write_text(f"{lists}/test.txt", *rows)
        with fails(match):
            read(layouts, "oxford_pets")
    layouts.write_text(f"{lists}/test.txt", "Bengal_99 6 1 1")
    with fails("Bengal_99.jpg is missing"):
        read(layouts, "oxford_pets", image_size=8)[2].arrays()
    with fails("oxford_pets has no split 'validation': expected train or test"):
        read(layouts, "oxford_pets", "validation")
    (layouts.root / lists / "test.txt").unlink()
    with fails("test.txt cannot be read"):
        read(layouts, "oxford_pets")


def test_a_trimap_of_another_size_is_named(layouts):
    pets(layouts)
    Image.fromarray(np.ones((40, 20), np.uint8)).save(
        layouts.root / "oxford-iiit-pet/annotations/trimaps/Bengal_201.png"
    )
    with fails(r"Bengal_201.png has 20x40 pixels, Bengal_201.jpg 40x20: expected the same"):
        read(layouts, "oxford_pets", image_size=8)[2][0]


@pytest.mark.parametrize("folder", ["dtd", "dtd/dtd"])
def test_dtd_is_its_first_partition(layouts, folder):
    layouts.write_text(f"{folder}/labels/test1.txt", "dotted/dotted_0001.jpg", "banded/banded_0002.jpg")
    layouts.write_text(f"{folder}/labels/val1.txt", "crystalline/crystalline_0003.jpg")
    layouts.write_text(f"{folder}/labels/test2.txt", "woven/woven_0004.jpg")
    layouts.write_image(f"{folder}/images/dotted/dotted_0001.jpg")
    image = layouts.write_image(f"{folder}/images/banded/banded_0002.jpg")
    files, labels, source = read(layouts, "dtd")
    assert files == ["dotted/dotted_0001.jpg", "banded/banded_0002.jpg"] and labels == [2, 0]
    np.testing.assert_array_equal(source[1]["image"], image)
    assert read(layouts, "dtd", "validation")[1] == [1]


def test_fgvc_aircraft_is_labelled_by_variant(layouts):
    layouts.write_text("fgvc-aircraft-2013b/data/variants.txt", "A330-200", "707-320", "F-16A/B")
    layouts.write_text("fgvc-aircraft-2013b/data/images_variant_test.txt", "0034309 707-320", "0034958 F-16A/B")
    files, labels, source = read(layouts, "fgvc_aircraft")
    assert files == ["images/0034309.jpg", "images/0034958.jpg"] and labels == [1, 2]
    assert source.class_names == ("A330-200", "707-320", "F-16A/B")  # as listed, not sorted
    layouts.write_text("fgvc-aircraft-2013b/data/images_variant_test.txt", "1 Cessna 172")
    with fails("variants.txt lacks the class 'Cessna 172' of image 1"):
        read(layouts, "fgvc_aircraft")


def test_flowers102_is_in_the_order_of_its_lists(layouts):
    flowers(layouts, [4, 2, 3], [77, 102, 1, 5])
    files, labels, source = read(layouts, "flowers102")
    assert files == ["jpg/image_00004.jpg", "jpg/image_00002.jpg", "jpg/image_00003.jpg"] and labels == [4, 101, 0]
    assert source.class_names == FLOWERS102_NAMES and len(set(FLOWERS102_NAMES)) == 102
    assert FLOWERS102_NAMES[76] == "passion flower"  # images 1 to 251 of the authors, of their class 77
    flowers(layouts, [5], [77, 102, 1, 5])
    with fails(r"setid.mat has image 5: expected 1 to 4"):
        read(layouts, "flowers102")
    flowers(layouts, [1], [103])
    with fails(r"label 102 of image 0 .* expected 0 to 101 \(102 classes\)"):
        read(layouts, "flowers102")
    (layouts.root / "flowers-102/imagelabels.mat").write_bytes(b"cut off")
    with fails("imagelabels.mat cannot be read as a MATLAB file with labels"):
        read(layouts, "flowers102")


@pytest.mark.parametrize("count", [1, 2])
def test_stanford_cars(layouts, count):
    cars(layouts, [(5, 6, 25, 16, 2, "00001.jpg"), (1, 2, 3, 4, 1, "00002.jpg")][:count])
    image = layouts.write_image("stanford_cars/cars_test/00001.jpg", 20, 40)
    files, labels, source = read(layouts, "stanford_cars")
    assert files == ["cars_test/00001.jpg", "cars_test/00002.jpg"][:count] and labels == [1, 0][:count]
    assert source.class_names == ("AM General Hummer SUV 2000", "Acura RL Sedan 2012")
    np.testing.assert_array_equal(source[0]["image"], image)
    assert source[0]["box"].tolist() == [5, 6, 25, 16]
    with fails("cars_train_annos.mat cannot be read as a MATLAB file with annotations .*it is missing"):
        read(layouts, "stanford_cars", "train")
    cars(layouts, [(5, 6, 25, 16, 3, "00001.jpg")])
    with fails("label 2 of image 0"):
        read(layouts, "stanford_cars")


def tree(layouts, root, *files):
    for file in files:
        layouts.write_image(f"{root}/{file}")


@pytest.mark.parametrize(
    "name, root, files, classes",
    [
        ("eurosat", "eurosat/2750", ["AnnualCrop/AnnualCrop_1.jpg", "AnnualCrop/AnnualCrop_10.jpg"], ["AnnualCrop"]),
        (
            "caltech101",
            "caltech101/101_ObjectCategories",
            ["Faces/image_0001.jpg", "Faces_easy/image_0001.jpg", "accordion/image_0001.jpg", "ant/image_0002.jpg"],
            ["Faces", "Faces_easy", "accordion", "ant"],
        ),
        (
            "caltech256",
            "256_ObjectCategories",
            ["001.ak47/001_0001.jpg", "056.dog/056_0001.jpg", "257.clutter/257_0001.jpg"],
            ["001.ak47", "056.dog", "257.clutter"],
        ),
        ("imagenet", "imagenet/val", ["n01440764/b.JPEG", "n02119789/a.JPEG"], ["n01440764", "n02119789"]),
    ],
)
def test_class_folders_are_in_the_order_of_ascii(layouts, name, root, files, classes):
    tree(layouts, root, *reversed(files))
    if name == "caltech101":
        tree(layouts, root, "BACKGROUND_Google/image_0001.jpg")
    if name == "caltech256":
        tree(layouts, root, "056.dog/greg/vision309/056_0001.jpg")  # is in the authors' archive, and in no class
        layouts.write_text(f"{root}/001.ak47/RENAME2", "")
    found, labels, source = read(layouts, name)
    assert found == files and source.class_names == tuple(classes)
    assert labels == [classes.index(file.split("/")[0]) for file in files]
    if name != "imagenet":
        with fails(f"{name} has no split 'train': expected test"):
            read(layouts, name, "train")


def test_imagenet_numbers_classes_as_in_training(layouts):
    tree(layouts, "imagenet", "train/n01/a.JPEG", "train/n02/a.JPEG", "val/n02/b.JPEG")
    assert read(layouts, "imagenet")[1] == [1] and read(layouts, "imagenet", "train")[1] == [0, 1]
    tree(layouts, "imagenet", "val/n03/b.JPEG")
    with fails("val has class folder 'n03', which .*train lacks"):
        read(layouts, "imagenet")


def test_sun397_takes_nested_classes_from_its_list(layouts):
    layouts.write_text("SUN397/ClassName.txt", "/a/abbey", "/a/access_road", "/c/chemistry/indoor", "/c/chemistry")
    tree(layouts, "SUN397", "c/chemistry/indoor/sun_b.jpg", "a/abbey/sun_b.jpg", "a/abbey/sun_a.jpg")
    found, labels, source = read(layouts, "sun397")
    assert found == ["abbey/sun_a.jpg", "abbey/sun_b.jpg", "indoor/sun_b.jpg"] and labels == [0, 0, 2]
    assert source.class_names[0] == "/a/abbey" and len(source.class_names) == 4
    (layouts.root / "SUN397/ClassName.txt").unlink()
    with fails("ClassName.txt cannot be read"):
        read(layouts, "sun397")


@pytest.mark.parametrize("name", sorted(set(OFFICIAL) - {"stl10", "tiny_imagenet"}))
def test_all_are_read_from_plain_folders_too(layouts, name):
    layouts.folder(name, {"a": 1, "b": 2})
    _, labels, source = read(layouts, name, image_size=4, fit="crop", resize=6, filter="bicubic")
    assert labels == [0, 1, 1] and source.class_names == ("a", "b") and source[2]["image"].shape == (4, 4, 3)


@pytest.mark.parametrize("name", sorted(set(OFFICIAL) - {"tiny_imagenet"}))
def test_what_is_not_there_is_said_with_the_command_that_gets_it(tmp_path, name):
    with fails(f"^{name} was not found in .*: looked for .*python launch/prepare_data.py {name} --dir="):
        load(name, "test", tmp_path)
