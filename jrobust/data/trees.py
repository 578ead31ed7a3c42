"""Data sets with a folder a class that have no split, or one of their own: EuroSAT, SUN397, the Caltechs, ImageNet."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import NamedTuple

from jrobust.data.folders import FileSource, list_images, subfolders
from jrobust.data.images import SQUEEZE, Fit
from jrobust.data.source import Source
from jrobust.data.text_files import lines
from jrobust.errors import InputError


class Tree(NamedTuple):
    """A layout: class folders, in sorted order, of images in sorted order; what lies deeper is left out.

    Of a set without splits all is for the test. With `classes`, a file that lists the class folders, those in its
    order; the classes are then called as it calls them.
    """

    folders: tuple[str, ...]  # below the data folder; the first that has the folder of the test split is read
    splits: Mapping[str, str] = {"test": ""}  # the folder of each
    dropped: tuple[str, ...] = ()  # folders that are no class
    classes: str = ""


EUROSAT = Tree(("eurosat/2750", "EuroSAT/2750", "2750", "eurosat/EuroSAT_RGB", "EuroSAT_RGB"))
# Torchvision takes the files in the order in which the file system lists them; that order cannot be had again.
SUN397 = Tree(("SUN397", "sun397/SUN397"), classes="ClassName.txt")
CALTECH101 = Tree(
    tuple(f"{folder}101_ObjectCategories" for folder in ("caltech101/", "caltech-101/", "")),
    dropped=("BACKGROUND_Google",),
)
CALTECH256 = Tree(tuple(f"{folder}256_ObjectCategories" for folder in ("caltech256/", "")))
IMAGENET = Tree(("imagenet", "ILSVRC2012"), {"train": "train", "test": "val"})


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
    else:
        present = [class_name for class_name in subfolders(folder) if class_name not in layout.dropped]
        class_names = subfolders(training) if training != folder and training.is_dir() else present
        strange = sorted(set(present) - set(class_names))
        if strange:
            raise InputError(f"{folder} has class folder {strange[0]!r}, which {training} lacks")
    folders = [folder / class_name.lstrip("/") for class_name in class_names]
    paths, labels = list_images(folders, deep=False)
    return FileSource(name, split, class_names, paths, labels, image_size=image_size, fit=fit, place=root)
