"""How fast attacks run, with compilation kept apart."""

from __future__ import annotations

import time
from collections.abc import Hashable, Iterator
from contextlib import contextmanager


class Rate:
    """Counts steps and times them; the first call of every program, which may compile, is not in the rate.

    >>> rate = Rate()
    >>> with rate.timed("pgd", 10): pass
    >>> rate.steps, rate.per_second
    (10, None)
    """

    def __init__(self):
        self.steps = 0
        self._warm_steps = 0
        self._warm_seconds = 0.0
        self._seen: set[Hashable] = set()

    @contextmanager
    def timed(self, program: Hashable, steps: int) -> Iterator[None]:
        """Time the body, which runs `program` for `steps` steps times images and waits for the result."""
        begin = time.perf_counter()
        yield
        self.steps += steps
        if program in self._seen:
            self._warm_steps += steps
            self._warm_seconds += time.perf_counter() - begin
        self._seen.add(program)

    @property
    def per_second(self) -> float | None:
        """Steps per second over all calls but the first of each program; None if there was no other call."""
        return self._warm_steps / self._warm_seconds if self._warm_steps and self._warm_seconds else None
