"""Data sets by name: found in the data folder in the first layout that is there."""

from __future__ import annotations

import math
import pathlib
from collections.abc import Mapping
from typing import Any

from jrobust.data import folders, npz, tfds_records
from jrobust.data.catalogue import DATA_SETS, DataSet
from jrobust.data.source import Source
from jrobust.errors import InputError, unknown

__all__ = ["DATA_SETS", "FORMS", "SPLITS", "DataSet", "load"]

SPLITS = ("train", "validation", "test")
_KINDS = {float: "a number", int: "a whole number", str: "text", bool: "True or False"}
FORMS = ("image_folder:PATH", "npz:PATH", "tfds:NAME")


def load(
    name: str, split: str, /, dir: str | pathlib.Path = "", *, image_size: int | None = 0, **options: Any
) -> Source:
    """Return a split of a data set as a source of uint8 images.

    Args:
      name: one of `DATA_SETS`; `image_folder:PATH` or `npz:PATH`, below `dir` or absolute; or `tfds:NAME`, prepared in
        `dir`. The name of a folder in `dir` that holds <split>/<class>/<image> is an image folder.
      split: "train", "validation" (where there is one) or "test"; after `tfds:` anything that TFDS takes.
      dir: the data folder, the same for all data sets. "digits", "colored_digits" and "shapes" need none.
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
        source = tfds_records.open_prepared(rest, root, split, size, prepared=tfds_records.Prepared(rest))
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
