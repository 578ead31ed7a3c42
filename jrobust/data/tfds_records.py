"""Data that TFDS has prepared as array_record, read without TensorFlow."""

from __future__ import annotations

import contextlib
import functools
import json
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from jrobust.data import images as image_files
from jrobust.data.images import SQUEEZE, Fit
from jrobust.data.source import Source, check_labels
from jrobust.errors import InputError


class Prepared(NamedTuple):
    """A data set of TFDS, and how it is read in the order, under the labels and with the splits of its authors' files.

    TFDS stores records shuffled. Those that tell where they come from are sorted by that; others keep TFDS's order.
    """

    name: str
    splits: Mapping[str, str] = {}  # what TFDS calls each, if not the same
    by_class: bool = False  # classes follow each other
    sorted_by: str = "id"  # the feature, a text, by which records are sorted, if there is one
    key: Callable[[str], Any] = str  # what of it is compared
    class_names: tuple[str, ...] = ()  # in the place of TFDS's
    # Given, the names of some classes of TFDS; they are numbered anew, in sorted order. One of "" is left out.
    renamed: Mapping[str, str] = {}
    mask: str = ""  # the feature in which the object is 1


FORMATS = ("array_record", "parquet")  # what TFDS reads by position; TFRECORD it does not, even with TensorFlow


def open_prepared(
    name: str, dir: pathlib.Path, split: str, image_size: int = 0, *, prepared: Prepared, fit: Fit = SQUEEZE
) -> Source | None:
    """Return a split that TFDS prepared in `dir`, or None if there is none; see `Prepared`.

    Raises:
      InputError: there is no such split, or it was prepared in a format that cannot be read by position, is damaged,
        or has no images and labels.
    """
    infos = sorted((dir / prepared.name).rglob("dataset_info.json"))
    if not infos:
        return None
    formats = {path: _file_format(path) for path in infos}
    usable = [path for f in FORMATS for path in sorted(infos, key=_version, reverse=True) if formats[path] == f]
    if not usable:
        raise InputError(
            f"{dir / prepared.name} was prepared as {', '.join(sorted(set(formats.values())))}, which cannot be read "
            f"by position: expected array_record; move it away and run `python launch/prepare_data.py {name} "
            f"--dir={dir}`"
        )
    if prepared.splits and split not in prepared.splits:
        raise InputError(f"{name} has no split {split!r}: expected {' or '.join(prepared.splits)}")
    # with its version: without one TFDS looks for the version that it would prepare
    tfds_name = f"{prepared.name}:{usable[0].parent.name}"
    return TfdsSource(name, prepared, tfds_name, dir, split, formats[usable[0]], image_size, fit)


