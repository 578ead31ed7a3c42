"""Prepare data sets, or check those that are there.

    python launch/prepare_data.py cifar10 svhn --dir=DATA
    python launch/prepare_data.py cub200 --dir=DATA --check
    python launch/prepare_data.py corrupted_cifar10 --dir=DATA --ratio=0.5 --seed=0

A data set that lies in DATA is checked: images in each split, classes, shape, and 100 images of each split are decoded.
One that is not there is prepared through TFDS where TFDS has it (CIFAR-10, SVHN, DTD and others: this downloads, and
needs TensorFlow once). For the others the authors' archive is named, and where to put it. With --check nothing is
prepared.

Corrupted CIFAR-10 is built from CIFAR-10, which takes a minute, and kept in DATA. With --export=FOLDER its splits are
also written as PNG files in the folders <ratio>pct/{align,conflict,valid} and test.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import pathlib
import sys
from collections.abc import Mapping
from typing import Any, NoReturn

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # TensorFlow's remarks on start-up; errors still show

import numpy as np
from rich.console import Console
from rich.table import Table

from jrobust.data import load
from jrobust.data.corrupted_cifar10 import export
from jrobust.data.registry import DATA_SETS, FORMS, DataSet
from jrobust.data.source import Source
from jrobust.errors import InputError, unknown

DECODED = 100  # images of a split that the check decodes


class Parser(argparse.ArgumentParser):
    """Wrong arguments are one line, too."""

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing the usage."""
        raise InputError(f"{message}: write python launch/prepare_data.py DATASET ... --dir=DIR [--check]")


