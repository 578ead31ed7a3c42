"""The data sets by name: in which layouts each is looked for, what is expected of it and how to get it."""

from __future__ import annotations

import math
import pathlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from jrobust.data import archives, boxed, corrupted_cifar10, folders, npz, shipped, tfds_records
from jrobust.data.source import Source
from jrobust.errors import InputError, unknown

SPLITS = ("train", "validation", "test")

# (name, dir, split, image_size, **options) -> the source, or None if the data are not there in this layout
Opener = Callable[..., Source | None]


class Layout(NamedTuple):
    """One form in which a data set may lie in the data folder."""

    where: str  # below the data folder, as it is told to the user
    open: Opener


@dataclass(frozen=True)
class DataSet:
    """What is known of a data set: layouts in the order in which they are tried, sizes, and where it comes from.

    Attributes:
      layouts: tried in order; the first that is there is read.
      counts: the official number of images of each split.
      num_classes: the official number of classes.
      image_shape: of an image; a size of 0 varies.
      fetch: addresses of the authors' files.
      unpack: what to do with them.
      tfds: the name under which TFDS can prepare it; empty if it cannot.
      shipped: it comes with a dependency and needs no data folder.
      options: what else decides its content, with defaults, which also give the types; the openers take all of them.
      is_built: for a set that loading builds, `(dir, split, **options)` -> whether it is there without that.
    """

    layouts: tuple[Layout, ...]
    counts: Mapping[str, int]
    num_classes: int
    image_shape: tuple[int, int, int]
    fetch: tuple[str, ...] = ()
    unpack: str = ""
    tfds: str = ""
    shipped: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)
    is_built: Callable[..., bool] | None = None


def _npz(name: str) -> Layout:
    def open_layout(name: str, dir: pathlib.Path, split: str, image_size: int) -> Source | None:
        path = dir / f"{name}.npz"
        return npz.open_npz(name, path, split, image_size) if path.is_file() else None

    return Layout(f"{name}.npz", open_layout)


def _tfds(tfds_name: str, class_names: tuple[str, ...] = ()) -> Layout:
    def open_layout(name: str, dir: pathlib.Path, split: str, image_size: int) -> Source | None:
        return tfds_records.open_prepared(name, tfds_name, dir, split, image_size, class_names)

    return Layout(f"{tfds_name}/ of TFDS", open_layout)


def _cifar(layout: archives.Cifar) -> Layout:
    def open_layout(name: str, dir: pathlib.Path, split: str, image_size: int) -> Source | None:
        return archives.cifar(name, layout, dir, split, image_size)

    return Layout(f"{layout.folder}/ or {layout.archive}", open_layout)


def _gtsrb_folder(name: str, dir: pathlib.Path, split: str, image_size: int) -> Source | None:
    root = dir / "gtsrb"
    return folders.image_folder(name, root, split, image_size) if (root / "train").is_dir() else None


