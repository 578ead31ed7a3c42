"""Pictures: images and maps before and after the attack, boxes, the confusion matrix."""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np

from jrobust.reporting.figures import COLORS, figure
from jrobust.reporting.run_files import Row


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
            _image(axes[line, column], arrays["image"][i])
            _map(axes[line, column + 1], arrays["map"][i], top)
            _image(axes[line, column + 2], arrays["adv_image"][i])
            _map(axes[line, column + 3], arrays["adv_map"][i], top)
            axes[line, column].set_title(_class(class_names, int(arrays["label"][i])), fontsize=8, weight="normal")
            axes[line, column + 1].set_title("map", fontsize=8, weight="normal")
            axes[line, column + 2].set_title("perturbed", fontsize=8, weight="normal")
            scores = f"IN {100 * arrays['IN'][i]:.0f}  K {100 * arrays['K'][i]:.0f}"
            axes[line, column + 3].set_title(scores, fontsize=8, weight="normal")
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


def confusion(record: Row, path: pathlib.Path, *, largest: int = 40) -> bool:
    """Draw the confusion matrix, each row as shares of its label; False without one or with more classes than that."""
    table = record.get("tables", {}).get("confusion")
    if not table or not 2 <= len(table["rows"]) <= largest:
        return False
    names = [str(row[0]) for row in table["rows"]]
    counts = np.array([row[1:] for row in table["rows"]], float)
    shares = 100 * counts / np.maximum(counts.sum(1, keepdims=True), 1)
    side = 1.9 + 0.27 * len(names)
    with figure(path, side + 0.8, side) as canvas:
        axis = canvas.subplots()
        picture = axis.imshow(shares, cmap="Blues", vmin=0, vmax=100)
        axis.set_xticks(range(len(names)), names, rotation=90 if max(map(len, names)) > 2 else 0)
        axis.set_yticks(range(len(names)), names)
        axis.set_xlabel("prediction")
        axis.set_ylabel("label")
        axis.grid(visible=False)
        if len(names) <= 20:
            for (i, j), share in np.ndenumerate(shares):
                if share >= 0.5:
                    color = "white" if share > 60 else "#222222"
                    axis.text(j, i, f"{share:.0f}", ha="center", va="center", fontsize=7, color=color)
        canvas.colorbar(picture, ax=axis, shrink=0.8, label="share of the label (%)")
    return True


def _image(axis: Any, image: np.ndarray) -> None:
    gray = image.shape[-1] == 1
    axis.imshow(image[..., 0] if gray else image, cmap="gray" if gray else None, vmin=0, vmax=1)


def _map(axis: Any, values: np.ndarray, top: float | None) -> None:
    axis.imshow(values, cmap="inferno", vmin=0, vmax=top)


def _box(axis: Any, box: np.ndarray, color: str, style: str) -> None:
    from matplotlib.patches import Rectangle

    x0, y0, x1, y1 = (float(side) for side in box)
    axis.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, edgecolor=color, linestyle=style, linewidth=1.5))


def _class(names: list[str], label: int) -> str:
    return names[label] if label < len(names) else f"class {label}"
