"""What the catalogue says of a data set, and the layouts that several of them share."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from jrobust.data import archives, folders, npz, tfds_records
from jrobust.data.images import Fit
from jrobust.data.source import Source

# how pictures become squares: the fields of `images.Fit`
FITTING = {"fit": "squeeze", "resize": 0, "filter": "bilinear"}

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
      counts: the official number of images of each split; of ImageNet only of the one that evaluation needs.
      num_classes: the official number of classes.
      image_shape: of an image; a size of 0 varies.
      fetch: addresses of the authors' files.
      unpack: what to do with them.
      tfds: the name under which TFDS can prepare it; empty if it cannot.
      shipped: it comes with a dependency, or is computed, and needs no data folder.
      options: what else decides its content, with defaults, which also give the types; the openers take all of them.
      classes_of: for a set whose options decide it, `(**options)` -> the number of classes.
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
    classes_of: Callable[..., int] | None = None
    is_built: Callable[..., bool] | None = None


def fitted(where: str, open: Callable[..., Source | None], **fixed: Any) -> Layout:
    """Return a layout whose options, if it is given any, are those of `FITTING`."""

    def open_layout(name: str, dir: pathlib.Path, split: str, image_size: int, **options: Any) -> Source | None:
        return open(name, dir, split, image_size, fit=Fit(**options), **fixed)

    return Layout(where, open_layout)


def prepared(by: tfds_records.Prepared) -> Layout:
    """Return the layout of what TFDS has prepared."""
    return fitted(f"{by.name}/ of TFDS", tfds_records.open_prepared, prepared=by)


def npz_file(name: str) -> Layout:
    """Return the layout of one .npz file."""

    def open_file(name: str, dir: pathlib.Path, split: str, image_size: int, *, fit: Fit) -> Source | None:
        path = dir / f"{name}.npz"
        return npz.open_npz(name, path, split, image_size, fit=fit) if path.is_file() else None

    return fitted(f"{name}.npz", open_file)


def class_folders(name: str) -> Layout:
    """Return the layout of a folder a split with a folder a class."""

    def open_folder(name: str, dir: pathlib.Path, split: str, image_size: int, *, fit: Fit) -> Source | None:
        if not any((dir / name / part).is_dir() for part in ("train", "test")):
            return None
        return folders.image_folder(name, dir / name, split, image_size, fit=fit)

    return fitted(f"{name}/{{train,test}}/<class>/", open_folder)


def binary(layout: archives.Binary, open: Opener = archives.cifar) -> Layout:
    """Return the layout of binary files, in their folder or archive."""

    def open_layout(name: str, dir: pathlib.Path, split: str, image_size: int) -> Source | None:
        return open(name, layout, dir, split, image_size)

    return Layout(f"{layout.folder}/ or {layout.archive}", open_layout)
