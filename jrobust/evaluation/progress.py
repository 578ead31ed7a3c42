"""One line that says how far a suite is and when it will be done."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

PLAIN_SECONDS = 10.0  # between two lines where there is no terminal


@contextmanager
def track(label: str, total: float, enabled: bool = True) -> Iterator[Callable[[float], None]]:
    """Yield `advance(amount)`, amounts in any unit of work that adds up to `total`.

    A bar with elapsed and remaining time on a terminal; elsewhere a line every ten seconds and one at the end.
    """
    if not enabled:
        yield lambda amount: None
        return
    console = Console(stderr=True)
    if not console.is_terminal:
        with _plain(label, total) as advance:
            yield advance
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    remaining = TimeRemainingColumn(compact=True)
    with Progress(*columns, TextColumn("ETA"), remaining, console=console) as bar:
        task = bar.add_task(label, total=total)
        yield lambda amount: bar.advance(task, amount)


@contextmanager
def _plain(label: str, total: float) -> Iterator[Callable[[float], None]]:
    start = last = time.monotonic()
    done = 0.0

    def advance(amount: float) -> None:
        nonlocal done, last
        done += amount
        now = time.monotonic()
        if now - last >= PLAIN_SECONDS and done < total:
            last = now
            left = (now - start) / done * (total - done)
            print(f"{label}: {100 * done / total:.0f} %, {left:.0f} s left", file=sys.stderr, flush=True)

    yield advance
    print(f"{label}: done in {time.monotonic() - start:.1f} s", file=sys.stderr, flush=True)
