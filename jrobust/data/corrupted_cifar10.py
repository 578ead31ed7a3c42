"""Corrupted CIFAR-10: each class goes with one of ten corruptions, but for a few images of the training set.

Class k (airplane, automobile, ..., truck) goes with the k-th of snow, frost, fog, brightness, contrast, spatter,
elastic, jpeg, pixelate, saturate, by default at severity 5 of 5, as in Learning from Failure. The bias of an image is
the number of its corruption. The test set has all corruptions in all classes alike.

The set is built from CIFAR-10 once for each ratio and seed, and kept in the data folder.
"""

from __future__ import annotations

import concurrent.futures
import pathlib

import numpy as np
from PIL import Image

from jrobust.data import archives, biases, counters, tfds_records, tfds_sets
from jrobust.data import corrupted_cifar10_files as files
from jrobust.data.corrupted_cifar10_frost import Frost, computed, photographs
from jrobust.data.corrupted_cifar10_pixels import CORRUPTIONS, SEVERITIES, SIDE, corrupt_stack
from jrobust.data.dfa_folders import open_folders, ratio_folder
from jrobust.data.source import THREADS, Arrays, Source, from_arrays
from jrobust.data.terminal import progress
from jrobust.errors import InputError

VERSION = 1  # of the construction; other pixels or other choices need another one
FOLDER = "corrupted_cifar10"
STREAMS = {"train": counters.CIFAR10_TRAIN, "test": counters.CIFAR10_TEST}
_CHUNK = 256


def open_corrupted_cifar10(
    name: str,
    dir: pathlib.Path,
    split: str,
    image_size: int = 0,
    *,
    ratio: float = 0.5,
    seed: int = 0,
    valid_fraction: float = 0.1,
    severity: int = 5,
    textures: str = "",
) -> Source | None:
    """Return a split, built first if CIFAR-10 is there and it is not; None if neither is.

    Args:
      name: what records call the set.
      dir: the data folder, with CIFAR-10 in it in any layout.
      split: "train"; "validation", a part of CIFAR-10's training images; or "test".
      image_size: side of the square to resize to; 0 keeps 32.
      ratio: percent of bias-conflicting images in each class of the training images.
      seed: decides which images get which corruption, all draws of the corruptions, and the validation images.
      valid_fraction: of the training images, stratified by (class, aligned); the paper's data have about 0.1.
      severity: of all corruptions, 1 to 5.
      textures: a folder with photographs of frost, below `dir` or absolute; empty for computed ice.

    Raises:
      InputError: an option is out of range, CIFAR-10 or the built files are damaged, or they cannot be written.
    """
    biases.check_ratio(ratio)
    if split == "validation" and not valid_fraction:
        raise InputError(f"{name} has no validation split with data.options.valid_fraction=0: set it to 0.1, say")
    if severity not in SEVERITIES:
        raise InputError(f"data.options.severity is {severity}: expected 1 to 5")
    part = "test" if split == "test" else "train"
    frost = photographs(dir / textures) if textures else computed()
    path = _path(dir, part, ratio, seed, severity, frost)
    arrays = files.read(path, VERSION)
    if arrays is None:
        plain = _plain(dir, part)
        if plain is None:
            return None
        arrays = build(plain.arrays(), part, ratio=ratio, seed=seed, severity=severity, frost=frost)
        manifest = describe(arrays, part, ratio=ratio, seed=seed, severity=severity, frost=frost)
        files.write(path, arrays, manifest)
    rows = np.arange(len(arrays["label"]))
    if part == "train":
        held_out = biases.held_out(arrays["label"], arrays["bias"], valid_fraction, seed)
        rows = np.flatnonzero(held_out == (split == "validation"))
    return from_arrays(
        arrays["images"][rows],
        arrays["label"][rows],
        archives.CIFAR10_NAMES,
        name=name,
        split=split,
        biases=arrays["bias"][rows],
        bias_names=CORRUPTIONS,
        image_size=image_size,
        place=str(path),
    )


def open_published(
    name: str, dir: pathlib.Path, split: str, image_size: int = 0, *, ratio: float, **_: object
) -> Source | None:
    """Return a split of the images that the authors of DFA publish, in `dir`/cifar10c; None if that is not there.

    Which images are in which split is theirs: of the options only the ratio matters.

    Raises:
      InputError: see `dfa_folders.open_folders`.
    """
    return open_folders(
        name,
        dir / "cifar10c",
        split,
        image_size,
        ratio=ratio,
        class_names=archives.CIFAR10_NAMES,
        bias_names=CORRUPTIONS,
    )


def is_built(
    dir: pathlib.Path, split: str, *, ratio: float, seed: int, severity: int, textures: str, **_: object
) -> bool:
    """Return whether a split can be loaded without building it."""
    part = "test" if split == "test" else "train"
    frost = photographs(dir / textures) if textures else computed()
    return (dir / "cifar10c").is_dir() or _path(dir, part, ratio, seed, severity, frost).is_file()


