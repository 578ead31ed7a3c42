"""Data sets of image files whose labels are in MATLAB files: Oxford 102 Flowers and Stanford Cars."""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np

from jrobust.data import matlab
from jrobust.data.folders import FileSource
from jrobust.data.images import SQUEEZE, Fit
from jrobust.data.source import Source
from jrobust.errors import InputError

FLOWERS = ("flowers-102", "flowers102", "oxford_flowers102")
CARS = ("stanford_cars", "cars196")
# as the authors number the species; no file of theirs names them
FLOWERS102_NAMES = (
    *("pink primrose", "hard-leaved pocket orchid", "canterbury bells", "sweet pea", "english marigold"),
    *("tiger lily", "moon orchid", "bird of paradise", "monkshood", "globe thistle", "snapdragon", "colt's foot"),
    *("king protea", "spear thistle", "yellow iris", "globe-flower", "purple coneflower", "peruvian lily"),
    *("balloon flower", "giant white arum lily", "fire lily", "pincushion flower", "fritillary", "red ginger"),
    *("grape hyacinth", "corn poppy", "prince of wales feathers", "stemless gentian", "artichoke", "sweet william"),
    *("carnation", "garden phlox", "love in the mist", "mexican aster", "alpine sea holly", "ruby-lipped cattleya"),
    *("cape flower", "great masterwort", "siam tulip", "lenten rose", "barbeton daisy", "daffodil", "sword lily"),
    *("poinsettia", "bolero deep blue", "wallflower", "marigold", "buttercup", "oxeye daisy", "common dandelion"),
    *("petunia", "wild pansy", "primula", "sunflower", "pelargonium", "bishop of llandaff", "gaura", "geranium"),
    *("orange dahlia", "pink-yellow dahlia?", "cautleya spicata", "japanese anemone", "black-eyed susan"),
    *("silverbush", "californian poppy", "osteospermum", "spring crocus", "bearded iris", "windflower"),
    *("tree poppy", "gazania", "azalea", "water lily", "rose", "thorn apple", "morning glory", "passion flower"),
    *("lotus", "toad lily", "anthurium", "frangipani", "clematis", "hibiscus", "columbine", "desert-rose"),
    *("tree mallow", "magnolia", "cyclamen", "watercress", "canna lily", "hippeastrum", "bee balm", "ball moss"),
    *("foxglove", "bougainvillea", "camellia", "mallow", "mexican petunia", "bromelia", "blanket flower"),
    *("trumpet creeper", "blackberry lily"),
)
_FLOWER_SPLITS = {"train": "trnid", "validation": "valid", "test": "tstid"}


def flowers102(name: str, dir: pathlib.Path, split: str, image_size: int = 0, *, fit: Fit = SQUEEZE) -> Source | None:
    """Return a split of Oxford 102 Flowers in the order of setid.mat, or None if that is not there.

    Images are jpg/image_<5 digits>.jpg.

    Raises:
      InputError: a file is damaged, there is no such split, or a number of an image or a class is out of range.
    """
    root = _find(dir, FLOWERS, "setid.mat")
    if root is None:
        return None
    _check_split(name, split, _FLOWER_SPLITS)
    (ids,) = matlab.read(root / "setid.mat", _FLOWER_SPLITS[split])
    (labels,) = matlab.read(root / "imagelabels.mat", "labels")
    ids, labels = _integers(ids, root / "setid.mat"), _integers(labels, root / "imagelabels.mat")
    strange = next((int(i) for i in ids if not 1 <= i <= len(labels)), None)
    if strange is not None:
        raise InputError(f"{root / 'setid.mat'} has image {strange}: expected 1 to {len(labels)}, as imagelabels.mat")
    return FileSource(
        name,
        split,
        FLOWERS102_NAMES,
        [root / "jpg" / f"image_{i:05d}.jpg" for i in ids],
        labels[ids - 1] - 1,
        image_size=image_size,
        fit=fit,
        place=root,
    )


def stanford_cars(
    name: str, dir: pathlib.Path, split: str, image_size: int = 0, *, fit: Fit = SQUEEZE
) -> Source | None:
    """Return a split of Stanford Cars in the order of its annotations, with boxes, or None if it is not there.

    devkit/cars_meta.mat, devkit/cars_train_annos.mat with cars_train/, and cars_test_annos_withlabels.mat, beside or in
    devkit/, with cars_test/.

    Raises:
      InputError: a file is missing or damaged, there is no such split, or a class is out of range.
    """
    root = _find(dir, CARS, "devkit/cars_meta.mat")
    if root is None:
        return None
    _check_split(name, split, ("train", "test"))
    files: tuple[str, ...] = ("devkit/cars_train_annos.mat",)
    if split == "test":
        files = ("cars_test_annos_withlabels.mat", "devkit/cars_test_annos_withlabels.mat")
    path = next((root / file for file in files if (root / file).is_file()), root / files[0])
    (class_names,) = matlab.read(root / "devkit/cars_meta.mat", "class_names", squeeze=True)
    (rows,) = matlab.read(path, "annotations", squeeze=True)
    corners = ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2")
    missing = [field for field in ("fname", "class", *corners) if field not in (rows.dtype.names or ())]
    if missing:
        raise InputError(f"{path} has no {missing[0]!r}: expected annotations with file names, classes and boxes")
    return FileSource(
        name,
        split,
        [str(class_name) for class_name in class_names],
        [root / f"cars_{split}" / str(file) for file in rows["fname"]],
        _integers(rows["class"], path) - 1,
        boxes=np.stack([_integers(rows[corner], path) for corner in corners], axis=1),
        image_size=image_size,
        fit=fit,
        place=root,
    )


def _find(dir: pathlib.Path, folders: tuple[str, ...], file: str) -> pathlib.Path | None:
    return next((dir / folder for folder in folders if (dir / folder / file).is_file()), None)


def _check_split(name: str, split: str, splits: Any) -> None:
    if split not in splits:
        raise InputError(f"{name} has no split {split!r}: expected {' or '.join(splits)}")


def _integers(array: np.ndarray, path: pathlib.Path) -> np.ndarray:
    try:
        return array.reshape(-1).astype(np.int64)
    except (TypeError, ValueError) as error:
        raise InputError(f"{path} holds a field that is no number ({error}): unpack the data set again") from error
