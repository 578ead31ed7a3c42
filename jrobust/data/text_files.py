"""Lines of text files that come with a data set."""

from __future__ import annotations

import pathlib

from jrobust.errors import InputError


def lines(path: pathlib.Path) -> list[str]:
    """Return the lines that are not empty.

    Raises:
      InputError: the file is missing or no text.
    """
    try:
        return [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read ({error}): unpack the data set again") from error
