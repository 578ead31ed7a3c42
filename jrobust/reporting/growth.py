"""The picture of growth: seconds, work and memory of programs over the size of one thing at a time."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from jrobust.reporting.figures import COLORS, figure

QUANTITIES = {"seconds_median": "seconds", "flops": "FLOPs", "program_bytes": "memory of the plan"}
COLUMNS = 3


def draw(rows: Sequence[Mapping[str, Any]], path: pathlib.Path) -> bool:
    """Draw rows of benchmarks/growth.py, a panel for each axis and dtype; False if there is none.

    All is over its value at the first point, both scales logarithmic; the grey line is what is linear.
    """
    panels = list(dict.fromkeys((row["axis"], row["dtype"]) for row in rows))
    if not panels:
        return False
    lines = -(-len(panels) // COLUMNS)
    with figure(path, 3.0 * COLUMNS, 2.6 * lines) as canvas:
        places = canvas.subplots(lines, COLUMNS, squeeze=False)
        for place in places.flat[len(panels) :]:
            place.set_visible(False)
        for place, (axis, dtype) in zip(places.flat, panels, strict=False):
            own = [row for row in rows if (row["axis"], row["dtype"]) == (axis, dtype)]
            values = [row["value"] for row in own]
            place.plot(values, [value / values[0] for value in values], color="#aaaaaa", linewidth=1, label="linear")
            for (key, label), color in zip(QUANTITIES.items(), COLORS, strict=False):
                if all(row.get(key) for row in own):
                    place.plot(values, [row[key] / own[0][key] for row in own], "o-", color=color, label=label)
            place.set_xscale("log", base=2)
            place.set_yscale("log", base=2)
            place.set_xlabel(axis)
            place.set_title(dtype)
        places[0, 0].set_ylabel("over the first point")
        places[0, 0].legend(fontsize=7)
    return True
