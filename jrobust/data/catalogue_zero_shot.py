"""The data sets on which models are evaluated that were not trained on them: what the catalogue says of each.

Of a set without official splits all images are the test split. Images are in torchvision's order, unless what is read
does not tell it; `lists`, `trees` and `tfds_sets` say where. Each is also read from <name>/{train,test}/<class>/, but
for the variants of ImageNet. These have its 1000 classes by WordNet id, be there images of them or not, so that labels
are ImageNet's; ObjectNet's classes are its folders.
"""

from __future__ import annotations

from collections.abc import Mapping

from jrobust.data import archives, lists, matlab_sets, tfds_sets, trees
from jrobust.data.entries import FITTING, DataSet, Layout, binary, class_folders, fitted, npz_file, prepared
from jrobust.data.tfds_records import Prepared

OXFORD = "https://www.robots.ox.ac.uk/~vgg/data"


def _pictures(
    name: str,
    counts: Mapping[str, int],
    num_classes: int,
    files: Layout,
    by: Prepared | None,
    fetch: tuple[str, ...],
    unpack: str,
    *,
    side: int = 0,
    tfds: str | None = None,
) -> DataSet:
    """Return the entry of a set of image files: `files` is the authors' layout, `by` how TFDS has it, if it has.

    `tfds` is the name under which TFDS prepares it where that is not its name; "" where TFDS needs help.
    """
    layouts = (files, class_folders(name), *([prepared(by)] if by else []))
    tfds = (by.name if by else "") if tfds is None else tfds
    return DataSet(layouts, counts, num_classes, (side, side, 3), fetch, unpack, tfds, options=FITTING)


def _shift(count: int, where: str, layout: trees.Tree, by: Prepared | None, fetch: str, unpack: str) -> DataSet:
    """Return the entry of a set on which models trained on ImageNet are tested."""
    layouts = (_tree(where, layout), *([prepared(by)] if by else []))
    sizes = dict.fromkeys(layout.splits, count)
    tfds = by.name if by else ""
    return DataSet(layouts, sizes, len(layout.called), (0, 0, 3), (fetch,), unpack, tfds, options=FITTING)


def _lists(where: str, layout: lists.Lists) -> Layout:
    return fitted(where, lists.open_lists, layout=layout)


def _tree(where: str, layout: trees.Tree) -> Layout:
    return fitted(where, trees.open_tree, layout=layout)


