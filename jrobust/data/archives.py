"""CIFAR-10, CIFAR-100, STL-10 and SVHN in the binary files that their authors distribute."""

from __future__ import annotations

import pathlib
import tarfile
import zlib
from typing import NamedTuple

import numpy as np

from jrobust.data import matlab
from jrobust.data.source import Source, from_arrays
from jrobust.errors import InputError

CIFAR10_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
STL10_NAMES = ("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck")
_PIXELS = 3 * 32 * 32


class Binary(NamedTuple):
    """A binary layout: per image `label_bytes`, the last one being the label, then red, green and blue planes."""

    folder: str
    archive: str
    files: dict[str, tuple[str, ...]]
    label_bytes: int
    class_names: tuple[str, ...]  # where there is no file of names
    names_file: str


CIFAR10 = Binary(
    "cifar-10-batches-bin",
    "cifar-10-binary.tar.gz",
    {"train": tuple(f"data_batch_{k}.bin" for k in range(1, 6)), "test": ("test_batch.bin",)},
    1,
    CIFAR10_NAMES,
    "batches.meta.txt",
)
CIFAR100 = Binary(
    "cifar-100-binary",
    "cifar-100-binary.tar.gz",
    {"train": ("train.bin",), "test": ("test.bin",)},
    2,  # coarse and fine
    tuple(str(k) for k in range(100)),
    "fine_label_names.txt",
)
STL10 = Binary(
    "stl10_binary",
    "stl10_binary.tar.gz",
    {split: (f"{split}_X.bin", f"{split}_y.bin") for split in ("train", "test")},
    0,  # they are in files of their own
    STL10_NAMES,
    "class_names.txt",
)


def cifar(name: str, layout: Binary, dir: pathlib.Path, split: str, image_size: int = 0) -> Source | None:
    """Return a split of a CIFAR set from its binary files, in their order, or None if they are not there.

    Looked for in `dir`, `dir`/<folder> and `dir`/<name>/<folder>, then in the archive itself in `dir` or `dir`/<name>.

    Raises:
      InputError: a file is missing or cut off, or a label is out of range.
    """
    read = _split_files(name, layout, dir, split)
    if read is None:
        return None
    place, wanted, files = read
    record = layout.label_bytes + _PIXELS
    for file in wanted:
        size = len(files[file])
        if size == 0 or size % record:
            raise InputError(
                f"{place}: {file} has {size} bytes, no multiple of the {record} of an image: it is cut off or damaged; "
                "unpack the archive again"
            )
    if len({len(files[file]) for file in wanted}) > 1:
        sizes = ", ".join(f"{file} {len(files[file]) // record}" for file in wanted)
        raise InputError(f"{place}: the files hold different numbers of images ({sizes}): one of them is cut off")
    records = np.frombuffer(b"".join(files[file] for file in wanted), np.uint8).reshape(-1, record)
    planes = records[:, layout.label_bytes :].reshape(-1, 3, 32, 32)
    return from_arrays(
        np.ascontiguousarray(planes.transpose(0, 2, 3, 1)),
        records[:, layout.label_bytes - 1],
        _class_names(layout, files.get(layout.names_file), place),
        name=name,
        split=split,
        image_size=image_size,
        place=str(place),
    )


def stl10(name: str, layout: Binary, dir: pathlib.Path, split: str, image_size: int = 0) -> Source | None:
    """Return a split of STL-10 from its binary files, in their order, or None if they are not there.

    Looked for like CIFAR. Images are three planes of 96 x 96 pixels, column after column; labels are 1 .. 10.

    Raises:
      InputError: a file is missing or cut off, or a label is out of range.
    """
    read = _split_files(name, layout, dir, split)
    if read is None:
        return None
    place, (images_file, labels_file), files = read
    labels, size = np.frombuffer(files[labels_file], np.uint8), 3 * 96 * 96
    if len(files[images_file]) != size * len(labels) or not len(labels):
        raise InputError(
            f"{place}: {images_file} has {len(files[images_file])} bytes and {labels_file} {len(labels)}: expected "
            f"{size} bytes an image and one a label; one of them is cut off, unpack the archive again"
        )
    columns = np.frombuffer(files[images_file], np.uint8).reshape(-1, 3, 96, 96)
    return from_arrays(
        np.ascontiguousarray(columns.transpose(0, 3, 2, 1)),
        labels.astype(np.int32) - 1,
        _class_names(layout, files.get(layout.names_file), place),
        name=name,
        split=split,
        image_size=image_size,
        place=str(place),
    )


