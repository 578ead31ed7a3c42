"""Lists of which image of BAR is in which split.

For a ratio of p percent the list is dataset<p/100>.json, .txt or .torch (such as dataset0.05.json) in the folder BAR:

    .json    {"train": [path, ...], "validation": [path, ...], "test": [path, ...]}
    .txt     a line for each image: the split, a space, the path
    .torch   the file of IRMCon (Qi et al., ECCV 2022): {"train": [paths, labels], "test": [paths, labels]}

Paths are relative to BAR or to the folder that holds it: train/climbing_0.jpg or BAR/train/climbing_0.jpg; their suffix
may be another one than the file's. Without images for validation these are the first fifth of the listed test images,
as in IRMCon's program. Nothing is ever unpickled.
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Sequence
from typing import Any

from jrobust import pickled
from jrobust.errors import InputError, unknown

SUFFIXES = (".json", ".txt", ".torch")
SPLITS = ("train", "validation", "test")
_VALIDATION = 0.2


def read(root: pathlib.Path, ratio: float, files: Sequence[pathlib.Path]) -> dict[str, list[pathlib.Path]]:
    """Return the files of each split.

    Args:
      root: the folder BAR.
      ratio: in percent.
      files: the images that are there.

    Raises:
      InputError: no list is there, it cannot be read, or it names an image twice or one that is not there.
    """
    stem = f"dataset{ratio / 100:g}"
    places = [root / f"{stem}{suffix}" for suffix in SUFFIXES]
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        raise InputError(
            f"{root} has no list for a ratio of {ratio:g} %: expected {' or '.join(p.name for p in places)}; put it "
            "there, or set data.options.split=seeded"
        )
    listed = _paths(_content(path), path)
    if "validation" not in listed:
        count = int(_VALIDATION * len(listed["test"]))
        listed["validation"], listed["test"] = listed["test"][:count], listed["test"][count:]
    known = {file.relative_to(root).with_suffix("").as_posix(): file for file in files}
    found: dict[str, list[pathlib.Path]] = {}
    seen: set[pathlib.Path] = set()
    for split, entries in listed.items():
        found[split] = []
        for entry in entries:
            file = known.get(_relative(entry, root))
            if file is None:
                raise InputError(
                    f"{path} lists {entry!r}, which is not in {root}: expected train/<name> or test/<name>"
                )
            if file in seen:
                raise InputError(f"{path} lists {entry!r} twice: an image can be in one split only, and once")
            seen.add(file)
            found[split].append(file)
    return found


def _relative(entry: str, root: pathlib.Path) -> str:
    parts = pathlib.PurePosixPath(entry).parts
    return pathlib.PurePosixPath(*(parts[1:] if parts[:1] == (root.name,) else parts)).with_suffix("").as_posix()


def _content(path: pathlib.Path) -> Any:
    if path.suffix == ".torch":
        return pickled.read_torch(path)
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".json":
            return json.loads(text)
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error}): expected a list as text or JSON") from error
    content: dict[str, list[str]] = {}
    for line in filter(None, map(str.strip, text.splitlines())):
        split, _, entry = line.partition(" ")
        content.setdefault(split, []).append(entry.strip())
    return content


def _paths(content: Any, path: pathlib.Path) -> dict[str, list[str]]:
    """Return the paths of each split that is listed."""
    expected = "expected lists of paths for train and test"
    if not isinstance(content, dict):
        raise InputError(f"{path} holds {type(content).__name__}: {expected}")
    listed: dict[str, list[str]] = {}
    for key, value in content.items():
        split = "validation" if key == "valid" else key
        if key == "label_info":  # in IRMCon's files; the labels are those of the names
            continue
        if split not in SPLITS:
            raise unknown(f"split in {path}", key, SPLITS)
        if isinstance(value, list | tuple) and len(value) == 2 and isinstance(value[0], list | tuple):
            value = value[0]
        if not isinstance(value, list | tuple) or not all(isinstance(entry, str) and entry for entry in value):
            raise InputError(f"{path} has no list of paths for {key!r}: {expected}")
        listed[split] = list(value)
    missing = [split for split in ("train", "test") if split not in listed]
    if missing:
        raise InputError(f"{path} lists nothing for {missing[0]!r} (found {', '.join(map(str, content))}): {expected}")
    return listed
