"""MetaShift's cats and dogs, indoors and outdoors (Liang and Zou, ICLR 2022), as the authors' script writes them.

    MetaShift-subpopulation-shift/train/{cat,dog}/<id>.jpg
    MetaShift-subpopulation-shift/val_out_of_domain/{cat,dog}/<id>.jpg     the test set: 144 images of each group
    MetaShift-subpopulation-shift/imageID_to_group.pkl                     {id: ["cat(indoor)"], ...}; or groups.json

Cats are aligned indoors, dogs outdoors. The script makes one ratio at a time, by its NUM_MINORITY_IMG: 10, 50 and 100
conflicting of 850 images a class are called 1, 6 and 12 percent. To keep several, name the folders
MetaShift-subpopulation-shift-1pct and so on. The pickle is read without unpickling.
"""

from __future__ import annotations

import json
import pathlib
from typing import Any

import numpy as np

from jrobust import pickled
from jrobust.data import biases
from jrobust.data.dfa_folders import expect_counts, ratio_folder
from jrobust.data.folders import FileSource, image_files_below
from jrobust.data.images import Fit
from jrobust.data.source import Source
from jrobust.errors import InputError

CLASSES, PLACES = ("cat", "dog"), ("indoor", "outdoor")
GROUPS = {f"{c}({p})": (label, bias) for label, c in enumerate(CLASSES) for bias, p in enumerate(PLACES)}
FOLDER = "MetaShift-subpopulation-shift"
FOLDERS = {"train": "train", "test": "val_out_of_domain"}
GROUP_FILES = ("groups.json", "imageID_to_group.pkl")
MINORITY = {1: 10, 6: 50, 12: 100}  # conflicting images a class for each published ratio
TRAINING, TEST = 850, 144  # images a class; test images a group


def open_metashift(
    name: str, dir: pathlib.Path, part: str, image_size: int = 0, *, ratio: float, fit: str
) -> Source | None:
    """Return a split, cats first, in the order of the file names; None if it is not there.

    Looked for in `dir` and `dir`/MetaShift, first with the ratio behind the folder's name.

    Args:
      name: what records call the set.
      dir: the data folder.
      part: "train" or "test".
      image_size: side of the square to resize to; 0 keeps the size.
      ratio: percentage of conflicting training images, rounded; the folder must have it.
      fit: how a picture becomes a square: "squeeze" or "crop".

    Raises:
      InputError: there is no such split, a folder or the file of groups is missing, an image is of no group or of one
        of another class, or the training images have another ratio.
    """
    biases.check_ratio(ratio)
    if part not in FOLDERS:
        raise InputError(f"{name} has no {part} split: expected one of {', '.join(FOLDERS)}")
    names = (f"{FOLDER}-{ratio_folder(ratio)}", FOLDER)
    places = [base / folder for folder in names for base in (dir, dir / "MetaShift")]
    root = next((place for place in places if place.is_dir()), None)
    if root is None:
        return None
    groups = _groups(root)
    paths: list[pathlib.Path] = []
    pairs: list[tuple[int, int]] = []
    for label, class_name in enumerate(CLASSES):
        folder = root / FOLDERS[part] / class_name
        if not folder.is_dir():
            raise InputError(f"{folder} does not exist: expected {{train,val_out_of_domain}}/{{cat,dog}}/ in {root}")
        for path in image_files_below(folder):
            group = groups.get(path.stem)
            if group is None or GROUPS[group][0] != label:
                raise InputError(
                    f"{path} is of group {group}: expected one of {class_name}(indoor), {class_name}(outdoor) in the "
                    f"list of groups in {root}"
                )
            paths.append(path)
            pairs.append(GROUPS[group])
    source = FileSource(
        name,
        part,
        CLASSES,
        paths,
        [label for label, _ in pairs],
        biases=np.array([bias for _, bias in pairs], np.int64),
        bias_names=PLACES,
        image_size=image_size,
        fit=Fit(fit),
        place=root,
    )
    if part == "test":
        expect_counts(source, (2 * TEST, 2 * TEST))
    else:
        _check_ratio(source, ratio)
    return source


def _check_ratio(source: FileSource, ratio: float) -> None:
    """Raise if the folder was made with another ratio; say in one line if it is not of the published size."""
    assert source.biases is not None
    conflicting = int(np.sum(source.biases != source.labels))
    found = 100 * conflicting / len(source)
    if abs(found - ratio) > 0.5:
        raise InputError(
            f"{source.place} has {conflicting} conflicting of {len(source)} training images, {found:.1f} %, but "
            f"data.options.ratio is {ratio:g}: set it to that, or run the authors' script with NUM_MINORITY_IMG = "
            f"{round(TRAINING * ratio / 100)} (10, 50, 100 for the published 1, 6, 12)"
        )
    minority = MINORITY.get(round(ratio))
    if minority is not None:
        expect_counts(source, (2 * (TRAINING - minority), 2 * minority))


def _groups(root: pathlib.Path) -> dict[str, str]:
    """Return the group of each image id.

    Raises:
      InputError: there is no file of groups, it cannot be read or is of another form.
    """
    path = next((root / file for file in GROUP_FILES if (root / file).is_file()), None)
    if path is None:
        raise InputError(f"{root} has no list of groups: expected {' or '.join(GROUP_FILES)}")
    if path.suffix == ".json":
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(f"{path} cannot be read as JSON ({error}): expected {{id: group}}") from error
    else:
        content = pickled.read(path)
    if not isinstance(content, dict):
        raise InputError(f"{path} holds {type(content).__name__}: expected a dict of an image id to its group")
    if content and set(content) <= set(GROUPS):  # the other way round, as the authors' text describes it
        content = {image: group for group, images in content.items() for image in _listed(images)}
    groups = {}
    for image, value in content.items():
        listed = [group for group in _listed(value) if isinstance(group, str) and group in GROUPS]
        if len(listed) != 1:
            raise InputError(f"{path} has {value!r:.80} for image {image}: expected one of {', '.join(GROUPS)}")
        groups[str(image)] = listed[0]
    return groups


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple | set | frozenset) else [value]
