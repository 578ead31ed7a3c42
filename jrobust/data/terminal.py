"""What reading data says on the terminal."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

LONG = 2000  # images from which on reading a whole split is announced


def notice(text: str) -> None:
    """Print one line about data that can be used but are not what was expected."""
    print(f"note: {text}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def progress(what: str, total: int) -> Iterator[Any]:
    """Yield `advance(n)`: a bar with the time left on a terminal, else one line; nothing for a few images."""
    if total < LONG:
        yield lambda n: None
    elif not sys.stderr.isatty():
        print(f"{what}: {total} images", file=sys.stderr, flush=True)
        yield lambda n: None
    else:
        from rich.console import Console
        from rich.progress import Progress

        with Progress(console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(what, total=total)
            yield lambda n: bar.advance(task, n)
