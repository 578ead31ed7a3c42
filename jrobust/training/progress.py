"""Progress of a run: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any, TextIO

# What a line shows, if the record has it.
SHOWN = ("loss", "accuracy", "learning_rate")


class Progress:
    """Shows how far a run is, with an estimate of the time left.

    Args:
      total: number of steps.
      step: where it starts.
      stream: where to write; a terminal gets a bar.
    """

    def __init__(self, total: int, *, step: int = 0, stream: TextIO | None = None):
        self._stream = stream or sys.stdout
        self._total = total
        self._bar: Any = None
        if self._stream.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
            from rich.progress import Progress as Bar

            # The time left is ours: rich would count compilation and evaluation as steps.
            columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"))
            self._bar = Bar(*columns, console=Console(file=self._stream))
            self._task = self._bar.add_task("", total=total, completed=step)
            self._bar.start()

    def advance(self, step: float) -> None:
        """Move the bar."""
        if self._bar is not None:
            self._bar.update(self._task, completed=step)

    def record(self, step: int, values: Mapping[str, float], *, images_per_second: float, seconds_left: float) -> None:
        """Show one record of metrics."""
        parts = [f"{name} {values[name]:.4g}" for name in SHOWN if name in values]
        parts += [f"{images_per_second:.0f} images/s", f"{duration(seconds_left)} left"]
        if self._bar is not None:
            self._bar.update(self._task, completed=step, description=", ".join(parts))
        else:
            self.line(f"step {step}/{self._total}: {', '.join(parts)}")

    def line(self, text: str) -> None:
        """Write a line (above the bar)."""
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False)
        else:
            print(text, file=self._stream, flush=True)

    def close(self) -> None:
        """Leave the terminal in order."""
        if self._bar is not None:
            self._bar.stop()


def duration(seconds: float) -> str:
    """Return a duration in words.

    >>> duration(3.21), duration(75), duration(7380)
    ('3.2 s', '1 min 15 s', '2 h 3 min')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    if seconds < 3600:
        return f"{int(seconds // 60)} min {int(seconds % 60)} s"
    return f"{int(seconds // 3600)} h {int(seconds % 3600 // 60)} min"