def svhn(name: str, dir: pathlib.Path, split: str, image_size: int = 0) -> Source | None:
    """Return a split of SVHN (cropped digits) from `train_32x32.mat`, `test_32x32.mat`, or None if it is not there.

    Raises:
      InputError: the file is cut off, or its arrays are not X[32, 32, 3, N] and labels 1..10, 10 being the digit 0.
    """
    file = f"{split}_32x32.mat"
    place = next((path for path in (dir / file, dir / "svhn" / file) if path.is_file()), None)
    if place is None:
        return None
    images, labels = matlab.read(place, "X", "y")
    labels = labels.reshape(-1)
    if images.ndim != 4 or images.shape[2] != 3 or images.shape[3] != len(labels):
        raise InputError(f"{place} holds X {images.shape} and y {labels.shape}: expected X [32, 32, 3, N] and y [N, 1]")
    if labels.min() < 1 or labels.max() > 10:
        raise InputError(f"{place} has labels {labels.min()} to {labels.max()}: expected 1 to 10, where 10 is the 0")
    return from_arrays(
        np.ascontiguousarray(images.transpose(3, 0, 1, 2)),
        labels.astype(np.int32) % 10,
        [str(k) for k in range(10)],
        name=name,
        split=split,
        image_size=image_size,
        place=str(place),
    )


def _split_files(
    name: str, layout: Binary, dir: pathlib.Path, split: str
) -> tuple[pathlib.Path, tuple[str, ...], dict[str, bytes]] | None:
    """Return where a layout lies, the files of a split and what is in them and in the file of names, or None."""
    place = _find(name, layout, dir)
    if place is None:
        return None
    wanted = layout.files.get(split)
    if wanted is None:
        raise InputError(f"{name} has no split {split!r}: expected one of {', '.join(layout.files)}")
    return place, wanted, _read_members(place, (*wanted, layout.names_file), optional={layout.names_file})


def _find(name: str, layout: Binary, dir: pathlib.Path) -> pathlib.Path | None:
    """Return the folder that holds one of the files, else the archive, else None."""
    files = [file for split in layout.files.values() for file in split]
    for folder in (dir / layout.folder, dir / name / layout.folder, dir):
        # test.bin and train.bin are names that other data may have, too: `dir` itself must look like the whole set
        needed = all if folder == dir else any
        if needed((folder / file).is_file() for file in files):
            return folder
    archives = (dir / layout.archive, dir / name / layout.archive)
    return next((path for path in archives if path.is_file()), None)


def _read_members(place: pathlib.Path, files: tuple[str, ...], optional: set[str]) -> dict[str, bytes]:
    """Read files of a folder, or of a .tar.gz in memory: nothing is extracted to disk."""
    if place.is_dir():
        found = {file: (place / file).read_bytes() for file in files if (place / file).is_file()}
    else:
        found = {}
        try:
            with tarfile.open(place, "r:gz") as archive:
                for member in archive:
                    file = pathlib.PurePosixPath(member.name).name
                    if file in files and member.isfile():
                        content = archive.extractfile(member)
                        found[file] = content.read() if content else b""
        except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
            raise InputError(f"{place} cannot be read as .tar.gz ({error}): it is cut off; fetch it again") from error
    missing = [file for file in files if file not in found and file not in optional]
    if missing:
        raise InputError(f"{place} lacks {missing[0]}: expected {', '.join(files)}; unpack the archive again")
    return found


def _class_names(layout: Binary, content: bytes | None, place: pathlib.Path) -> list[str]:
    if content is None:
        return list(layout.class_names)
    names = content.decode("utf-8", "replace").split()
    if len(names) != len(layout.class_names):
        raise InputError(f"{place}/{layout.names_file} has {len(names)} classes: expected {len(layout.class_names)}")
    return names
