"""Biased Action Recognition (BAR): six actions at their typical places in training, at other places in the test set.

BAR/train/<action>_<n>.jpg and BAR/test/<action>_<n>.jpg, as its authors distribute it (.png is read, too). All of their
training images are aligned and all of their test images conflicting; no file says where the latter were taken.
"""

from __future__ import annotations

import math
import pathlib
from typing import NamedTuple

import numpy as np

from jrobust.data import bar_lists, biases
from jrobust.data.folders import FileSource, image_files_below
from jrobust.data.images import Fit
from jrobust.data.source import Source
from jrobust.data.terminal import notice
from jrobust.errors import InputError, unknown

ACTIONS = ("climbing", "diving", "fishing", "racing", "throwing", "pole vaulting")
PLACES = ("rock wall", "underwater", "water surface", "paved track", "playing field", "sky", "elsewhere")
COUNTS = {"train": 1941, "test": 654}  # of the distributed folders
VALIDATION = 0.2
RULES = ("seeded", "listed")


class Images(NamedTuple):
    """Files with the class that their name tells, in the order of the names."""

    paths: list[pathlib.Path]
    labels: np.ndarray


def open_bar(
    name: str,
    root: pathlib.Path,
    part: str,
    image_size: int = 0,
    *,
    ratio: float,
    seed: int,
    split: str,
    fit: str,
) -> Source | None:
    """Return a split of BAR with some conflicting images in training, or None if `root` is not there.

    With the rule "seeded", of each class with n training images floor(n ratio / 100) images are moved from the test to
    the training folder: 17 for 1 percent and 94 for 5, as published. Of the others floor(n / 5) are for validation
    (stratified by class), so that 510 and 448 remain for the test. Which ones is decided by the seed; what a smaller
    ratio moves is among what a larger one moves. With a ratio of 0 none is moved.

    With the rule "listed" a list in `root` says which image is where; see `bar_lists`.

    The bias is the place: that of class k has number k, "elsewhere" is the last. Training has the aligned images in the
    order of their names, then the conflicting ones.

    Args:
      name: what records call the set.
      root: the folder with train/ and test/.
      part: "train", "validation" or "test".
      image_size: side of the square to resize to; 0 keeps the size.
      ratio: in percent; see above.
      seed: see above.
      split: the rule, "seeded" or "listed".
      fit: how a picture becomes a square: "squeeze" or "crop".

    Raises:
      InputError: a file is of no action, a class has too few test images, or the list is missing or wrong.
    """
    if split not in RULES:
        raise unknown("data.options.split", split, RULES)
    biases.check_ratio(ratio)
    if not (root / "train").is_dir():
        return None
    aligned, other = _images(root / "train"), _images(root / "test")
    for folder, images in (("train", aligned), ("test", other)):
        if len(images.paths) != COUNTS[folder]:
            notice(f"{root / folder} holds {len(images.paths)} images: the published set has {COUNTS[folder]}")
    if split == "seeded":
        conflicting = seeded(aligned.labels, other.labels, ratio, seed)[part]
        chosen = [(path, label, label) for path, label in zip(*aligned, strict=True)] if part == "train" else []
        chosen += [(other.paths[i], other.labels[i], len(ACTIONS)) for i in conflicting]
    else:
        place = {path: int(k) for path, k in zip(*aligned, strict=True)}
        label = place | {path: int(k) for path, k in zip(*other, strict=True)}
        listed = bar_lists.read(root, ratio, list(label))[part]
        chosen = [(path, label[path], place.get(path, len(ACTIONS))) for path in listed]
    return FileSource(
        name,
        part,
        ACTIONS,
        [path for path, _, _ in chosen],
        [int(k) for _, k, _ in chosen],
        biases=np.array([bias for _, _, bias in chosen], np.int64),
        bias_names=PLACES,
        image_size=image_size,
        fit=Fit(fit),
        place=root,
    )


def seeded(aligned: np.ndarray, other: np.ndarray, ratio: float, seed: int) -> dict[str, np.ndarray]:
    """Return for each split which positions of `other`, the labels of the test folder, are in it.

    Args:
      aligned: the labels of the training folder.
      other: the labels of the test folder.
      ratio: in percent; see `open_bar`.
      seed: see `open_bar`.

    Raises:
      InputError: a class has not enough images in the test folder.
    """
    draw = biases.stream(seed, biases.MOVED)
    moved, rest = [], []
    for k, action in enumerate(ACTIONS):
        members = draw.permutation(np.flatnonzero(other == k))
        count = math.floor(np.sum(aligned == k) * ratio / 100 + 1e-9)
        if count and count >= len(members):
            raise InputError(
                f"data.options.ratio {ratio:g} takes {count} of {len(members)} test images of {action!r} into "
                "training: lower it, so that some remain"
            )
        moved.append(np.sort(members[:count]))
        rest.append(members[count:])
    left = np.sort(np.concatenate(rest))
    draw = biases.stream(seed, biases.HELD_OUT)
    validation = np.sort(biases.stratified(other, left, int(VALIDATION * len(left)), draw))
    return {"train": np.concatenate(moved), "validation": validation, "test": np.setdiff1d(left, validation)}


def _images(folder: pathlib.Path) -> Images:
    if not folder.is_dir():
        raise InputError(f"{folder} does not exist: expected train/ and test/ in {folder.parent}")
    paths = image_files_below(folder)
    labels = [_action(path) for path in paths]
    return Images(paths, np.array(labels, np.int64))


def _action(path: pathlib.Path) -> int:
    action = path.stem.rpartition("_")[0]  # "pole vaulting" has a space
    if action not in ACTIONS:
        raise InputError(f"{path} is of no known action: expected <action>_<n> with one of {', '.join(ACTIONS)}")
    return ACTIONS.index(action)
