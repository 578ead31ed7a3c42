"""Folders in the layout of "Learning Debiased Representation via Disentangled Feature Augmentation" (DFA).

    <root>/<ratio>pct/align/<class>/<id>_<class>_<bias>.png       training images whose bias is their class
    <root>/<ratio>pct/conflict/<class>/<id>_<class>_<bias>.png    training images whose bias is not
    <root>/valid/  or  <root>/<ratio>pct/valid/                   validation images, in class folders or not
    <root>/test/                                                  test images, in class folders or not

The name of a file tells its class and its bias. DFA's program leaves the aligned test images out; here all are read.
"""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from jrobust.data.folders import FileSource, image_files_below
from jrobust.data.source import Source
from jrobust.data.terminal import notice
from jrobust.errors import InputError


def ratio_folder(ratio: float) -> str:
    """Return what the folder of a ratio in percent is called.

    >>> ratio_folder(0.5), ratio_folder(2.0)
    ('0.5pct', '2pct')
    """
    return f"{ratio:g}pct"


def open_folders(
    name: str,
    root: pathlib.Path,
    split: str,
    image_size: int = 0,
    *,
    ratio: float,
    class_names: Sequence[str],
    bias_names: Sequence[str],
    counts: Mapping[str, tuple[int, int]] | None = None,
) -> Source | None:
    """Return a split of a biased set in DFA's layout, in the order of its paths; None if `root` is not there.

    Args:
      name: what records call the set.
      root: the folder of the set.
      split: "train", "validation" or "test".
      image_size: side of the square to resize to; 0 keeps the size.
      ratio: percentage of bias-conflicting training images, which names their folder.
      class_names: of the classes 0, 1, ...
      bias_names: of the values of the bias 0, 1, ...
      counts: aligned and conflicting images expected of a split; another number is said in one line, not refused.

    Raises:
      InputError: the split or the ratio is not there or empty, a file name tells no class and bias, or an image is in
        the wrong one of align and conflict.
    """
    if not root.is_dir():
        return None
    if split == "train":
        folders = [root / ratio_folder(ratio) / part for part in ("align", "conflict")]
    elif split == "validation":
        own = root / ratio_folder(ratio) / "valid"
        folders = [own if own.is_dir() else root / "valid"]
    else:
        folders = [root / "test"]
    for folder in folders:
        if not folder.is_dir():
            ratios = ", ".join(sorted(p.name.removesuffix("pct") for p in root.glob("*pct") if p.is_dir())) or "none"
            raise InputError(f"{folder} does not exist (ratios in {root}: {ratios}): unpack {name} again, or set ratio")
    paths = [path for folder in folders for path in image_files_below(folder)]
    labels, biases = [], []
    for path in paths:
        label, bias = read_name(path, len(class_names), len(bias_names))
        if split == "train" and (label == bias) != path.is_relative_to(folders[0]):
            raise InputError(
                f"{path} has class {label} and bias {bias}: expected them equal in align and different in conflict"
            )
        labels.append(label)
        biases.append(bias)
    source = FileSource(
        name,
        split,
        class_names,
        paths,
        labels,
        biases=biases,
        bias_names=bias_names,
        image_size=image_size,
        place=folders[0] if len(folders) == 1 else folders[0].parent,
    )
    expect_counts(source, (counts or {}).get(split))
    return source


def read_name(path: pathlib.Path, num_classes: int, num_biases: int) -> tuple[int, int]:
    """Return class and bias from a file name <id>_<class>_<bias>.<suffix>.

    Raises:
      InputError: the name is of another form, or a number is out of range.
    """
    fields = path.stem.rsplit("_", 2)  # of the file alone: folders have underscores, too
    numbers = [int(field) for field in fields[1:] if field.isascii() and field.isdecimal()]
    if len(numbers) != 2 or numbers[0] >= num_classes or numbers[1] >= num_biases:
        raise InputError(
            f"{path} does not tell its class and bias: expected a name <id>_<class>_<bias>{path.suffix} with a class "
            f"below {num_classes} and a bias below {num_biases}"
        )
    return numbers[0], numbers[1]


def expect_counts(source: Source, expected: tuple[int, int] | None) -> None:
    """Say in one line if a source has other than the `expected` (aligned, conflicting) images."""
    assert source.biases is not None
    conflicting = int(np.sum(source.biases != source.labels))
    found = (len(source) - conflicting, conflicting)
    if expected is not None and found != expected:
        notice(
            f"{source.name} {source.split} in {source.place} has {found[0]} aligned and {found[1]} conflicting images: "
            f"the published set has {expected[0]} and {expected[1]}"
        )
