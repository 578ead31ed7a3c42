"""Curves: training, accuracy and attributions over radii, boxes over thresholds."""

from __future__ import annotations

import math
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

from jrobust.reporting.figures import COLORS, figure
from jrobust.reporting.run_files import Row, number

PANELS = 12
FIRST = ("loss", "test_accuracy", "validation_accuracy", "train_accuracy", "cross_entropy")
LAST = ("gradient_norm", "update_norm", "parameter_norm", "learning_rate")
NORM_AXES = {"linf": r"$L_\infty$ radius", "l2": r"$L_2$ radius"}
SERIES = {
    "accuracy": ("accuracy", COLORS[0], "-"),
    "zero_shot": ("zero-shot sets", COLORS[1], "-"),
    "IN": ("IN (IG of the cross-entropy)", COLORS[0], "-"),
    "K": ("K (IG of the cross-entropy)", COLORS[1], "-"),
    "IN_logit": ("IN (IG of the logit)", COLORS[0], "--"),
    "K_logit": ("K (IG of the logit)", COLORS[1], "--"),
    "gt_known": ("class known", COLORS[0], "-"),
    "top1_localization": ("top-1", COLORS[1], "-"),
    "image_masking_rate": ("masked of the image", COLORS[0], "-"),
    "object_masking_rate": ("masked of the object", COLORS[1], "-"),
    "iou": ("IoU of mask and object", COLORS[2], "-"),
}


class Between(NamedTuple):
    """What a suite measures between the original and the fine-tuned model: its curve, and two words of its points."""

    curve: str
    words: tuple[str, str]
    titles: tuple[str, str]


BETWEEN = {
    "interpolation": Between("interpolation", ("clean", "robust"), ("clean accuracy", "accuracy under PGD")),
    "bias": Between(
        "wise_ft",
        ("aligned", "conflicting"),
        ("in distribution: accuracy of aligned images", "out of distribution: of conflicting images"),
    ),
    "natural_shift": Between(
        "wise_ft",
        ("imagenet", "average_shift"),
        ("in distribution: accuracy on ImageNet", "out of distribution: mean over the shifts"),
    ),
}


