"""The time that training takes, without what is not training."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator


class Clock:
    """The time of training steps, without compilation, evaluation and saving."""

    def __init__(self, step: int):
        self.seconds = self.compile_seconds = 0.0
        self._step = step
        self._since = time.perf_counter()

    @contextlib.contextmanager
    def compiling(self) -> Iterator[None]:
        """Time the compilation; the first lap starts at its end."""
        start = time.perf_counter()
        yield
        self._since = time.perf_counter()
        self.compile_seconds = self._since - start

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Leave out the time of what happens inside."""
        start = time.perf_counter()
        yield
        self._since += time.perf_counter() - start

    def lap(self, step: int, batch_size: int, total: int) -> dict[str, float]:
        """Return the rates since the last lap; the device must have finished the steps."""
        now = time.perf_counter()
        seconds, steps = now - self._since, step - self._step
        self.seconds += seconds
        self._since, self._step = now, step
        return {
            "seconds": round(self.seconds, 3),
            "step_seconds": round(seconds / steps, 6),
            "images_per_second": round(steps * batch_size / seconds, 1),
            "seconds_left": round((total - step) * seconds / steps, 1),
        }