DATA_SETS: dict[str, DataSet] = {
    "digits": DataSet(
        (Layout("nothing", lambda name, dir, split, image_size: shipped.digits(split, image_size)),),
        {"train": 1437, "test": 360},
        10,
        (8, 8, 1),
        shipped=True,
    ),
    "colored_digits": DataSet(
        (Layout("nothing", lambda name, dir, *rest, **options: shipped.colored_digits(*rest, **options)),),
        {"train": 1293, "validation": 144, "test": 360},
        10,
        (8, 8, 3),
        shipped=True,
        options={"ratio": 2.0, "seed": 0, "valid_fraction": 0.1, "jitter": 0.05},
    ),
    "cifar10": DataSet(
        (_cifar(archives.CIFAR10), _tfds("cifar10", archives.CIFAR10_NAMES)),
        {"train": 50_000, "test": 10_000},
        10,
        (32, 32, 3),
        ("https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",),
        "put it there as it is, or unpack it",
        "cifar10",
    ),
    "corrupted_cifar10": DataSet(
        (
            Layout("cifar10c/<ratio>pct/ of DFA", corrupted_cifar10.open_published),
            Layout("CIFAR-10, to build corrupted_cifar10/ from it", corrupted_cifar10.open_corrupted_cifar10),
        ),
        {"train": 45_000, "validation": 5_000, "test": 10_000},
        10,
        (32, 32, 3),
        ("https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",),
        "put it there as it is, or unpack it: the corrupted set is built from it",
        "cifar10",
        options={"ratio": 0.5, "seed": 0, "valid_fraction": 0.1, "textures": ""},
        is_built=corrupted_cifar10.is_built,
    ),
    "cifar100": DataSet(
        (_cifar(archives.CIFAR100), _tfds("cifar100")),
        {"train": 50_000, "test": 10_000},
        100,
        (32, 32, 3),
        ("https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",),
        "put it there as it is, or unpack it",
        "cifar100",
    ),
    "svhn": DataSet(
        (Layout("{train,test}_32x32.mat", archives.svhn), _npz("svhn"), _tfds("svhn_cropped")),
        {"train": 73_257, "test": 26_032},
        10,
        (32, 32, 3),
        (
            "http://ufldl.stanford.edu/housenumbers/train_32x32.mat",
            "http://ufldl.stanford.edu/housenumbers/test_32x32.mat",
        ),
        "put both there as they are",
        "svhn_cropped",
    ),
    "gtsrb": DataSet(
        (
            Layout("gtsrb/{train,test}/<class>/", _gtsrb_folder),
            Layout(
                "GTSRB/Final_{Training,Test}/Images/", lambda n, d, *rest: folders.gtsrb_official(n, d / "GTSRB", *rest)
            ),
            _npz("gtsrb"),
        ),
        {"train": 39_209, "test": 12_630},
        43,
        (0, 0, 3),
        (
            "GTSRB_Final_Training_Images.zip, GTSRB_Final_Test_Images.zip and GTSRB_Final_Test_GT.zip from "
            "https://benchmark.ini.rub.de/gtsrb_dataset.html",
        ),
        "unpack all three there, so that GTSRB/ and GT-final_test.csv lie in it; "
        "other re-splits (such as 34,799 / 4,410 / 12,630) go into gtsrb.npz",
    ),
    "flower17": DataSet(
        (
            Layout(
                "flower17/ with {train,test}/<class>/, <class>/ or jpg/",
                lambda n, d, *rest: folders.flower17(n, d / "flower17", *rest),
            ),
            _npz("flower17"),
        ),
        {"train": 1224, "test": 136},
        17,
        (0, 0, 3),
        ("https://www.robots.ox.ac.uk/~vgg/data/flowers/17/17flowers.tgz",),
        "unpack it into flower17/, so that flower17/jpg/image_0001.jpg is there",
    ),
    "cub200": DataSet(
        (Layout("CUB_200_2011/", lambda n, d, *rest: boxed.cub200(n, d / "CUB_200_2011", *rest)),),
        {"train": 5994, "test": 5794},
        200,
        (0, 0, 3),
        ("https://data.caltech.edu/records/65de6-vp158/files/CUB_200_2011.tgz",),
        "unpack it there, so that CUB_200_2011/images.txt is there",
    ),
    "tiny_imagenet": DataSet(
        (Layout("tiny-imagenet-200/", lambda n, d, *rest: boxed.tiny_imagenet(n, d / "tiny-imagenet-200", *rest)),),
        {"train": 100_000, "test": 10_000},
        200,
        (64, 64, 3),
        ("http://cs231n.stanford.edu/tiny-imagenet-200.zip",),
        "unpack it there, so that tiny-imagenet-200/wnids.txt is there",
    ),
}

_KINDS = {float: "a number", int: "a whole number", str: "text", bool: "True or False"}
FORMS = ("image_folder:PATH", "npz:PATH", "tfds:NAME")


