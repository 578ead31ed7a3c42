"""How data sets that TFDS prepares are read like the files of their authors, and in their order where that is known."""

from __future__ import annotations

import re

from jrobust.data.archives import CIFAR10_NAMES
from jrobust.data.matlab_sets import FLOWERS102_NAMES
from jrobust.data.tfds_records import Prepared


def as_counted(text: str) -> tuple[int, str]:
    """Return a key that sorts by the number at the end: test_9 before test_10."""
    digits = re.search(r"\d*$", text)
    return int(digits[0]) if digits and digits[0] else -1, text


def as_listed(text: str) -> str:
    """Return a key that sorts as lists made by a shell: by letters and digits only, in lower case.

    >>> sorted(["Bengal_2.jpg", "Bengal_200.jpg", "Bengal_20.jpg"], key=as_listed)
    ['Bengal_200.jpg', 'Bengal_20.jpg', 'Bengal_2.jpg']
    """
    return re.sub(r"[^0-9a-z]", "", text.lower())


CIFAR10 = Prepared("cifar10", class_names=CIFAR10_NAMES)
CIFAR100 = Prepared("cifar100")
SVHN = Prepared("svhn_cropped")
STL10 = Prepared("stl10")  # records tell nothing: the order is that of TFDS
# Images of at most 120,000 pixels; TFDS drew the three splits, and one image of 108,754 is in none.
SUN397 = Prepared("sun397/tfds", {"test": "train+validation+test"}, by_class=True, sorted_by="file_name")
# Sorted by class; the authors' lists take classes in another order. Before version 2.1.0 records tell nothing.
FOOD101 = Prepared("food101", {"train": "train", "test": "validation"}, by_class=True)
OXFORD_PETS = Prepared(
    "oxford_iiit_pet",
    {"train": "train", "test": "test"},
    by_class=True,
    sorted_by="file_name",
    key=as_listed,
    mask="segmentation_mask",
)
# In the authors' list classes 21 and 51 stand otherwise; the sample of every 20th batch of 256 is the same.
FLOWERS102 = Prepared("oxford_flowers102", by_class=True, sorted_by="file_name", class_names=FLOWERS102_NAMES)
DTD = Prepared("dtd", sorted_by="file_name")
EUROSAT = Prepared("eurosat/rgb", {"test": "train"}, by_class=True, sorted_by="filename")
IMAGENET = Prepared("imagenet2012", {"train": "train", "test": "validation"}, by_class=True, sorted_by="file_name")
IMAGENET_V2, IMAGENET_R, IMAGENET_A, IMAGENET_SKETCH = (
    Prepared(name, {"test": "test"}, by_class=True, sorted_by="file_name")  # classes are ImageNet's 1000
    for name in ("imagenet_v2/matched-frequency", "imagenet_r", "imagenet_a", "imagenet_sketch")
)
CALTECH101 = Prepared(
    "caltech101",
    {"test": "train+test"},
    by_class=True,
    sorted_by="image/file_name",
    # as the folders are called: by their names, capitals first, classes are numbered
    renamed={name.lower(): name for name in ("Faces", "Faces_easy", "Leopards", "Motorbikes")}
    | {"background_google": ""},
)
STANFORD_CARS = Prepared("cars196", {"train": "train", "test": "test"})
PCAM = Prepared("patch_camelyon", key=as_counted)