DATA_SETS: dict[str, DataSet] = {
    "stl10": DataSet(
        (binary(archives.STL10, archives.stl10), prepared(tfds_sets.STL10)),
        {"train": 5000, "test": 8000},
        10,
        (96, 96, 3),
        ("http://ai.stanford.edu/~acoates/stl10/stl10_binary.tar.gz",),
        "put it there as it is, or unpack it",
        "stl10",
    ),
    "sun397": _pictures(
        "sun397",
        {"test": 108_754},
        397,
        _tree("SUN397/ with ClassName.txt", trees.SUN397),
        tfds_sets.SUN397,
        ("http://vision.princeton.edu/projects/2010/SUN/SUN397.tar.gz",),
        "unpack it there, so that SUN397/ClassName.txt is there",
    ),
    "food101": _pictures(
        "food101",
        {"train": 75_750, "test": 25_250},
        101,
        _lists("food-101/meta/{train,test}.json", lists.FOOD101),
        tfds_sets.FOOD101,
        ("http://data.vision.ee.ethz.ch/cvl/food-101.tar.gz",),
        "unpack it there, so that food-101/meta/test.json is there",
        tfds="food101:2.1.0",  # the first version whose records tell where they come from
    ),
    "oxford_pets": _pictures(
        "oxford_pets",
        {"train": 3680, "test": 3669},
        37,
        _lists("oxford-iiit-pet/annotations/{trainval,test}.txt", lists.OXFORD_PETS),
        tfds_sets.OXFORD_PETS,
        (f"{OXFORD}/pets/data/images.tar.gz", f"{OXFORD}/pets/data/annotations.tar.gz"),
        "unpack both into oxford-iiit-pet/, so that oxford-iiit-pet/annotations/test.txt is there",
    ),
    "flowers102": _pictures(
        "flowers102",
        {"train": 1020, "validation": 1020, "test": 6149},
        102,
        fitted("flowers-102/ with jpg/, imagelabels.mat and setid.mat", matlab_sets.flowers102),
        tfds_sets.FLOWERS102,
        tuple(f"{OXFORD}/flowers/102/{file}" for file in ("102flowers.tgz", "imagelabels.mat", "setid.mat")),
        "unpack the first into flowers-102/ and lay the others there, beside jpg/",
    ),
    "dtd": _pictures(
        "dtd",
        {"train": 1880, "validation": 1880, "test": 1880},
        47,
        _lists("dtd/labels/{train,val,test}1.txt", lists.DTD),
        tfds_sets.DTD,
        (f"{OXFORD}/dtd/download/dtd-r1.0.1.tar.gz",),
        "unpack it there, so that dtd/labels/test1.txt is there",
    ),
    "eurosat": _pictures(
        "eurosat",
        {"test": 27_000},
        10,
        _tree("eurosat/2750/<class>/", trees.EUROSAT),
        tfds_sets.EUROSAT,
        ("EuroSAT.zip, linked in https://github.com/phelber/eurosat (RGB)",),
        "unpack it into eurosat/, so that eurosat/2750/AnnualCrop/ is there",
        side=64,
    ),
    "fgvc_aircraft": _pictures(
        "fgvc_aircraft",
        {"train": 3334, "validation": 3333, "test": 3333},
        100,
        _lists("fgvc-aircraft-2013b/data/images_variant_{train,val,test}.txt", lists.FGVC_AIRCRAFT),
        None,
        (f"{OXFORD}/fgvc-aircraft/archives/fgvc-aircraft-2013b.tar.gz",),
        "unpack it there, so that fgvc-aircraft-2013b/data/variants.txt is there",
    ),
    "imagenet": _pictures(
        "imagenet",
        {"test": 50_000},
        1000,
        _tree("imagenet/{train,val}/<WordNet id>/", trees.IMAGENET),
        tfds_sets.IMAGENET,
        ("ILSVRC2012_img_val.tar of https://image-net.org/download-images (after registration)",),
        "sort its images into a folder for each class, imagenet/val/<WordNet id>/, or prepare imagenet2012 with TFDS",
        tfds="",
    ),
    "caltech101": _pictures(
        "caltech101",
        {"test": 8677},
        101,
        _tree("caltech101/101_ObjectCategories/<class>/", trees.CALTECH101),
        tfds_sets.CALTECH101,
        ("https://data.caltech.edu/records/mzrjq-6wc02/files/caltech-101.zip",),
        "unpack it there and 101_ObjectCategories.tar.gz in it, so that caltech-101/101_ObjectCategories/ is there",
    ),
    "caltech256": _pictures(
        "caltech256",
        {"test": 30_607},
        257,
        _tree("caltech256/256_ObjectCategories/<class>/", trees.CALTECH256),
        None,
        ("https://data.caltech.edu/records/nyy15-4j048/files/256_ObjectCategories.tar",),
        "unpack it into caltech256/, so that caltech256/256_ObjectCategories/ is there",
    ),
    "stanford_cars": _pictures(
        "stanford_cars",
        {"train": 8144, "test": 8041},
        196,
        fitted("stanford_cars/ with devkit/ and cars_{train,test}/", matlab_sets.stanford_cars),
        tfds_sets.STANFORD_CARS,
        ("cars_train.tgz, cars_test.tgz, car_devkit.tgz and cars_test_annos_withlabels.mat of Stanford Cars",),
        "unpack them into stanford_cars/, so that cars_train/, cars_test/, devkit/ and the .mat file are in it",
    ),
    "pcam": _pictures(
        "pcam",
        {"train": 262_144, "validation": 32_768, "test": 32_768},
        2,
        npz_file("pcam"),  # the authors' files are HDF5, which needs a library of its own
        tfds_sets.PCAM,
        ("the six .h5.gz files of https://github.com/basveeling/pcam",),
        "write x and y of each split into pcam.npz as <split>_images and <split>_labels",
        side=96,
    ),
    "imagenet_samples": _shift(
        1000,
        "imagenet-samples/<WordNet id>/",
        trees.IMAGENET_SAMPLES,
        None,
        "https://github.com/EliSchwartz/imagenet-sample-images (git clone)",
        "sort its images, one a class, into imagenet-samples/<WordNet id>/; both splits are all of them: to try things",
    ),
    "imagenet_v2": _shift(
        10_000,
        "imagenetv2-matched-frequency-format-val/<number>/",
        trees.IMAGENET_V2,
        tfds_sets.IMAGENET_V2,
        "imagenetv2-matched-frequency.tar.gz of https://huggingface.co/datasets/vaishaal/ImageNetV2",
        "unpack it there, so that imagenetv2-matched-frequency-format-val/0/ is there",
    ),
    "imagenet_r": _shift(
        30_000,
        "imagenet-r/<WordNet id>/",
        trees.IMAGENET_R,
        tfds_sets.IMAGENET_R,
        "https://people.eecs.berkeley.edu/~hendrycks/imagenet-r.tar",
        "unpack it there, so that imagenet-r/n01443537/ is there",
    ),
    "imagenet_sketch": _shift(
        50_889,
        "sketch/<WordNet id>/",
        trees.IMAGENET_SKETCH,
        tfds_sets.IMAGENET_SKETCH,
        "ImageNet-Sketch.zip, linked in https://github.com/HaohanWang/ImageNet-Sketch",
        "unpack it there, so that sketch/n01440764/ is there",
    ),
    "objectnet": _shift(
        18_574,
        "objectnet-1.0/images/<object>/",
        trees.OBJECTNET,
        None,
        "objectnet-1.0.zip of https://objectnet.dev",
        "unpack it there, so that objectnet-1.0/images/alarm_clock/ is there",
    ),
    "imagenet_a": _shift(
        7500,
        "imagenet-a/<WordNet id>/",
        trees.IMAGENET_A,
        tfds_sets.IMAGENET_A,
        "https://people.eecs.berkeley.edu/~hendrycks/imagenet-a.tar",
        "unpack it there, so that imagenet-a/n01498041/ is there",
    ),
}
