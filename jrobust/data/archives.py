"""CIFAR-10, CIFAR-100 and SVHN in the binary files that their authors distribute."""

from __future__ import annotations

import pathlib
import tarfile
import zlib
from typing import NamedTuple

import numpy as np

from jrobust.data.source import Source, from_arrays
from jrobust.errors import InputError

CIFAR10_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_PIXELS = 3 * 32 * 32


class Cifar(NamedTuple):
    """A binary layout: per image `label_bytes`, the last one being the label, then red, green and blue planes."""

    folder: str
    archive: str
    files: dict[str, tuple[str, ...]]
    label_bytes: int
    num_classes: int
    names_file: str


CIFAR10 = Cifar(
    "cifar-10-batches-bin",
    "cifar-10-binary.tar.gz",
    {"train": tuple(f"data_batch_{k}.bin" for k in range(1, 6)), "test": ("test_batch.bin",)},
    1,
    10,
    "batches.meta.txt",
)
CIFAR100 = Cifar(
    "cifar-100-binary",
    "cifar-100-binary.tar.gz",
    {"train": ("train.bin",), "test": ("test.bin",)},
    2,  # coarse and fine
    100,
    "fine_label_names.txt",
)


def cifar(name: str, layout: Cifar, dir: pathlib.Path, split: str, image_size: int = 0) -> Source | None:
    """Return a split of a CIFAR set from its binary files, in their order, or None if they are not there.

    Looked for in `dir`, `dir`/<folder> and `dir`/<name>/<folder>, then in the archive itself in `dir` or `dir`/<name>.

    Raises:
      InputError: a file is missing or cut off, or a label is out of range.
    """
    place = _find(name, layout, dir)
    if place is None:
        return None
    wanted = layout.files.get(split)
    if wanted is None:
        raise InputError(f"{name} has no split {split!r}: expected one of {', '.join(layout.files)}")
    files = _read_members(place, (*wanted, layout.names_file), optional={layout.names_file})
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


def svhn(name: str, dir: pathlib.Path, split: str, image_size: int = 0) -> Source | None:
    """Return a split of SVHN (cropped digits) from `train_32x32.mat`, `test_32x32.mat`, or None if it is not there.

    Raises:
      InputError: the file is cut off, or its arrays are not X[32, 32, 3, N] and labels 1..10, 10 being the digit 0.
    """
    file = f"{split}_32x32.mat"
    place = next((path for path in (dir / file, dir / "svhn" / file) if path.is_file()), None)
    if place is None:
        return None
    from scipy.io import loadmat

    try:
        content = loadmat(place, variable_names=["X", "y"])
        images, labels = content["X"], content["y"].reshape(-1)
    except Exception as error:  # the reader raises whatever a damaged byte leads to
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{place} cannot be read as a MATLAB file ({reason}): it is cut off or damaged") from error
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


def _find(name: str, layout: Cifar, dir: pathlib.Path) -> pathlib.Path | None:
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


def _class_names(layout: Cifar, content: bytes | None, place: pathlib.Path) -> list[str]:
    if content is None:
        return list(CIFAR10_NAMES) if layout.num_classes == 10 else [str(k) for k in range(layout.num_classes)]
    names = content.decode("utf-8", "replace").split()
    if len(names) != layout.num_classes:
        raise InputError(f"{place}/{layout.names_file} has {len(names)} classes: expected {layout.num_classes}")
    return names