def build(
    plain: Arrays,
    part: str,
    *,
    ratio: float,
    seed: int,
    frost: Frost,
    severity: int = 5,
    workers: int = THREADS,
    chunk: int = _CHUNK,
) -> Arrays:
    """Return `images` uint8[N, 32, 32, 3], `label`, `bias` and `index` int32[N], N and order those of CIFAR-10.

    The result is the same for all numbers of workers and chunk sizes: the draws of an image are those of the key
    (seed, part, index).

    Args:
      plain: `image` and `label` of a split of CIFAR-10.
      part: "train", with `ratio` percent conflicting images in each class, or "test", with all corruptions alike.
      ratio: see `open_corrupted_cifar10`; not used for "test".
      seed: see `open_corrupted_cifar10`.
      frost: textures for the second corruption.
      severity: 1 to 5.
      workers: threads.
      chunk: images corrupted at a time.

    Raises:
      InputError: images that are not 32 x 32, or labels that are not those of ten classes.
    """
    images, labels = plain["image"], plain["label"]
    if images.shape[1:] != (SIDE, SIDE, 3) or labels.max() >= len(CORRUPTIONS):
        raise InputError(
            f"CIFAR-10 has images {list(images.shape[1:])} and labels up to {labels.max()}: expected [32, 32, 3] and 9"
        )
    count = len(CORRUPTIONS)
    bias = biases.uniform(labels, count, seed) if part == "test" else biases.correlated(labels, count, ratio, seed)
    chosen = [np.flatnonzero(bias == k) for k in range(count)]
    chunks = [(k, rows[i : i + chunk]) for k, rows in enumerate(chosen) for i in range(0, len(rows), chunk)]
    result = np.empty_like(images)

    def corrupt(task: tuple[int, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        k, rows = task
        rngs = [np.random.RandomState(counters.bits(seed, STREAMS[part], int(i))) for i in rows]
        return rows, corrupt_stack(images[rows], CORRUPTIONS[k], rngs, severity, frost.textures)

    with (
        concurrent.futures.ThreadPoolExecutor(workers) as pool,
        progress(f"building {FOLDER} {part}", len(images)) as advance,
    ):
        for rows, stack in pool.map(corrupt, chunks):
            result[rows] = stack
            advance(len(rows))
    index = np.arange(len(images), dtype=np.int32)
    return {"images": result, "label": labels.astype(np.int32), "bias": bias, "index": index}


def describe(
    arrays: Arrays, part: str, *, ratio: float, seed: int, frost: Frost, severity: int = 5
) -> dict[str, object]:
    """Return the manifest of a built part, all but its checksum."""
    label, bias = arrays["label"], arrays["bias"]
    table = np.zeros((len(CORRUPTIONS),) * 2, int)
    np.add.at(table, (label, bias), 1)
    aligned = int(np.trace(table))
    return {
        "data_set": FOLDER,
        "version": VERSION,
        "part": part,
        "ratio": None if part == "test" else ratio,
        "seed": seed,
        "severity": severity,
        "classes": list(archives.CIFAR10_NAMES),
        "corruptions": list(CORRUPTIONS),
        "frost": frost.origin,
        "counts": {
            "images": len(label),
            "aligned": aligned,
            "conflicting": len(label) - aligned,
            "class_by_corruption": table.tolist(),
        },
    }


def export(root: pathlib.Path, source: Source, ratio: float) -> None:
    """Write a split as PNG files in the folders of `dfa_folders`, with positions in the split as ids.

    Raises:
      InputError: they cannot be written.
    """
    assert source.biases is not None
    own = root / ratio_folder(ratio)
    top = {"test": root / "test", "validation": own / "valid"}.get(source.split)
    arrays = source.arrays()
    try:
        with progress(f"writing {source.name} {source.split}", len(source)) as advance:
            for i, (image, label, bias) in enumerate(zip(arrays["image"], source.labels, source.biases, strict=True)):
                folder = (top or own / ("align" if label == bias else "conflict")) / str(label)
                folder.mkdir(parents=True, exist_ok=True)
                Image.fromarray(image).save(folder / f"{i:05d}_{label}_{bias}.png")
                advance(1)
    except OSError as error:
        raise InputError(f"cannot write {root} ({error.strerror}): choose another folder") from error


def _path(dir: pathlib.Path, part: str, ratio: float, seed: int, severity: int, frost: Frost) -> pathlib.Path:
    # the test set is shared by the ratios
    which = part if part == "test" else ratio_folder(ratio)
    strength = "" if severity == 5 else f"-severity{severity}"
    return dir / FOLDER / f"{which}-seed{seed}{strength}{frost.tag}.npz"


def _plain(dir: pathlib.Path, part: str) -> Source | None:
    """Return a split of CIFAR-10 in the first layout that is there."""
    source = archives.cifar("cifar10", archives.CIFAR10, dir, part)
    if source is None:
        source = tfds_records.open_prepared("cifar10", dir, part, prepared=tfds_sets.CIFAR10)
    return source
