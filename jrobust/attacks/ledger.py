"""Which rows of an attack are still to be run, and how they are laid out in batches: the host's side of the pool."""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax
import numpy as np


@dataclasses.dataclass(frozen=True)
class Plan:
    """How rows are laid out in batches; changes no outcome.

    Attributes:
      batch_size: the slots of the largest batch, a multiple of the number of devices.
      segment: iterations between two looks at the outcomes; more than one are a rolled loop.
      compact: whether rows leave, are dropped and replaced; otherwise every batch runs to its end, for comparisons.
      shrink: whether few rows go to a smaller batch: as soon as they fit ("always"), never, or where what it saves is
        more than what compiling another program costs ("measured").
      mesh: devices to lay batches over, along its first axis.
    """

    batch_size: int = 256
    segment: int = 10
    compact: bool = True
    shrink: Literal["always", "measured", "never"] = "measured"
    mesh: jax.sharding.Mesh | None = None

    def bucket(self, rows: int) -> int:
        """Return the smallest batch for `rows` rows: devices * 2**k slots, at most `batch_size`.

        >>> [Plan(batch_size=100).bucket(rows) for rows in (1, 3, 40, 65, 1000)]
        [1, 4, 64, 100, 100]
        """
        size = self.mesh.shape[self.mesh.axis_names[0]] if self.mesh is not None else 1
        while size < rows:
            size *= 2
        return min(size, self.batch_size)

    @property
    def sharding(self) -> jax.sharding.NamedSharding | None:
        """The layout of a batch."""
        if self.mesh is None:
            return None
        return jax.sharding.NamedSharding(self.mesh, jax.sharding.PartitionSpec(self.mesh.axis_names[0]))


class Costs:
    """What one program costs at each batch size: seconds of its first segment, and of the fastest later one.

    >>> costs = Costs()
    >>> for seconds in (10.0, 1.0):
    ...     warm = costs.measured(64, seconds)
    >>> costs.best(16, most=64, segments=8), costs.best(16, most=64, segments=80)
    (64, 16)
    """

    def __init__(self) -> None:
        self._first: dict[int, float] = {}
        self._later: dict[int, float] = {}

    def measured(self, size: int, seconds: float) -> bool:
        """Enter a measurement; return whether it was not the first, which may have compiled the program."""
        if size not in self._first:
            self._first[size] = seconds
            return False
        self._later[size] = min(seconds, self._later.get(size, seconds))
        return True

    def best(self, natural: int, *, most: int, segments: float) -> int:
        """Return the size from `natural` to `most` at which so many segments are done first, compilation included.

        A segment of a size that was not met is taken to cost in proportion to the size, and its compilation as much as
        the dearest one so far.
        """
        known = {size for size in self._first if natural <= size <= most}
        if not self._later:
            return min(known, default=natural)
        near = min(self._later, key=lambda size: abs(size - natural))
        compiling = max(self._first[size] - self._later[size] for size in self._later)

        def seconds(size: int) -> float:
            segment = self._later.get(size, self._later[near] * size / near)
            return segments * segment + (0 if size in self._first else compiling)

        return min(known | {natural}, key=lambda size: (seconds(size), size))


class Ledger:
    """Which rows are still to be run: the host's book of one attack on N images with V variants.

    An image's result is that of its lowest variant that breaks it. So when a variant breaks an image the higher ones
    are dropped, and lower ones that are under way go on: whose result is kept does not depend on which was faster.

    Args:
      attacked: bool[N], the images that are attacked at all.
      finished: bool[V, N], rows that have run; written to.
      found: int32[N], the lowest variant that broke the image, V or more for none; written to.
      drop: whether higher variants of broken images are dropped.
    """

    def __init__(self, attacked: np.ndarray, finished: np.ndarray, found: np.ndarray, *, drop: bool = True):
        self.finished, self.found, self.drop = finished, found, drop
        self._waiting = attacked & ~finished

    def needed(self, variants: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """Return which of these rows are worth going on with."""
        open_rows = ~self.finished[variants, positions]
        return open_rows & (variants < self.found[positions]) if self.drop else open_rows

    def waiting(self) -> int:
        """Return how many rows have not been taken and are needed."""
        if self.drop:
            self._waiting &= np.arange(len(self.finished))[:, None] < self.found
        return int(np.count_nonzero(self._waiting))

    def take(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Take at most `count` rows, the lowest variants first; return their variants and positions."""
        self.waiting()
        variants, positions = np.unravel_index(np.flatnonzero(self._waiting)[:count], self._waiting.shape)
        self._waiting[variants, positions] = False
        return variants.astype(np.int32), positions.astype(np.int32)

    def settle(self, variants: np.ndarray, positions: np.ndarray, success: np.ndarray) -> None:
        """Enter rows that have run."""
        self.finished[variants, positions] = True
        np.minimum.at(self.found, positions[success], variants[success].astype(self.found.dtype))
