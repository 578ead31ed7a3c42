"""One self-contained HTML page per run."""

from __future__ import annotations

import os
import pathlib


def write(workdir: str | os.PathLike) -> pathlib.Path:
    """Write WORKDIR/report/index.html and its figures as PNG from the run's result files; return the page's path."""
    raise NotImplementedError
