"""The picture of rooflines: FLOP/s over FLOPs a byte, what was reached and what the device can do."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from jrobust.reporting.figures import COLORS, figure


def draw(rows: Sequence[Mapping[str, Any]], path: pathlib.Path) -> bool:
    """Draw rows of benchmarks/roofline.py, both axes logarithmic; False if none has a number of bytes.

    A point is a program: its FLOPs over its bytes, and its FLOPs over its seconds. The lines are min(rate, bandwidth x
    intensity) of the device, for each dtype with the rate and bandwidth of its first row.
    """
    points = [row for row in rows if row.get("intensity") and row.get("flops")]
    if not points:
        return False
    dtypes = list(dict.fromkeys(row["dtype"] for row in points))
    with figure(path, 6.4, 4.2) as canvas:
        axis = canvas.subplots()
        intensities = [row["intensity"] for row in points]
        for dtype, color in zip(dtypes, COLORS, strict=False):
            own = [row for row in points if row["dtype"] == dtype]
            rate, bandwidth = own[0]["matrix_flops_per_second"], own[0]["bytes_per_second"]
            ridge = rate / bandwidth
            ends = sorted((min(*intensities, ridge) / 3, ridge, max(*intensities, ridge) * 3))
            axis.plot(ends, [min(rate, bandwidth * x) for x in ends], color=color, label=f"{dtype}: the device")
            speeds = [row["flops"] / row["seconds_median"] for row in own]
            axis.plot([row["intensity"] for row in own], speeds, "o", color=color, label=f"{dtype}: reached")
            for row, speed in zip(own, speeds, strict=True):
                axis.annotate(
                    row["name"], (row["intensity"], speed), textcoords="offset points", xytext=(5, 3), fontsize=7
                )
        axis.set_xscale("log")
        axis.set_yscale("log")
        axis.set_xlabel("FLOPs a byte, by the compiler")
        axis.set_ylabel("FLOP/s")
        axis.legend(loc="lower right")
    return True
