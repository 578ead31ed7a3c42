"""Box plots of IN and K over examples."""

from __future__ import annotations

import pathlib

from jrobust.reporting.figures import COLORS, figure
from jrobust.reporting.run_files import Row

MEASURES = {
    "IN": "IN\n(IG of CE)",
    "K": "K\n(IG of CE)",
    "IN_logit": "IN\n(IG of logit)",
    "K_logit": "K\n(IG of logit)",
}


def attribution(record: Row, columns: dict[str, list[str]], path: pathlib.Path) -> bool:
    """Draw the distribution of IN and K at the radius of the attack; False if the record has no such table.

    Box: quartiles; line: median; white dot: mean; whiskers: outermost examples within 1.5 interquartile ranges; small
    dots: the examples beyond.
    """
    table = record.get("tables", {}).get("boxes")
    radius = record.get("settings", {}).get("eps")
    if not table:
        return False
    rows = [dict(zip(table["columns"], row, strict=True)) for row in table["rows"]]
    chosen = {r["measure"]: r for r in rows if r["radius"] == radius and r["measure"] in MEASURES and r["count"]}
    if not chosen:
        return False
    boxes = []
    for name, row in chosen.items():
        values = [100 * float(cell) for cell in columns.get(name, []) if cell]
        low, high = 100 * row["whisker_low"], 100 * row["whisker_high"]
        boxes.append(
            {
                "label": MEASURES[name],
                "q1": 100 * row["q1"],
                "med": 100 * row["median"],
                "q3": 100 * row["q3"],
                "mean": 100 * row["mean"],
                "whislo": low,
                "whishi": high,
                "fliers": [v for v in values if v < low - 1e-9 or v > high + 1e-9],
            }
        )
    with figure(path, 1.3 * len(boxes) + 0.8, 3.4) as canvas:
        axis = canvas.subplots()
        axis.bxp(
            boxes,
            widths=0.5,
            patch_artist=True,
            showmeans=True,
            boxprops={"facecolor": "#cfe3f1", "edgecolor": COLORS[0]},
            medianprops={"color": COLORS[0], "linewidth": 2},
            whiskerprops={"color": COLORS[0]},
            capprops={"color": COLORS[0]},
            meanprops={"marker": "o", "markerfacecolor": "white", "markeredgecolor": COLORS[0], "markersize": 5},
            flierprops={"marker": ".", "markersize": 3, "markeredgecolor": "#888888"},
        )
        axis.set_ylabel("agreement with the clean map (%)")
        axis.set_title(f"{record['examples']} examples at Linf {radius}")
        axis.grid(axis="x", visible=False)
    return True