def training(rows: list[Row], path: pathlib.Path) -> bool:
    """Draw one panel for each quantity of metrics.jsonl over the steps; False if there is nothing to draw."""
    series: dict[str, list[tuple[int, float]]] = {}
    for row in rows:
        for name, value in row.items():
            if name not in ("step", "epoch") and "step" in row and not math.isnan(number(value)):
                series.setdefault(name, []).append((row["step"], number(value)))
    names = sorted(series, key=_rank)[:PANELS]
    if not names:
        return False
    columns = min(3, len(names))
    lines = -(-len(names) // columns)
    with figure(path, 3.1 * columns, 2.2 * lines) as canvas:
        axes = canvas.subplots(lines, columns, squeeze=False)
        for axis, name in zip(axes.flat, names, strict=False):
            steps, values = zip(*series[name], strict=True)
            share = name.endswith("accuracy")
            axis.plot(
                steps,
                [100 * v for v in values] if share else values,
                color=COLORS[0],
                marker="o" if len(steps) < 15 else "",
            )
            axis.set_title(name.replace("_", " ") + (" (%)" if share else ""))
            axis.set_xlabel("step")
            axis.xaxis.get_major_locator().set_params(integer=True, nbins=5)
            axis.margins(x=0.02)
            if share:  # no closer than ten points, so that noise does not look like a trend
                axis.set_ylim(max(0, 100 * min(values) - 5), min(101, 100 * max(values) + 5))
            elif name == "learning_rate":
                axis.set_ylim(0, 1.05 * max(values) or None)
        for axis in axes.flat[len(names) :]:
            axis.set_axis_off()
    return True


def robustness(record: Row, path: pathlib.Path) -> bool:
    """Draw accuracy over the radii of each norm, with 95 % bands; False if the record has no curve."""
    curves = {norm: record["curves"][norm] for norm in NORM_AXES if record.get("curves", {}).get(norm)}
    if not curves:
        return False
    with figure(path, 4.2 * len(curves) + 0.4, 3.2) as canvas:
        axes = canvas.subplots(1, len(curves), squeeze=False, sharey=True)[0]
        for axis, (norm, points) in zip(axes, curves.items(), strict=True):
            _lines(axis, points, ["accuracy"], unit=_unit(points))
            axis.set_xlabel(f"{NORM_AXES[norm]} ({_unit_text(points)})")
        axes[0].set_ylabel("accuracy under PGD (%)")
        axes[0].set_ylim(0, 101)
    return True


def zero_shot(record: Row, path: pathlib.Path) -> bool:
    """Draw the mean accuracy over data sets over the radii, with 95 % bands; False if the record has no curve."""
    points = record.get("curves", {}).get("linf")
    if not points:
        return False
    names = [name for name in ("accuracy", "zero_shot") if points[0].get(name)]
    with figure(path, 5.0, 3.4) as canvas:
        axis = canvas.subplots()
        _lines(axis, points, names, unit=_unit(points), words={"accuracy": "all sets"})
        axis.set_xlabel(f"{NORM_AXES['linf']} ({_unit_text(points)})")
        axis.set_ylabel("mean accuracy under PGD (%)")
        axis.set_ylim(bottom=0)
        if len(names) > 1:
            canvas.legend(loc="outside lower center", ncols=2)
    return True


def between(records: Mapping[str, Row], suite: str, config_hash: str = "") -> list[Row]:
    """Return the points of a suite's curve of `BETWEEN`, if both of its measures are there.

    A record of another state of the config than `config_hash` is not looked at, "" for any.
    """
    curve, words, _ = BETWEEN[suite]
    record = records.get(suite, {})
    points = record.get("curves", {}).get(curve) or [] if config_hash in ("", record.get("config_hash")) else []
    return points if all(word in point for point in points for word in words) else []


def trade_off(curves: dict[str, list[Row]], path: pathlib.Path, suite: str = "interpolation") -> bool:
    """Draw two measures over each other from the original to the fine-tuned model; False if there is nothing to draw.

    Args:
      curves: the points of each run, or their means over some, by a name for the legend; see `between`.
      path: of the picture.
      suite: that has measured them, of `BETWEEN`.
    """
    curves = {name: points for name, points in curves.items() if points}
    if not curves:
        return False
    words, titles = BETWEEN[suite].words, BETWEEN[suite].titles
    every = [[100 * number(point[word].get("value")) for line in curves.values() for point in line] for word in words]
    width, height = (max(values) - min(values) for values in every)
    labelled: list[tuple[float, float]] = []  # where there is a number, a second one would lie on it
    with figure(path, 5.6, 4.2) as canvas:
        axis = canvas.subplots()
        for i, (name, points) in enumerate(curves.items()):
            color = COLORS[i % len(COLORS)]
            xs, ys = ([100 * number(point[word].get("value")) for point in points] for word in words)
            axis.plot(xs, ys, color=color, marker="o", label=name)
            for point, x, y in zip(points, xs, ys, strict=True):
                if all(abs(x - u) > 0.03 * width or abs(y - v) > 0.03 * height for u, v in labelled):
                    axis.annotate(point["label"], (x, y), xytext=(5, 4), textcoords="offset points", fontsize=7)
                    labelled.append((x, y))
            ends = {0.0: ("s", "original"), 1.0: ("*", "fine-tuned")}
            for point, x, y in zip(points, xs, ys, strict=True):
                if marked := ends.get(point["x"]):
                    label = marked[1] if i == 0 else None
                    style = {"color": "white", "markeredgecolor": color, "linestyle": "", "zorder": 3}
                    axis.plot([x], [y], marker=marked[0], markersize=11, label=label, **style)
        axis.set_xlabel(f"{titles[0]} (%)")
        axis.set_ylabel(f"{titles[1]} (%)")
        axis.margins(0.12)
        canvas.legend(loc="outside lower center", ncols=3)
    return True


def sanity(record: Row, path: pathlib.Path) -> bool:
    """Draw accuracy over numbers of steps and over radii (Figure S2 of FSR); False if the record has no such curves.

    The points are spread evenly: both grids grow in ratios and begin at 0.
    """
    titles = {"iterations": "steps of PGD", "linf": NORM_AXES["linf"]}
    curves = {name: points for name in titles if (points := record.get("curves", {}).get(name))}
    if not curves:
        return False
    with figure(path, 4.2 * len(curves) + 0.4, 3.2) as canvas:
        axes = canvas.subplots(1, len(curves), squeeze=False, sharey=True)[0]
        for axis, (name, points) in zip(axes, curves.items(), strict=True):
            labels = [str(point["label"]) for point in points]
            unit = name == "linf" and all(label == "0" or label.endswith("/255") for label in labels)
            labels = [label.removesuffix("/255") for label in labels] if unit else labels
            _lines(axis, [point | {"x": i} for i, point in enumerate(points)], ["accuracy"], unit=1)
            axis.set_xticks(range(len(points)), labels)
            axis.set_xlabel(titles[name] + (" (in 1/255 of the pixel range)" if unit else ""))
        axes[0].set_ylabel("accuracy under PGD (%)")
        axes[0].set_ylim(-1, 101)
    return True


def attribution(record: Row, path: pathlib.Path) -> bool:
    """Draw IN and K over the radii, with 95 % bands; False if the record has no curve."""
    points = record.get("curves", {}).get("linf")
    if not points or len(points) < 2:
        return False
    with figure(path, 6.6, 3.9) as canvas:
        axis = canvas.subplots()
        _lines(axis, points, ["IN", "K", "IN_logit", "K_logit"], unit=_unit(points))
        axis.set_xlabel(f"{NORM_AXES['linf']} of the attack ({_unit_text(points)})")
        axis.set_ylabel("agreement with the clean map (%)")
        axis.set_ylim(top=100.5)
        canvas.legend(loc="outside lower center", ncols=2, handlelength=3.2)
    return True


def localization(record: Row, path: pathlib.Path) -> bool:
    """Draw the share of boxes found over the threshold; False if the record has no curve."""
    words = ("threshold (share of the largest grey level)", "boxes found (%)")
    return _over_thresholds(record, ["gt_known", "top1_localization"], words, path)


def masking(record: Row, path: pathlib.Path) -> bool:
    """Draw how much masked patches cover over the threshold; False if the record has no curve."""
    words = ("threshold (share of the largest relevance)", "pixels (%)")
    return _over_thresholds(record, ["image_masking_rate", "object_masking_rate", "iou"], words, path)


def _over_thresholds(record: Row, names: list[str], words: tuple[str, str], path: pathlib.Path) -> bool:
    points = record.get("curves", {}).get("threshold")
    if not points or len(points) < 2:
        return False
    with figure(path, 5.4, 3.5) as canvas:
        axis = canvas.subplots()
        _lines(axis, points, names, unit=1)
        axis.set_xlabel(words[0])
        axis.set_ylabel(words[1])
        axis.set_ylim(0, 101)
        canvas.legend(loc="outside lower center", ncols=len(names))
    return True


def _rank(name: str) -> tuple[int, int, str]:
    if name in FIRST:
        return 0, FIRST.index(name), name
    return (2, LAST.index(name), name) if name in LAST else (1, 0, name)


def _lines(axis: Any, points: list[Row], names: list[str], *, unit: float, words: Row | None = None) -> None:
    xs = [number(point["x"]) * unit for point in points]
    for name in names:
        text, color, style = SERIES[name]
        values, lows, highs = (
            [100 * number((point.get(name) or {}).get(key)) for point in points] for key in ("value", "low", "high")
        )
        axis.fill_between(xs, lows, highs, color=color, alpha=0.15 if style == "-" else 0.07, linewidth=0)
        axis.plot(xs, values, color=color, linestyle=style, marker="o", label=(words or {}).get(name, text))
    axis.set_xlim(0 if min(xs) < 0.3 * max(xs) else None)


def _unit(points: list[Row]) -> float:
    """Radii such as 8/255 are drawn as 8."""
    return 255.0 if any(str(point["label"]).endswith("/255") for point in points) else 1.0


def _unit_text(points: list[Row]) -> str:
    return "in 1/255 of the pixel range" if _unit(points) == 255 else "pixels in [0, 1]"
