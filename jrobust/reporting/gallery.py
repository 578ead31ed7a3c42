"""Pictures: images and maps before and after the attack, boxes, Grad-CAM, matrices of shares."""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np

from jrobust.reporting.figures import COLORS, figure
from jrobust.reporting.run_files import Row, number
from jrobust.reporting.tables import cells_of


def attribution(arrays: dict[str, np.ndarray], class_names: list[str], path: pathlib.Path) -> bool:
    """Draw image, map, perturbed image and its map for each example, two examples a line; False if there is none.

    The two maps of an example share their colour scale, which ends at the 99th percentile of the clean one.
    """
    if not len(arrays.get("image", ())):
        return False
    count = len(arrays["image"])
    lines = -(-count // 2)
    with figure(path, 11, 1.62 * lines + 0.35) as canvas:
        # The fifth column is the gap between the two examples of a line.
        axes = canvas.subplots(lines, 9, squeeze=False, width_ratios=[1, 1, 1, 1, 0.12, 1, 1, 1, 1])
        for axis in axes.flat:
            axis.set_axis_off()
        for i in range(count):
            line, column = i // 2, 5 * (i % 2)
            top = float(np.percentile(arrays["map"][i], 99)) or None
            scores = f"IN {100 * arrays['IN'][i]:.0f}  K {100 * arrays['K'][i]:.0f}"
            _image(axes[line, column], arrays["image"][i], _class(class_names, int(arrays["label"][i])))
            _map(axes[line, column + 1], arrays["map"][i], top, "map")
            _image(axes[line, column + 2], arrays["adv_image"][i], "perturbed")
            _map(axes[line, column + 3], arrays["adv_map"][i], top, scores)
    return True


def localization(arrays: dict[str, np.ndarray], path: pathlib.Path) -> bool:
    """Draw images with the true and the predicted box over heatmaps; False if there is none."""
    if not len(arrays.get("image", ())):
        return False
    count = len(arrays["image"])
    with figure(path, 1.45 * count + 0.2, 3.3) as canvas:
        axes = canvas.subplots(2, count, squeeze=False)
        for i in range(count):
            _image(axes[0, i], arrays["image"][i])
            _map(axes[1, i], arrays["heatmap"][i], 1.0)
            for axis in axes[:, i]:
                axis.set_axis_off()
                _box(axis, arrays["true_box"][i], COLORS[2], "-")
                _box(axis, arrays["box"][i], COLORS[1], "--")
    return True


def masking(arrays: dict[str, np.ndarray], path: pathlib.Path) -> bool:
    """Draw images with their objects' outlines, relevance, and the images refilled; False if there is none."""
    if not len(arrays.get("filled", ())):
        return False
    count = len(arrays["image"])
    with figure(path, 1.45 * count + 0.2, 4.9) as canvas:
        axes = canvas.subplots(3, count, squeeze=False)
        for axis in axes.flat:
            axis.set_axis_off()
        for i in range(count):
            _image(axes[0, i], arrays["image"][i])
            if arrays["object"][i].any():
                axes[0, i].contour(arrays["object"][i].astype(float), [0.5], colors=[COLORS[2]], linewidths=1.5)
            _map(axes[1, i], arrays["relevance"][i], 1.0)
            _image(axes[2, i], arrays["filled"][i])
    return True


def confusion(record: Row, path: pathlib.Path, *, largest: int = 40) -> bool:
    """Draw the confusion matrix, each row as shares of its label; False without one or with more classes than that."""
    table = record.get("tables", {}).get("confusion")
    if not table or not 2 <= len(table["rows"]) <= largest:
        return False
    names = [str(row[0]) for row in table["rows"]]
    counts = np.array([row[1:] for row in table["rows"]], float)
    shares = 100 * counts / np.maximum(counts.sum(1, keepdims=True), 1)
    texts = {cell: f"{share:.0f}" for cell, share in np.ndenumerate(shares) if share >= 0.5}
    _heat_map(path, shares, texts, names, names, words=("label", "prediction", "share of the label (%)"), cell=0.27)
    return True


def groups(record: Row, path: pathlib.Path, *, largest: int = 40) -> bool:
    """Draw the accuracy of each group of class and bias; False without them or with more classes than that."""
    cells = cells_of(record)
    classes, biases = (list(dict.fromkeys(names)) for names in zip(*cells, strict=True)) if cells else ([], [])
    if not cells or max(len(classes), len(biases)) > largest:
        return False
    rows = [[cells[name, bias] for bias in biases] for name in classes]
    shares = np.array([[100 * number(row["accuracy"]) for row in line] for line in rows])
    texts = {(i, j): f"{shares[i, j]:.0f}\n({rows[i][j]['count']:,})" for i, j in np.argwhere(np.isfinite(shares))}
    _heat_map(path, shares, texts, classes, biases, words=("class", "bias", "accuracy (%)"), cell=0.48)
    return True


def grad_cam(arrays: dict[str, np.ndarray], class_names: list[str], path: pathlib.Path) -> bool:
    """Draw images and, a column for each model, Grad-CAM over them at equal weight; False if there is none."""
    if not len(arrays.get("cam", ())):
        return False
    count, models = arrays["cam"].shape[:2]
    with figure(path, 1.5 * (1 + models) + 0.2, 1.62 * count + 0.5) as canvas:
        axes = canvas.subplots(count, 1 + models, squeeze=False)
        for axis in axes.flat:
            axis.set_axis_off()
        for axis, name in zip(axes[0], ("input", *arrays["model"]), strict=True):
            place = {"xycoords": axis.transAxes, "ha": "center", "va": "bottom", "textcoords": "offset points"}
            axis.annotate(str(name), (0.5, 1), (0, 20), weight="bold", **place)
        for i, line in enumerate(axes):
            label = int(arrays["label"][i])
            _image(line[0], arrays["image"][i], _class(class_names, label))
            for j, axis in enumerate(line[1:]):
                prediction = int(arrays["prediction"][i, j])
                color = COLORS[2] if prediction == label else COLORS[1]
                _image(axis, arrays["image"][i], _class(class_names, prediction), color)
                axis.imshow(arrays["cam"][i, j], cmap="jet", vmin=0, vmax=1, alpha=0.5)
    return True


def _heat_map(
    path: pathlib.Path,
    shares: np.ndarray,
    texts: dict[Any, str],
    rows: list[str],
    columns: list[str],
    *,
    words: tuple[str, str, str],
    cell: float,
) -> None:
    """Draw percentages, NaN grey, with `texts` in the cells of small matrices; words: rows, columns, colours."""
    with figure(path, 2.7 + cell * len(columns), 1.9 + cell * len(rows)) as canvas:
        axis = canvas.subplots()
        axis.set_facecolor("#d0d0d0")
        picture = axis.imshow(shares, cmap="Blues", vmin=0, vmax=100)
        axis.set_xticks(range(len(columns)), columns, rotation=90 if max(map(len, columns)) > 2 else 0)
        axis.set_yticks(range(len(rows)), rows)
        axis.set_xlabel(words[1])
        axis.set_ylabel(words[0])
        axis.grid(visible=False)
        for (i, j), text in texts.items() if max(shares.shape) <= 20 else ():
            color = "white" if shares[i, j] > 60 else "#222222"
            axis.text(j, i, text, ha="center", va="center", fontsize=7, color=color)
        canvas.colorbar(picture, ax=axis, shrink=0.8, label=words[2])


def _image(axis: Any, image: np.ndarray, title: str = "", color: str = "black") -> None:
    gray = image.shape[-1] == 1
    axis.imshow(image[..., 0] if gray else image, cmap="gray" if gray else None, vmin=0, vmax=1)
    axis.set_title(title, fontsize=8, weight="normal", color=color)


def _map(axis: Any, values: np.ndarray, top: float | None, title: str = "") -> None:
    axis.imshow(values, cmap="inferno", vmin=0, vmax=top)
    axis.set_title(title, fontsize=8, weight="normal")


def _box(axis: Any, box: np.ndarray, color: str, style: str) -> None:
    from matplotlib.patches import Rectangle

    x0, y0, x1, y1 = (float(side) for side in box)
    axis.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, edgecolor=color, linestyle=style, linewidth=1.5))


def _class(names: list[str], label: int) -> str:
    return names[label] if label < len(names) else f"class {label}"
