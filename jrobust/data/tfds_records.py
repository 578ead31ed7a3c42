"""Data that TFDS has prepared as array_record, read without TensorFlow."""

from __future__ import annotations

import contextlib
import functools
import json
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from jrobust.data import images as image_files
from jrobust.data.source import Source, check_labels
from jrobust.errors import InputError

FORMATS = ("array_record", "parquet")  # what TFDS reads by position; TFRECORD it does not, even with TensorFlow


def open_prepared(
    name: str, tfds_name: str, dir: pathlib.Path, split: str, image_size: int = 0, class_names: tuple[str, ...] = ()
) -> Source | None:
    """Return a split that TFDS prepared in `dir`/`tfds_name`, or None if there is none.

    Records that carry an `id` (CIFAR, SVHN) are read in the order of their ids, which is the order of the authors'
    files: TFDS stores them shuffled. `index` then means the same image in both. Others keep the order of TFDS.

    Raises:
      InputError: it was prepared in a format that cannot be read by position, is damaged, or has no images and labels.
    """
    infos = sorted((dir / tfds_name).rglob("dataset_info.json"))
    if not infos:
        return None
    formats = {_file_format(path) for path in infos}
    usable = [f for f in FORMATS if f in formats]
    if not usable:
        raise InputError(
            f"{dir / tfds_name} was prepared as {', '.join(sorted(formats))}, which cannot be read by position: "
            f"expected array_record; move it away and run `python launch/prepare_data.py {name} --dir={dir}`"
        )
    return TfdsSource(name, tfds_name, dir, split, usable[0], image_size, class_names)


class TfdsSource(Source):
    """Records of `tfds.data_source`, decoded on each access."""

    def __init__(
        self,
        name: str,
        tfds_name: str,
        dir: pathlib.Path,
        split: str,
        file_format: str,
        image_size: int = 0,
        class_names: tuple[str, ...] = (),
    ):
        self.name, self.split, self.place = name, split, str(dir / tfds_name)
        self.image_size = image_size
        try:
            import tensorflow_datasets as tfds
        except ImportError as error:
            raise InputError(f"reading {self.place} needs TFDS: pip install tensorflow-datasets") from error
        arguments = {
            "split": split,
            "data_dir": str(dir),
            "download": False,
            "builder_kwargs": {"file_format": file_format},
        }
        with _readable(name, dir, self.place, split):
            self._records = tfds.data_source(tfds_name, **arguments)
            undecoded = tfds.data_source(tfds_name, **arguments, decoders={"image": tfds.decode.SkipDecoding()})
        features = dict(self._records.dataset_info.features.items())
        if "image" not in features or not isinstance(features.get("label"), tfds.features.ClassLabel):
            raise InputError(f"{self.place} has features {', '.join(features)}: expected `image` and a class `label`")
        self.class_names = class_names or tuple(features["label"].names)
        has_id = isinstance(features.get("id"), tfds.features.Text)
        rows = []  # id and label
        with _readable(name, dir, self.place, split):
            for i in range(len(undecoded)):
                record = undecoded[i]
                rows.append((record["id"] if has_id else b"", record["label"]))
                if (
                    rows[-1][0] is None or rows[-1][1] is None or not record["image"]
                ):  # how a file that was cut off reads
                    raise EOFError(f"record {i} is empty: a file is cut off")
        # the sort is stable: without ids the order of TFDS stays
        self._order = np.array(sorted(range(len(rows)), key=lambda i: rows[i][0]), np.int64)
        labels = np.array([int(label) for _, label in rows], np.int64)[self._order]
        if not len(labels):
            raise InputError(f"split {split!r} of {self.place} is empty: prepare it again")
        self.labels = check_labels(labels, len(rows), len(self.class_names), self.place)

    @functools.cached_property
    def _first_shape(self) -> tuple[int, int, int]:
        height, width, channels = self._image(0).shape
        return height, width, channels

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of every image: the first one's."""
        return self._first_shape

    def _image(self, i: int) -> np.ndarray:
        position = int(self._order[i])
        try:
            image = self._records[position]["image"]
        except Exception as error:
            raise InputError(f"image {i} of {self.place} cannot be decoded ({error}): prepare it again") from error
        if image.dtype != np.uint8 or image.shape[-1] not in (1, 3):
            raise InputError(
                f"images of {self.place} are {image.dtype}{list(image.shape)}: expected uint8[H, W, 1 or 3]"
            )
        return image_files.resize(image, self.image_size) if self.image_size else image

    def __getitem__(self, i: int) -> dict[str, Any]:
        image = self._image(i)
        if image.shape != self.image_shape:
            raise InputError(
                f"image {i} of {self.place} has shape {image.shape}, but the first one {self.image_shape}: "
                "set data.image_size to resize all of them to one square"
            )
        return {"image": image, "label": int(self.labels[i])}


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


def _file_format(path: pathlib.Path) -> str:
    try:
        return json.loads(path.read_text()).get("fileFormat", "tfrecord")
    except (OSError, ValueError, AttributeError) as error:
        raise InputError(f"{path} cannot be read ({error}): prepare the data set again") from error
