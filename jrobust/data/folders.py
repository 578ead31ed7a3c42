"""Image files on disk: any image folder, and the folders of GTSRB and Flower17."""

from __future__ import annotations

import copy
import csv
import functools
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from jrobust.data import images as image_files
from jrobust.data.source import Source, check_labels
from jrobust.errors import InputError

FLOWER17_SEED = 12312
# the order in which the authors number the species, 80 pictures each
FLOWER17_NAMES = (
    *("daffodil", "snowdrop", "lily_of_the_valley", "bluebell", "crocus", "iris", "tigerlily", "tulip", "fritillary"),
    *("sunflower", "daisy", "coltsfoot", "dandelion", "cowslip", "buttercup", "windflower", "pansy"),
)


class FileSource(Source):
    """Images decoded from files on each access.

    `masks` are files of the sizes of the images; `mask` is 1 where their value is `foreground`.
    """

    def __init__(
        self,
        name: str,
        split: str,
        class_names: Sequence[str],
        paths: Sequence[pathlib.Path],
        labels: Sequence[int] | np.ndarray,
        *,
        boxes: np.ndarray | None = None,
        biases: Sequence[int] | np.ndarray | None = None,
        bias_names: Sequence[str] = (),
        masks: Sequence[pathlib.Path] | None = None,
        foreground: int = 1,
        image_size: int = 0,
        fit: image_files.Fit = image_files.SQUEEZE,
        place: pathlib.Path,
    ):
        if not paths:
            raise InputError(f"{place} holds no images of the {split} split: expected files such as .png or .jpg")
        self.name, self.split, self.class_names, self.place = name, split, tuple(class_names), str(place)
        self.labels = check_labels(labels, len(paths), len(class_names), str(place))
        if biases is not None:
            self.biases = check_labels(biases, len(paths), len(bias_names), str(place), kind="bias")
        fit.check(image_size)
        self.bias_names, self.fit, self._of_all_shapes = tuple(bias_names), fit, False
        self.masks, self.foreground = masks, foreground
        self.paths, self.boxes, self.image_size = tuple(paths), boxes, image_size

    @functools.cached_property
    def _first_shape(self) -> tuple[int, int, int]:
        height, width, channels = image_files.read(self.paths[0], fit=self.fit)[0].shape
        return height, width, channels

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of every image: the first one's if they are not resized."""
        return (self.image_size, self.image_size, 3) if self.image_size else self._first_shape

    def __getitem__(self, i: int) -> dict[str, Any]:
        image, original = image_files.read(self.paths[i], self.image_size, self.fit)
        if not self._of_all_shapes and image.shape != self.image_shape:
            raise InputError(
                f"image {self.paths[i]} has shape {image.shape}, but {self.paths[0].name} has {self.image_shape}: "
                "set data.image_size to resize all of them to one square"
            )
        example = {"image": image, "label": int(self.labels[i])}
        if self.boxes is not None:
            example["box"] = image_files.scale_box(self.boxes[i], original, self.image_size, self.fit)
        if self.masks is not None:
            example["mask"] = self._mask(i, original)
        if self.biases is not None:
            example["bias"] = int(self.biases[i])
        return example

    def native(self) -> Source:
        """Return the same split at the size of its files, which may differ in shape."""
        if not self.image_size:
            return self
        native = copy.copy(self)
        native.image_size, native._of_all_shapes, native._arrays = 0, True, None
        native.__dict__.pop("_first_shape", None)
        return native

    def _mask(self, i: int, original: tuple[int, int]) -> np.ndarray:
        assert self.masks is not None
        mask = image_files.read_mask(self.masks[i], self.foreground)
        if mask.shape[::-1] != original:
            raise InputError(
                f"mask {self.masks[i]} has {mask.shape[1]}x{mask.shape[0]} pixels, {self.paths[i].name} "
                f"{original[0]}x{original[1]}: expected the same; unpack the data set again"
            )
        return image_files.resize_mask(mask, self.image_size, self.fit) if self.image_size else mask


def image_folder(
    name: str,
    root: pathlib.Path,
    split: str,
    image_size: int = 0,
    *,
    fit: image_files.Fit = image_files.SQUEEZE,
) -> Source:
    """Return `root/<split>/<class>/**/<image>`; classes and files in sorted order.

    The classes are the sub-folders of `root/train` where that exists, so that both splits number them alike.

    Raises:
      InputError: the split's folder is missing or empty, or it has a class that the training folder lacks.
    """
    folder = root / split
    if not folder.is_dir():
        found = ", ".join(sorted(p.name for p in root.iterdir() if p.is_dir())) if root.is_dir() else "no such folder"
        raise InputError(f"{folder} does not exist (in {root}: {found}): expected {root}/{split}/<class>/<image>")
    class_names = subfolders(root / "train" if (root / "train").is_dir() else folder)
    present = subfolders(folder)
    unknown = sorted(set(present) - set(class_names))
    if unknown or not class_names:
        what = f"class folder {unknown[0]!r}, which {root / 'train'} lacks" if unknown else "no class folders"
        raise InputError(f"{folder} has {what}: expected the same {len(class_names)} classes in both")
    paths, labels = list_images([folder / class_name for class_name in class_names])
    return FileSource(name, split, class_names, paths, labels, image_size=image_size, fit=fit, place=folder)