def main(arguments: list[str] | None = None) -> None:
    """Prepare or check each data set named; raise InputError at the first that fails."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = ", ".join((*DATA_SETS, *FORMS))
    parser.add_argument("datasets", nargs="+", metavar="DATASET", help=names)
    parser.add_argument("--dir", default="", help="the data folder, the same for all data sets")
    parser.add_argument("--check", action="store_true", help="only check what is there")
    parser.add_argument("--export", default="", metavar="FOLDER", help="of corrupted_cifar10: write PNG files there")
    settings = {option: value for entry in DATA_SETS.values() for option, value in entry.options.items()}
    for option, default in settings.items():
        takers = ", ".join(name for name, entry in DATA_SETS.items() if option in entry.options)
        parser.add_argument(f"--{option}", type=type(default), help=f"option of {takers}")
    options = parser.parse_args(arguments)
    given = {option: getattr(options, option) for option in settings if getattr(options, option) is not None}
    for name in options.datasets:
        if name not in DATA_SETS and not is_form(name):
            raise unknown("data set", name, (*DATA_SETS, *FORMS))
        takes = DATA_SETS[name].options if name in DATA_SETS else {}
        for option in given:
            if option not in takes:
                raise InputError(
                    f"{name} takes no --{option}: leave it out" + (f"; it takes {', '.join(takes)}" if takes else "")
                )
        if options.export and name != "corrupted_cifar10":
            raise InputError(f"--export writes corrupted_cifar10, and {name} is another data set: leave it out")
    console = Console()
    for name in options.datasets:
        if options.check:
            require_built(name, options.dir, given)
        try:
            check(name, options.dir, given, console)
        except InputError:
            if options.check or is_present(name, options.dir, given):
                raise
            prepare(name, options.dir, console)
            check(name, options.dir, given, console)
        if options.export:
            for split in splits(name, given):
                export(pathlib.Path(options.export), load(name, split, options.dir, **given), ratio(name, given))


def splits(name: str, options: Mapping[str, Any]) -> list[str]:
    """Return the splits that a data set has with these options."""
    every = list(DATA_SETS[name].counts) if name in DATA_SETS else ["train", "test"]
    return [split for split in every if split != "validation" or options.get("valid_fraction") != 0]


def ratio(name: str, options: Mapping[str, Any]) -> float:
    """Return the percentage of bias-conflicting training images."""
    return options.get("ratio", DATA_SETS[name].options["ratio"])


def require_built(name: str, dir: str, options: Mapping[str, Any]) -> None:
    """Raise InputError if loading the data set would build it."""
    entry = DATA_SETS.get(name)
    if entry is None or entry.is_built is None or not dir:
        return
    root = pathlib.Path(dir).expanduser()
    for split in splits(name, options):
        if not entry.is_built(root, split, **{**entry.options, **options}):
            raise InputError(f"{name} {split} is not built in {dir} with these options: run it without --check")


def is_form(name: str) -> bool:
    """Return whether the name is of a form such as image_folder:PATH."""
    form, colon, rest = name.partition(":")
    return bool(colon and rest) and form in {f.partition(":")[0] for f in FORMS}


def is_present(name: str, dir: str, options: Mapping[str, Any]) -> bool:
    """Return whether the data set cannot be fetched, or lies in the folder in some layout, be it damaged."""
    if name not in DATA_SETS or not dir:
        return True
    root = pathlib.Path(dir).expanduser()
    if not root.is_dir():
        return False
    for layout in DATA_SETS[name].layouts:
        try:
            settings = {**DATA_SETS[name].options, **options}
            if layout.open(name, root, next(iter(DATA_SETS[name].counts)), 0, **settings) is not None:
                return True
        except InputError:
            return True
    return False


def prepare(name: str, dir: str, console: Console) -> None:
    """Prepare a data set through TFDS in its array_record format.

    Raises:
      InputError: TFDS does not have it, TensorFlow is missing, or it failed; with the files to fetch by hand.
    """
    entry = DATA_SETS[name]
    by_hand = f"fetch {' and '.join(entry.fetch)} into {dir} and {entry.unpack}; then run this command again"
    if not entry.tfds:
        raise InputError(f"{name} was not found in {dir} and TFDS cannot prepare it: {by_hand}")
    if importlib.util.find_spec("tensorflow") is None:
        raise InputError(
            f"{name} was not found in {dir}; to prepare it through TFDS needs TensorFlow: run `pip install "
            f"'jrobust[prepare]'` (in this folder: `pip install '.[prepare]'`); or without it {by_hand}"
        )
    import tensorflow_datasets as tfds

    console.print(
        f"preparing {name} through TFDS in {dir}/{entry.tfds.partition(':')[0]} (downloads the authors' files)"
    )
    try:
        root = pathlib.Path(dir).expanduser()
        tfds.builder(entry.tfds, data_dir=str(root), file_format="array_record").download_and_prepare()
    except Exception as error:  # network, disk and TensorFlow: anything
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(f"TFDS could not prepare {name} ({reason}); {by_hand}") from error


def check(name: str, dir: str, options: Mapping[str, Any], console: Console) -> None:
    """Print a table of what is there.

    Raises:
      InputError: a split is missing, or something in it is damaged.
    """
    entry = DATA_SETS.get(name)
    biased = entry is not None and "ratio" in entry.options
    table = Table("split", "images", *(["conflicts"] if biased else []), "classes", "images a class", "shape", "remark")
    places = []
    for split in splits(name, options):
        fixed = entry is not None and all(entry.image_shape)
        # images of all sizes can only be read as squares
        source = load(name, split, dir, image_size=0 if fixed else 64, **options)
        for i in np.unique(np.linspace(0, len(source) - 1, DECODED).astype(int)):
            source[int(i)]
        counts = np.bincount(source.labels, minlength=len(source.class_names))
        shape = "x".join(map(str, source.image_shape)) if fixed else "varies"
        table.add_row(
            split,
            str(len(source)),
            *([conflicts(source)] if biased else []),
            str(len(source.class_names)),
            f"{counts.min()} to {counts.max()}",
            shape,
            remark(source, entry, options),
        )
        places.append(source.place)
    console.print(f"{name}: read from {' and '.join(dict.fromkeys(places))}", soft_wrap=True, highlight=False)
    console.print(table)


def conflicts(source: Source) -> str:
    """Return the number of bias-conflicting images; of a set that has no bias with these options, nothing."""
    return "" if source.biases is None else str(np.sum(source.biases != source.labels))


def remark(source: Source, entry: DataSet | None, options: Mapping[str, Any]) -> str:
    """Return how the split differs from the official one, or "complete"; for a user's own data nothing."""
    if entry is None:
        return ""
    expected = entry.counts[source.split]
    differences = []
    if len(source) != expected and not options:  # other options may make splits of other sizes
        differences.append(f"{len(source)} of {expected} images")
    classes = entry.classes_of(**{**entry.options, **options}) if entry.classes_of else entry.num_classes
    if len(source.class_names) != classes:
        differences.append(f"{len(source.class_names)} of {classes} classes")
    if all(entry.image_shape) and source.image_shape != entry.image_shape:
        differences.append(f"shape should be {'x'.join(map(str, entry.image_shape))}")
    return "not the official set: " + ", ".join(differences) if differences else "complete"


if __name__ == "__main__":
    try:
        main()
    except (InputError, OSError) as error:
        sys.exit(f"error: {' '.join(str(error).split())}")
    except KeyboardInterrupt:
        sys.exit(130)
