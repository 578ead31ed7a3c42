"""Arrays in MATLAB files, as scipy reads them."""

from __future__ import annotations

import pathlib

import numpy as np

from jrobust.errors import InputError


def read(path: pathlib.Path, *names: str, squeeze: bool = False) -> list[np.ndarray]:
    """Return the arrays of these names, with `squeeze` without sides of length 1, down to those of structures.

    Raises:
      InputError: the file is missing, damaged or lacks one of them.
    """
    from scipy.io import loadmat

    try:
        content = loadmat(path, variable_names=list(names), squeeze_me=squeeze)
        return [np.atleast_1d(content[name]) for name in names]
    except Exception as error:  # the reader raises whatever a damaged byte leads to
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(
            f"{path} cannot be read as a MATLAB file with {' and '.join(names)} ({reason}): it is missing, cut off or "
            "damaged"
        ) from error
