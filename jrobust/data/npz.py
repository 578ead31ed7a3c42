"""Arrays in one .npz file.

    <split>_images   uint8[N, H, W, C] or [N, H, W], or floats in [0, 1]; <split> is train, validation or test
    <split>_labels   integers [N]
    <split>_boxes    optional, [N, 4]: x0, y0, x1, y1 in pixels
    <split>_biases   optional, integers [N]
    <split>_masks    optional, uint8[N, H, W]
    class_names      optional, text [K]

Nothing is ever unpickled.
"""

from __future__ import annotations

import pathlib
import zipfile
import zlib

import numpy as np

from jrobust.data.images import SQUEEZE, Fit
from jrobust.data.source import Source, from_arrays
from jrobust.errors import InputError

_OPTIONAL = ("boxes", "biases", "masks")


def open_npz(name: str, path: pathlib.Path, split: str, image_size: int = 0, *, fit: Fit = SQUEEZE) -> Source:
    """Return the arrays of a split of an .npz file in the layout of this module.

    Raises:
      InputError: the file is cut off or no .npz, holds pickled objects, lacks a key, or its arrays do not fit.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            keys = file.files
            wanted = [f"{split}_images", f"{split}_labels"]
            missing = [key for key in wanted if key not in keys]
            if missing:
                found = ", ".join(keys) or "nothing"
                raise InputError(f"{path} has no array {missing[0]!r}: found {found}; expected {', '.join(wanted)}")
            images, labels = file[wanted[0]], file[wanted[1]]
            optional = {key: file[f"{split}_{key}"] for key in _OPTIONAL if f"{split}_{key}" in keys}
            names = [str(n) for n in file["class_names"]] if "class_names" in keys else None
            if names is None:  # the splits must agree on the number of classes
                every = [file[key] for key in keys if key.endswith("_labels") and file[key].size]
                highest = max((int(array.max()) for array in every if array.dtype.kind in "iu"), default=-1)
                names = [str(k) for k in range(highest + 1)] if highest >= 0 else None
    except InputError:
        raise
    except (
        OSError,
        ValueError,
        EOFError,
        KeyError,
        TypeError,
        AttributeError,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(
            f"{path} cannot be read as an .npz of plain arrays ({reason}): it is cut off, damaged or holds pickled "
            "objects; write it again with numpy.savez"
        ) from error
    return from_arrays(
        images, labels, names, name=name, split=split, image_size=image_size, fit=fit, place=str(path), **optional
    )
