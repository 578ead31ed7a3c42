"""What a suite leaves behind."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval."""

    value: float


@dataclasses.dataclass
class Record:
    """One suite's result on one subject and data set."""

    suite: str