def flower17(name: str, root: pathlib.Path, split: str, image_size: int = 0) -> Source | None:
    """Return Flower17 from `root`, or None if it is not there: 72 training and 8 test images a class.

    `root` holds train/ and test/ with a folder a class; or 17 class folders; or the authors' jpg/image_0001.jpg ..
    image_1360.jpg, 80 a class in order. In the last two cases the split is the rule of the RAR code: shuffle with
    seed 12312, the first 72 of each class train. Its generator is unknown, so the split is not image for image the
    published one (unverified).
    """
    if (root / "train").is_dir() or (root / "test").is_dir():
        return image_folder(name, root, split, image_size)
    if (root / "jpg").is_dir():
        class_names, place = list(FLOWER17_NAMES), root / "jpg"
        paths = sorted(place.glob("image_*.jpg"))
        if len(paths) != 1360:
            raise InputError(f"{place} holds {len(paths)} images: expected image_0001.jpg to image_1360.jpg")
        labels = [i // 80 for i in range(1360)]
    elif root.is_dir() and subfolders(root):
        class_names, place = subfolders(root), root
        paths, labels = list_images([root / class_name for class_name in class_names])
    else:
        return None
    chosen = np.flatnonzero(split_of_rar(np.array(labels)) == (split == "train"))
    return FileSource(
        name,
        split,
        class_names,
        [paths[i] for i in chosen],
        [labels[i] for i in chosen],
        image_size=image_size,
        place=place,
    )


def split_of_rar(labels: np.ndarray) -> np.ndarray:
    """Return bool[N], True for training: after a shuffle the first nine tenths of each class (72 of 80)."""
    # RandomState, because its stream is frozen: the split must not change with the version of numpy.
    order = np.random.RandomState(FLOWER17_SEED).permutation(len(labels))
    train = np.zeros(len(labels), bool)
    for k in np.unique(labels):
        members = order[labels[order] == k]
        train[members[: round(0.9 * len(members))]] = True
    return train


def gtsrb_official(name: str, root: pathlib.Path, split: str, image_size: int = 0) -> Source | None:
    """Return GTSRB as its authors distribute it, or None if it is not there.

    `root`/Final_Training/Images/<class>/*.ppm, `root`/Final_Test/Images/*.ppm, and the test labels in
    GT-final_test.csv, beside `root` or anywhere in it.

    Raises:
      InputError: the test labels are missing, or a row of them cannot be read.
    """
    training = root / "Final_Training" / "Images"
    if not training.is_dir():
        return None
    class_names = subfolders(training)
    if split == "train":
        paths, labels = list_images([training / class_name for class_name in class_names])
        return FileSource(name, split, class_names, paths, labels, image_size=image_size, place=training)
    folder = root / "Final_Test" / "Images"
    tables = [root.parent / "GT-final_test.csv", *sorted(root.rglob("GT-final_test.csv"))]
    table = next((path for path in tables if path.is_file()), None)
    if split != "test" or table is None:
        raise InputError(f"{root} has no labels of the {split} split: put GT-final_test.csv into {folder}")
    try:
        with open(table, newline="") as file:
            rows = [(row["Filename"], int(row["ClassId"])) for row in csv.DictReader(file, delimiter=";")]
    except (KeyError, ValueError, TypeError) as error:
        raise InputError(
            f"{table} cannot be read ({error}): expected columns Filename and ClassId, split by ;"
        ) from error
    return FileSource(
        name,
        split,
        class_names,
        [folder / n for n, _ in rows],
        [k for _, k in rows],
        image_size=image_size,
        place=folder,
    )


def image_files_below(folder: pathlib.Path, deep: bool = True) -> list[pathlib.Path]:
    """Return the image files in a folder, and in those below it if `deep`, in the order of their paths; none hidden."""
    files = (p for p in folder.glob("**/*" if deep else "*") if p.suffix.lower() in image_files.SUFFIXES)
    return sorted(p for p in files if not p.name.startswith("."))


def subfolders(folder: pathlib.Path) -> list[str]:
    """Return the names of the folders in a folder in sorted order, hidden ones left out."""
    return sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def list_images(folders: Sequence[pathlib.Path], deep: bool = True) -> tuple[list[pathlib.Path], list[int]]:
    """Return the image files of a folder a class, in the order of the classes, and their labels."""
    found = [image_files_below(folder, deep) if folder.is_dir() else [] for folder in folders]
    return [path for files in found for path in files], [k for k, files in enumerate(found) for _ in files]
