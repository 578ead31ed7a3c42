"""The data sets on which models are evaluated that were not trained on them: what the catalogue says of each.

Of a set without official splits all images are the test split. Images are in torchvision's order, unless what is read
does not tell it; `lists`, `trees` and `tfds_sets` say where.
"""

from __future__ import annotations

from jrobust.data import archives, lists, matlab_sets, tfds_sets, trees
from jrobust.data.entries import FITTING, DataSet, binary, class_folders, fitted, npz_file, prepared

OXFORD = "https://www.robots.ox.ac.uk/~vgg/data"

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
    "sun397": DataSet(
        (
            fitted("SUN397/ with ClassName.txt", trees.open_tree, layout=trees.SUN397),
            class_folders("sun397"),
            prepared(tfds_sets.SUN397),
        ),
        {"test": 108_754},
        397,
        (0, 0, 3),
        ("http://vision.princeton.edu/projects/2010/SUN/SUN397.tar.gz",),
        "unpack it there, so that SUN397/ClassName.txt is there",
        "sun397/tfds",
        options=FITTING,
    ),
    "food101": DataSet(
        (
            fitted("food-101/meta/{train,test}.json", lists.open_lists, layout=lists.FOOD101),
            class_folders("food101"),
            prepared(tfds_sets.FOOD101),
        ),
        {"train": 75_750, "test": 25_250},
        101,
        (0, 0, 3),
        ("http://data.vision.ee.ethz.ch/cvl/food-101.tar.gz",),
        "unpack it there, so that food-101/meta/test.json is there",
        "food101:2.1.0",
        options=FITTING,
    ),
    "oxford_pets": DataSet(
        (
            fitted("oxford-iiit-pet/annotations/{trainval,test}.txt", lists.open_lists, layout=lists.OXFORD_PETS),
            class_folders("oxford_pets"),
            prepared(tfds_sets.OXFORD_PETS),
        ),
        {"train": 3680, "test": 3669},
        37,
        (0, 0, 3),
        (f"{OXFORD}/pets/data/images.tar.gz", f"{OXFORD}/pets/data/annotations.tar.gz"),
        "unpack both into oxford-iiit-pet/, so that oxford-iiit-pet/annotations/test.txt is there",
        "oxford_iiit_pet",
        options=FITTING,
    ),
    "flowers102": DataSet(
        (
            fitted("flowers-102/ with jpg/, imagelabels.mat and setid.mat", matlab_sets.flowers102),
            class_folders("flowers102"),
            prepared(tfds_sets.FLOWERS102),
        ),
        {"train": 1020, "validation": 1020, "test": 6149},
        102,
        (0, 0, 3),
        tuple(f"{OXFORD}/flowers/102/{file}" for file in ("102flowers.tgz", "imagelabels.mat", "setid.mat")),
        "unpack the first into flowers-102/ and lay the others there, beside jpg/",
        "oxford_flowers102",
        options=FITTING,
    ),
    "dtd": DataSet(
        (
            fitted("dtd/labels/{train,val,test}1.txt", lists.open_lists, layout=lists.DTD),
            class_folders("dtd"),
            prepared(tfds_sets.DTD),
        ),
        {"train": 1880, "validation": 1880, "test": 1880},
        47,
        (0, 0, 3),
        (f"{OXFORD}/dtd/download/dtd-r1.0.1.tar.gz",),
        "unpack it there, so that dtd/labels/test1.txt is there",
        "dtd",
        options=FITTING,
    ),
    "eurosat": DataSet(
        (
            fitted("eurosat/2750/<class>/", trees.open_tree, layout=trees.EUROSAT),
            class_folders("eurosat"),
            prepared(tfds_sets.EUROSAT),
        ),
        {"test": 27_000},
        10,
        (64, 64, 3),
        ("EuroSAT.zip, linked in https://github.com/phelber/eurosat (RGB)",),
        "unpack it into eurosat/, so that eurosat/2750/AnnualCrop/ is there",
        "eurosat/rgb",
        options=FITTING,
    ),
    "fgvc_aircraft": DataSet(
        (
            fitted(
                "fgvc-aircraft-2013b/data/images_variant_{train,val,test}.txt",
                lists.open_lists,
                layout=lists.FGVC_AIRCRAFT,
            ),
            class_folders("fgvc_aircraft"),
        ),
        {"train": 3334, "validation": 3333, "test": 3333},
        100,
        (0, 0, 3),
        (f"{OXFORD}/fgvc-aircraft/archives/fgvc-aircraft-2013b.tar.gz",),
        "unpack it there, so that fgvc-aircraft-2013b/data/variants.txt is there",
        options=FITTING,
    ),
    "imagenet": DataSet(
        (
            fitted("imagenet/{train,val}/<WordNet id>/", trees.open_tree, layout=trees.IMAGENET),
            class_folders("imagenet"),
            prepared(tfds_sets.IMAGENET),
        ),
        {"test": 50_000},
        1000,
        (0, 0, 3),
        ("ILSVRC2012_img_val.tar of https://image-net.org/download-images (after registration)",),
        "sort its images into a folder for each class, imagenet/val/<WordNet id>/; or prepare imagenet2012 with TFDS",
        options=FITTING,
    ),
    "caltech101": DataSet(
        (
            fitted("caltech101/101_ObjectCategories/<class>/", trees.open_tree, layout=trees.CALTECH101),
            class_folders("caltech101"),
            prepared(tfds_sets.CALTECH101),
        ),
        {"test": 8677},
        101,
        (0, 0, 3),
        ("https://data.caltech.edu/records/mzrjq-6wc02/files/caltech-101.zip",),
        "unpack it there and 101_ObjectCategories.tar.gz in it, so that caltech-101/101_ObjectCategories/ is there",
        "caltech101",
        options=FITTING,
    ),
    "caltech256": DataSet(
        (
            fitted("caltech256/256_ObjectCategories/<class>/", trees.open_tree, layout=trees.CALTECH256),
            class_folders("caltech256"),
        ),
        {"test": 30_607},
        257,
        (0, 0, 3),
        ("https://data.caltech.edu/records/nyy15-4j048/files/256_ObjectCategories.tar",),
        "unpack it into caltech256/, so that caltech256/256_ObjectCategories/ is there",
        options=FITTING,
    ),
    "stanford_cars": DataSet(
        (
            fitted("stanford_cars/ with devkit/ and cars_{train,test}/", matlab_sets.stanford_cars),
            class_folders("stanford_cars"),
            prepared(tfds_sets.STANFORD_CARS),
        ),
        {"train": 8144, "test": 8041},
        196,
        (0, 0, 3),
        ("cars_train.tgz, cars_test.tgz, car_devkit.tgz and cars_test_annos_withlabels.mat of Stanford Cars",),
        "unpack them into stanford_cars/, so that cars_train/, cars_test/, devkit/ and the .mat file are in it",
        "cars196",
        options=FITTING,
    ),
    "pcam": DataSet(
        # the authors' files are HDF5, which needs a library of its own: TFDS reads them once
        (class_folders("pcam"), npz_file("pcam"), prepared(tfds_sets.PCAM)),
        {"train": 262_144, "validation": 32_768, "test": 32_768},
        2,
        (96, 96, 3),
        ("the six .h5.gz files of https://github.com/basveeling/pcam",),
        "write x and y of each split into pcam.npz as <split>_images and <split>_labels",
        "patch_camelyon",
        options=FITTING,
    ),
}
