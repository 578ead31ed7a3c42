"""Data sets with a folder a class that have no split, or one of their own: EuroSAT, SUN397, the Caltechs, ImageNets."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import NamedTuple

from jrobust.data.folders import FileSource, list_images, subfolders
from jrobust.data.imagenet_names import wnids
from jrobust.data.imagenet_subsets import OBJECTNET as OBJECTNET_CLASSES
from jrobust.data.images import SQUEEZE, Fit
from jrobust.data.source import Source
from jrobust.data.text_files import lines
from jrobust.errors import InputError


class Tree(NamedTuple):
    """A layout: class folders, in sorted order, of images in sorted order; what lies deeper is left out.

    Of a set without splits all is for the test. With `classes`, a file that lists the class folders, those in its
    order; the classes are then called as it calls them. With `called`, the folder of each class by the class's name,
    all of these classes in that order, be their folders there or not.
    """

    folders: tuple[str, ...]  # below the data folder; the first that has the folder of the test split is read
    splits: Mapping[str, str] = {"test": ""}  # the folder of each
    dropped: tuple[str, ...] = ()  # folders that are no class
    classes: str = ""
    called: Mapping[str, str] = {}
    others: bool = False  # of `called`: whether further folders are left out, instead of refused
    border: int = 0  # of every picture, in pixels


EUROSAT = Tree(("eurosat/2750", "EuroSAT/2750", "2750", "eurosat/EuroSAT_RGB", "EuroSAT_RGB"))
# Torchvision takes the files in the order in which the file system lists them; that order cannot be had again.
SUN397 = Tree(("SUN397", "sun397/SUN397"), classes="ClassName.txt")
CALTECH101 = Tree(
    tuple(f"{folder}101_ObjectCategories" for folder in ("caltech101/", "caltech-101/", "")),
    dropped=("BACKGROUND_Google",),
)
CALTECH256 = Tree(tuple(f"{folder}256_ObjectCategories" for folder in ("caltech256/", "")))
IMAGENET = Tree(("imagenet", "ILSVRC2012"), {"train": "train", "test": "val"})
_BY_WNID = {wnid: wnid for wnid in wnids()}
IMAGENET_SAMPLES = Tree(("imagenet-samples",), {"train": "", "test": ""}, called=_BY_WNID)
# Folders are called by the number of the class: in the order of names 10 would come before 2.
IMAGENET_V2 = Tree(
    tuple(f"{folder}imagenetv2-matched-frequency-format-val" for folder in ("", "imagenet_v2/")),
    called={wnid: str(number) for number, wnid in enumerate(wnids())},
)
IMAGENET_R = Tree(("imagenet-r",), called=_BY_WNID)
IMAGENET_A = Tree(("imagenet-a",), called=_BY_WNID)
IMAGENET_SKETCH = Tree(("sketch", "imagenet-sketch", "imagenet-sketch/sketch"), called=_BY_WNID)
# 200 more folders hold objects that ImageNet lacks. The red border marks images of a test set.
OBJECTNET = Tree(
    ("objectnet-1.0/images", "objectnet/images"),
    called={name: name for name in sorted(OBJECTNET_CLASSES)},
    others=True,
    border=2,
)


def open_tree(
    name: str, dir: pathlib.Path, split: str, image_size: int = 0, *, layout: Tree, fit: Fit = SQUEEZE
) -> Source | None:
    """Return a split, or None if it is not there.

    Raises:
      InputError: there is no such split, its folder or the list of classes is missing, or it has a class that the
        training folder lacks.
    """
    roots = (dir / folder for folder in layout.folders)
    root = next((root for root in roots if (root / layout.splits["test"]).is_dir()), None)
    if root is None:
        return None
    if split not in layout.splits:
        raise InputError(f"{name} has no split {split!r}: expected {' or '.join(layout.splits)}")
    folder, training = root / layout.splits[split], root / layout.splits.get("train", layout.splits["test"])
    if not folder.is_dir():
        raise InputError(f"{folder} does not exist: expected a folder of it for each class")
    if layout.classes:
        class_names = [line.strip() for line in lines(root / layout.classes)]
    elif layout.called:
        class_names = list(layout.called)
        strange = sorted(set(subfolders(folder)) - set(layout.called.values()))
        if strange and not layout.others:
            raise InputError(f"{folder} has folder {strange[0]!r}, which is none of the {len(class_names)} classes")
    else:
        present = [class_name for class_name in subfolders(folder) if class_name not in layout.dropped]
        class_names = subfolders(training) if training != folder and training.is_dir() else present
        strange = sorted(set(present) - set(class_names))
        if strange:
            raise InputError(f"{folder} has class folder {strange[0]!r}, which {training} lacks")
    folders = [folder / layout.called.get(class_name, class_name).lstrip("/") for class_name in class_names]
    paths, labels = list_images(folders, deep=False)
    fit = dataclasses.replace(fit, border=layout.border)
    return FileSource(name, split, class_names, paths, labels, image_size=image_size, fit=fit, place=root)
