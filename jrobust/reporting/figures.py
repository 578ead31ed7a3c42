"""The look that all figures share."""

from __future__ import annotations

import base64
import contextlib
import pathlib
from collections.abc import Iterator
from typing import Any

# Okabe and Ito's colours, told apart with any colour vision; the order in which series take them.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
STYLE: Any = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.labelsize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#666666",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.8,
    "lines.linewidth": 1.8,
    "lines.markersize": 4.5,
    "legend.frameon": False,
    "xtick.color": "#444444",
    "ytick.color": "#444444",
    "savefig.dpi": 150,
    "svg.fonttype": "none",
}


@contextlib.contextmanager
def figure(path: pathlib.Path, width: float, height: float) -> Iterator[Any]:
    """Yield a matplotlib figure of so many inches and write it to `path` as PNG afterwards.

    Works without a display and leaves no state behind: pyplot is not involved.
    """
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        canvas = Figure(figsize=(width, height), layout="constrained")
        yield canvas
        path.parent.mkdir(parents=True, exist_ok=True)
        canvas.savefig(path, format="png")


def embedded(path: pathlib.Path) -> dict[str, Any]:
    """Return a PNG as a page holds it: its name, its bytes as text, and its width there."""
    png = path.read_bytes()
    # The width in CSS pixels that gives text its size in points; the width of a PNG is in bytes 16 to 19.
    width = int.from_bytes(png[16:20], "big") * 96 // STYLE["savefig.dpi"]
    return {"name": path.stem, "data": base64.b64encode(png).decode(), "width": width}
