"""CUB-200-2011 and Tiny ImageNet as their authors distribute them: image files with one box an image."""

from __future__ import annotations

import pathlib

import numpy as np

from jrobust.data.folders import FileSource
from jrobust.data.images import SQUEEZE, Fit
from jrobust.data.source import Source
from jrobust.data.text_files import lines
from jrobust.errors import InputError


def cub200(name: str, root: pathlib.Path, split: str, image_size: int = 0) -> Source | None:
    """Return a split of CUB-200-2011 from the folder CUB_200_2011, or None if it is not there.

    The order is that of images.txt. `box` is the official box, which in some images reaches beyond the picture.

    Raises:
      InputError: a list is missing, cannot be read, or does not name the same images as the others.
    """
    if not root.is_dir():
        return None
    if split not in ("train", "test"):
        raise InputError(f"{name} has no split {split!r}: expected train or test")
    images = _table(root / "images.txt", 2)
    classes = _table(root / "classes.txt", 2)
    columns = [images]
    for file, width in (("image_class_labels.txt", 2), ("train_test_split.txt", 2), ("bounding_boxes.txt", 5)):
        columns.append(_table(root / file, width))
        if columns[-1].keys() != images.keys():
            raise InputError(
                f"{root / file} lists {len(columns[-1])} images, images.txt {len(images)}: not the same ones"
            )
    _, labels, is_train, boxes = columns
    chosen = [k for k in images if is_train[k][0] == ("1" if split == "train" else "0")]
    corners = _numbers([boxes[k] for k in chosen], root / "bounding_boxes.txt")  # x, y, width, height
    corners[:, 2:] += corners[:, :2]
    return FileSource(
        name,
        split,
        [fields[0] for fields in classes.values()],
        [root / "images" / images[k][0] for k in chosen],
        [int(k) - 1 for k in _numbers([labels[k] for k in chosen], root / "image_class_labels.txt")[:, 0]],
        boxes=corners,
        image_size=image_size,
        place=root,
    )


def tiny_imagenet(
    name: str, root: pathlib.Path, split: str, image_size: int = 0, *, fit: Fit = SQUEEZE
) -> Source | None:
    """Return Tiny ImageNet from the folder tiny-imagenet-200, or None if it is not there.

    The test split is the official validation split, whose labels are known. Classes are the sorted WordNet ids; each
    is called by the first word of words.txt. Test images, which lie in one folder, are in the order that a folder a
    class gives them.

    Raises:
      InputError: a list is missing or cannot be read, or an image is of no class in wnids.txt.
    """
    if not root.is_dir():
        return None
    wnids = sorted(lines(root / "wnids.txt"))
    label_of = {wnid: k for k, wnid in enumerate(wnids)}
    rows: list[tuple[pathlib.Path, str, list[str]]] = []  # file, class, box
    if split == "train":
        for wnid in wnids:
            for file, *box in _rows(root / "train" / wnid / f"{wnid}_boxes.txt", 5):
                rows.append((root / "train" / wnid / "images" / file, wnid, box))
    elif split == "test":
        listed = _rows(root / "val" / "val_annotations.txt", 6)
        for file, wnid, *box in sorted(listed, key=lambda row: (row[1], row[0])):
            rows.append((root / "val" / "images" / file, wnid, box))
    else:
        raise InputError(f"{name} has no split {split!r}: expected train or test")
    strange = next((wnid for _, wnid, _ in rows if wnid not in label_of), None)
    if strange is not None:
        raise InputError(f"{root}/val/val_annotations.txt has class {strange!r}, which is not one of wnids.txt")
    return FileSource(
        name,
        split,
        _words(root / "words.txt", wnids),
        [path for path, _, _ in rows],
        [label_of[wnid] for _, wnid, _ in rows],
        boxes=_numbers([box for _, _, box in rows], root),
        image_size=image_size,
        fit=fit,
        place=root,
    )


def _words(path: pathlib.Path, wnids: list[str]) -> list[str]:
    """Return the first word of each WordNet id, or the id itself where there is none or two classes share it."""
    words = {}
    if path.is_file():
        for line in lines(path):
            wnid, _, names = line.partition("\t")
            words[wnid] = names.split(",")[0].strip()
    chosen = [words.get(wnid) or wnid for wnid in wnids]
    return [f"{word} ({wnid})" if chosen.count(word) > 1 else word for word, wnid in zip(chosen, wnids, strict=True)]


def _rows(path: pathlib.Path, width: int) -> list[list[str]]:
    rows = [line.split() for line in lines(path)]
    for number, row in enumerate(rows, 1):
        if len(row) != width:
            raise InputError(f"{path} line {number} has {len(row)} fields: expected {width}; unpack the data set again")
    return rows


def _table(path: pathlib.Path, width: int) -> dict[str, list[str]]:
    """Return a list of `key field ..` lines as a dict, in the file's order."""
    return {key: fields for key, *fields in _rows(path, width)}


def _numbers(rows: list[list[str]], path: pathlib.Path) -> np.ndarray:
    try:
        return np.array(rows, np.float64).reshape(len(rows), -1)
    except ValueError as error:
        raise InputError(f"{path} holds a field that is no number ({error}): unpack the data set again") from error
