"""The one exception for what a user can put right."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """Bad input: the message is one line that says what was found, what was expected and what to do.

    The commands print it without a traceback and end with a non-zero status.
    """


def unknown(kind: str, value: object, allowed: Iterable[object], advice: str = "") -> InputError:
    """Return the error for a name that is not one of `allowed`, naming the nearest one.

    >>> unknown("data set", "cifar1", ["cifar10", "svhn"])
    InputError("unknown data set 'cifar1': expected one of cifar10, svhn; did you mean 'cifar10'?")
    """
    names = [str(name) for name in allowed]
    nearest = difflib.get_close_matches(str(value), names, n=1)
    hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
    return InputError(
        f"unknown {kind} {value!r}: expected one of {', '.join(names)}{hint}{'; ' + advice if advice else ''}"
    )
