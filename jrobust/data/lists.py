"""Data sets of image files whose splits are lists: Food-101, Oxford-IIIT Pet, DTD and FGVC-Aircraft."""

from __future__ import annotations

import itertools
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from jrobust.data.folders import FileSource
from jrobust.data.images import SQUEEZE, Fit
from jrobust.data.source import Source
from jrobust.data.text_files import lines
from jrobust.errors import InputError


class Row(NamedTuple):
    """What a line of a list says."""

    file: str  # without its suffix
    class_name: str
    number: int = 0  # of the class, where lines tell it


class Lists(NamedTuple):
    """A layout: where it lies, a list a split, and what its lines mean.

    The order of images is that of the list. Classes are numbered as `classes` lists them; without it by the numbers of
    the lines, of which some may be missing, or else by name.
    """

    folders: tuple[str, ...]  # below the data folder; the first that has one of the lists is read
    splits: Mapping[str, tuple[str, ...]]  # the lists of a split; the first that is there is read
    form: str  # of a line, for messages
    parse: Callable[[str], Row]  # raises ValueError
    images: str  # with {} for the file of a row
    classes: str = ""
    masks: str = ""
    foreground: int = 1


def _food(line: str) -> Row:
    class_name, _ = line.split("/")
    return Row(line, class_name)


def _pet(line: str) -> Row:
    file, label, *_ = line.split()
    if int(label) < 1:
        raise ValueError(label)
    return Row(file, file.rsplit("_", 1)[0], int(label))


def _texture(line: str) -> Row:
    class_name, file = line.split("/")
    return Row(f"{class_name}/{pathlib.PurePosixPath(file).stem}", class_name)


def _aircraft(line: str) -> Row:
    file, class_name = line.split(" ", 1)
    return Row(file, class_name)


FOOD101 = Lists(
    ("food-101", "food101"),
    # classes follow each other in another order in the .json; that one is torchvision's
    {split: (f"meta/{split}.json", f"meta/{split}.txt") for split in ("train", "test")},
    "<class>/<image>",
    _food,
    "images/{}.jpg",
)
# Of a trimap 1 is the animal, 2 the background and 3 a border of some pixels about the animal that is neither; the mask
# is 1 where the trimap is, so that the border is outside.
OXFORD_PETS = Lists(
    ("oxford-iiit-pet", "oxford_pets", "oxford_iiit_pet"),
    {"train": ("annotations/trainval.txt",), "test": ("annotations/test.txt",)},
    "<breed>_<number> <class of at least 1> <species> <breed>",
    _pet,
    "images/{}.jpg",
    masks="annotations/trimaps/{}.png",
)
DTD = Lists(
    ("dtd/dtd", "dtd"),  # the former is where torchvision unpacks it
    {"train": ("labels/train1.txt",), "validation": ("labels/val1.txt",), "test": ("labels/test1.txt",)},
    "<class>/<image>.jpg",
    _texture,
    "images/{}.jpg",
)
FGVC_AIRCRAFT = Lists(
    ("fgvc-aircraft-2013b", "fgvc_aircraft"),
    {
        split: (f"data/images_variant_{part}.txt",)
        for split, part in (("train", "train"), ("validation", "val"), ("test", "test"))
    },
    "<image> <variant>",
    _aircraft,
    "data/images/{}.jpg",
    classes="data/variants.txt",
)


def open_lists(
    name: str, dir: pathlib.Path, split: str, image_size: int = 0, *, layout: Lists, fit: Fit = SQUEEZE
) -> Source | None:
    """Return a split in the order of its list, or None if none of the lists is there.

    `mask` is 1 on the object where the layout has masks and their folder is there.

    Raises:
      InputError: there is no such split, its list is missing or has a line of another form, or classes are numbered or
        named in two ways.
    """
    every = [path for paths in layout.splits.values() for path in paths]
    roots = (dir / folder for folder in layout.folders)
    root = next((root for root in roots if any((root / path).is_file() for path in every)), None)
    if root is None:
        return None
    if split not in layout.splits:
        raise InputError(f"{name} has no split {split!r}: expected {' or '.join(layout.splits)}")
    rows = _rows(root, layout, split)
    class_names = _class_names(root, layout, rows)
    number = {class_name: k for k, class_name in enumerate(class_names)}
    strange = next((row for row in rows if row.class_name not in number), None)
    if strange is not None:
        raise InputError(f"{root / layout.classes} lacks the class {strange.class_name!r} of image {strange.file}")
    masks = None
    if layout.masks and (root / layout.masks).parent.is_dir():
        masks = [root / layout.masks.format(row.file) for row in rows]
    return FileSource(
        name,
        split,
        class_names,
        [root / layout.images.format(row.file) for row in rows],
        [number[row.class_name] for row in rows],
        masks=masks,
        foreground=layout.foreground,
        image_size=image_size,
        fit=fit,
        place=root,
    )


def _rows(root: pathlib.Path, layout: Lists, split: str) -> list[Row]:
    paths = [root / path for path in layout.splits[split]]
    path = next((path for path in paths if path.is_file()), paths[0])
    rows = []
    for number, line in enumerate(_json_lines(path) if path.suffix == ".json" else lines(path), 1):
        try:
            rows.append(layout.parse(line.strip()))
        except ValueError:
            raise InputError(
                f"{path} line {number} is {line!r:.80}: expected {layout.form}; unpack the data set again"
            ) from None
    return rows


def _json_lines(path: pathlib.Path) -> list[str]:
    """Return all that is in the lists of a JSON object, in their order."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return [str(line) for listed in content.values() for line in listed]
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise InputError(
            f"{path} cannot be read as JSON lists by class ({error}): unpack the data set again"
        ) from error


def _class_names(root: pathlib.Path, layout: Lists, rows: Sequence[Row]) -> list[str]:
    """Return the classes of all splits, so that each numbers them alike."""
    if layout.classes:
        return [line.strip() for line in lines(root / layout.classes)]
    found = {(row.number, row.class_name) for row in rows}
    for split, paths in layout.splits.items():
        if any((root / path).is_file() for path in paths):
            found |= {(row.number, row.class_name) for row in _rows(root, layout, split)}
    numbered = sorted(found)
    for (one, name), (other, same) in itertools.pairwise(numbered):
        if one == other != 0:
            raise InputError(f"lists in {root} call class {one} both {name!r} and {same!r}: unpack the data set again")
    names = [name for _, name in numbered]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InputError(f"lists in {root} give the class {twice!r} two numbers: unpack the data set again")
    return names