class TfdsSource(Source):
    """Records of `tfds.data_source`, decoded on each access."""

    def __init__(
        self,
        name: str,
        prepared: Prepared,
        tfds_name: str,
        dir: pathlib.Path,
        split: str,
        file_format: str,
        image_size: int = 0,
        fit: Fit = SQUEEZE,
    ):
        fit.check(image_size)
        self.name, self.split, self.place = name, split, str(dir / prepared.name)
        self.image_size, self.fit, self._mask = image_size, fit, prepared.mask
        try:
            import tensorflow_datasets as tfds
        except ImportError as error:
            raise InputError(f"reading {self.place} needs TFDS: pip install tensorflow-datasets") from error
        split = prepared.splits.get(split, split)
        arguments = {
            "split": split,
            "data_dir": str(dir),
            "download": False,
            "builder_kwargs": {"file_format": file_format},
        }
        skipped = {feature: tfds.decode.SkipDecoding() for feature in ("image", prepared.mask) if feature}
        with _readable(name, dir, self.place, split):
            self._records = tfds.data_source(tfds_name, **arguments)
            undecoded = tfds.data_source(tfds_name, **arguments, decoders=skipped)
        features = dict(self._records.dataset_info.features.items())
        if "image" not in features or not isinstance(features.get("label"), tfds.features.ClassLabel):
            raise InputError(f"{self.place} has features {', '.join(features)}: expected `image` and a class `label`")
        is_sorted = isinstance(features.get(prepared.sorted_by), tfds.features.Text)
        rows = []  # label, and what records are sorted by
        with _readable(name, dir, self.place, split):
            for i in range(len(undecoded)):
                record = undecoded[i]
                origin = record[prepared.sorted_by] if is_sorted else b""
                # how a file that was cut off reads
                if origin is None or record["label"] is None or not record["image"]:
                    raise EOFError(f"record {i} is empty: a file is cut off")
                rows.append((int(record["label"]), prepared.key(origin.decode("utf-8", "replace"))))
        if not rows:
            raise InputError(f"split {split!r} of {self.place} is empty: prepare it again")
        names = prepared.class_names or tuple(features["label"].names)
        labels = check_labels([label for label, _ in rows], len(rows), len(names), self.place)
        self.class_names, number = _numbered(names, prepared.renamed)
        labels = number[labels]
        # the sort is stable: what nothing tells apart keeps the order of TFDS
        order = sorted(range(len(rows)), key=lambda i: (labels[i] if prepared.by_class else 0, rows[i][1]))
        self._order = np.array([i for i in order if labels[i] >= 0], np.int64)
        self.labels = labels[self._order]

    @functools.cached_property
    def _first_shape(self) -> tuple[int, int, int]:
        height, width, channels = self._example(0)["image"].shape
        return height, width, channels

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of every image: the first one's."""
        return self._first_shape

    def _example(self, i: int) -> dict[str, Any]:
        try:
            record = self._records[int(self._order[i])]
            image, mask = record["image"], record[self._mask] if self._mask else None
        except Exception as error:
            raise InputError(f"image {i} of {self.place} cannot be decoded ({error}): prepare it again") from error
        if image.dtype != np.uint8 or image.shape[-1] not in (1, 3):
            raise InputError(
                f"images of {self.place} are {image.dtype}{list(image.shape)}: expected uint8[H, W, 1 or 3]"
            )
        example: dict[str, Any] = {"image": self.resized(image), "label": int(self.labels[i])}
        if mask is not None:
            foreground = (mask[..., 0] == 1).astype(np.uint8)
            size = self.image_size
            example["mask"] = image_files.resize_mask(foreground, size, self.fit) if size else foreground
        return example

    def __getitem__(self, i: int) -> dict[str, Any]:
        example = self._example(i)
        if example["image"].shape != self.image_shape:
            raise InputError(
                f"image {i} of {self.place} has shape {example['image'].shape}, but the first one {self.image_shape}: "
                "set data.image_size to resize all of them to one square"
            )
        return example


def _numbered(names: tuple[str, ...], renamed: Mapping[str, str]) -> tuple[tuple[str, ...], np.ndarray]:
    """Return the classes and the number that each of TFDS's has among them, -1 for those left out."""
    if not renamed:
        return names, np.arange(len(names), dtype=np.int32)
    called = [renamed.get(name, name) for name in names]
    classes = tuple(sorted(name for name in called if name))
    return classes, np.array([classes.index(name) if name else -1 for name in called], np.int32)


@contextlib.contextmanager
def _readable(name: str, dir: pathlib.Path, place: str, split: str) -> Iterator[None]:
    """Turn what TFDS raises into one line: a wrong split, version, checksum or byte raises anything."""
    try:
        yield
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(
            f"TFDS cannot read split {split!r} of {place} ({reason}): prepare it again with "
            f"`python launch/prepare_data.py {name} --dir={dir}`"
        ) from error


def _version(path: pathlib.Path) -> list[int]:
    return [int(number) for number in path.parent.name.split(".") if number.isdigit()]


def _file_format(path: pathlib.Path) -> str:
    try:
        return json.loads(path.read_text()).get("fileFormat", "tfrecord")
    except (OSError, ValueError, AttributeError) as error:
        raise InputError(f"{path} cannot be read ({error}): prepare the data set again") from error