def load(name: str, split: str, dir: str | pathlib.Path = "", *, image_size: int | None = 0, **options: Any) -> Source:
    """Return a split of a data set as a source of uint8 images.

    Args:
      name: one of `DATA_SETS`; `image_folder:PATH` or `npz:PATH`, below `dir` or absolute; or `tfds:NAME`, prepared in
        `dir`. The name of a folder in `dir` that holds <split>/<class>/<image> is an image folder.
      split: "train", "validation" (where there is one) or "test"; after `tfds:` anything that TFDS takes.
      dir: the data folder, the same for all data sets. "digits" needs none.
      image_size: side of the square that images are resized to on reading, bilinear, the aspect ignored; boxes follow.
        0 or None keeps the size.
      **options: settings of the data set, such as `ratio`, the percentage of bias-conflicting training images; those
        that are not given have the defaults of its entry in `DATA_SETS`.

    >>> source = load("digits", "test")
    >>> len(source), source.image_shape, source[0]["label"]
    (360, (8, 8, 1), 0)

    Raises:
      InputError: unknown name, split or option; not found, with the places that were looked at and the command that
        gets it; or data that are damaged.
    """
    size = int(image_size or 0)
    if size < 0:
        raise InputError(
            f"image size {size} is negative: expected the side of a square in pixels, or 0 to keep the size"
        )
    root = pathlib.Path(dir).expanduser()
    form, colon, rest = name.partition(":")
    if split not in SPLITS and form != "tfds":
        raise unknown("split", split, SPLITS)
    if name in DATA_SETS and DATA_SETS[name].shipped:
        if split not in DATA_SETS[name].counts:
            raise unknown(f"split of {name}", split, DATA_SETS[name].counts)
        return _opened(name, root, split, size, _settings(name, options))
    known = name in DATA_SETS or (colon and rest and form in ("image_folder", "npz", "tfds"))
    folder = not colon and str(dir) and name and (root / name / split).is_dir()
    if not known and not folder:
        raise unknown("data set", name, (*DATA_SETS, *FORMS))
    settings = _settings(name, options)
    absolute = form in ("image_folder", "npz") and pathlib.Path(rest).is_absolute()
    get = f" and {_get(name, root)}" if name in DATA_SETS else ""
    if not str(dir) and not absolute:
        raise InputError(f"no data folder given for {name}: set --config.data.dir (--dir) to the folder that holds it")
    if not root.is_dir() and not absolute:
        raise InputError(
            f"data folder {str(root)!r} does not exist: expected the folder that holds {name}; create it{get}"
        )
    if name in DATA_SETS:
        return _opened(name, root, split, size, settings)
    if form == "npz" and colon:
        if not (root / rest).is_file():
            raise InputError(f"{root / rest} does not exist: expected an .npz with {split}_images and {split}_labels")
        return npz.open_npz(pathlib.PurePath(rest).stem, root / rest, split, size)
    if form == "tfds":
        source = tfds_records.open_prepared(rest, rest, root, split, size)
        if source is None:
            raise InputError(
                f"{root / rest} holds nothing prepared by TFDS: expected {rest}/<version>/dataset_info.json"
            )
        return source
    return folders.image_folder(pathlib.PurePath(rest or name).name, root / (rest or name), split, size)


def _settings(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return all options of a data set: its defaults, and over them those that are given.

    Raises:
      InputError: it has no such option, or the value is not of the default's type.
    """
    defaults = DATA_SETS[name].options if name in DATA_SETS else {}
    settings = dict(defaults)
    for option, value in options.items():
        if option not in defaults:
            if defaults:
                raise unknown(f"option of {name}", option, defaults, "see config.data.options")
            raise InputError(f"{name} takes no options, but config.data.options has {option!r}: leave it out")
        kind = type(defaults[option])
        accepted = (int, float) if kind is float else (kind,)
        if not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool):
            raise InputError(
                f"data.options.{option} is {value!r}: {name} expects {_KINDS[kind]} such as {defaults[option]!r}"
            )
        if kind is float and not math.isfinite(value):
            raise InputError(f"data.options.{option} is {value!r}: {name} expects a finite number")
        settings[option] = kind(value)
    return settings


def _opened(name: str, dir: pathlib.Path, split: str, image_size: int, settings: Mapping[str, Any]) -> Source:
    """Return the source of the first layout that is there."""
    for layout in DATA_SETS[name].layouts:
        source = layout.open(name, dir, split, image_size, **settings)
        if source is not None:
            return source
    places = "; ".join(layout.where for layout in DATA_SETS[name].layouts)
    raise InputError(f"{name} was not found in {dir}: looked for {places}; {_get(name, dir)}")


def _get(name: str, dir: pathlib.Path) -> str:
    return f"get it with `python launch/prepare_data.py {name} --dir={dir}`"
