"""Suite `localization`: boxes out of input gradients against the true ones (weakly supervised, as on CUB-200)."""

from __future__ import annotations

import dataclasses
import functools
import time
from typing import Any

import jax
import numpy as np

from jrobust.attributions import localization
from jrobust.errors import InputError
from jrobust.evaluation import programs
from jrobust.evaluation.accuracy import clean_columns, clean_warnings, joined, keep_valid
from jrobust.evaluation.batches import batches, choose
from jrobust.evaluation.estimates import proportion
from jrobust.evaluation.progress import track
from jrobust.evaluation.record import Record
from jrobust.evaluation.subject import Subject

GALLERY = 8


@dataclasses.dataclass(frozen=True)
class Settings:
    """How boxes are cut out of heatmaps.

    Attributes:
      threshold: a pixel belongs to the object if its grey level is above this share of the largest.
      iou: intersection over union from which on a box is a hit.
      thresholds: of the curve; () for none.
    """

    threshold: float = 0.2
    iou: float = 0.5
    thresholds: tuple[float, ...] = localization.THRESHOLDS

    def __post_init__(self):
        for value in (self.threshold, self.iou, *self.thresholds):
            if not 0 <= value <= 1:
                raise InputError(f"threshold or iou {value} is out of range: expected a number in [0, 1]")


def check(settings: Settings, subject: Subject, source: Any) -> None:
    """Raise InputError if the images have no boxes."""
    if "box" not in source[0]:
        raise InputError(
            f"data set {source.name!r} has no boxes: suite localization needs images with a field `box`, such as"
            " those of cub200"
        )


def run(
    subject: Subject,
    source: Any,
    settings: Settings | None = None,
    *,
    batch_size: int = 64,
    examples: int = 0,
    seed: int = 0,
    progress: bool = True,
    mesh: jax.sharding.Mesh | None = None,
) -> Record:
    """Return the share of images whose box is found.

    The heatmap is the smoothed gradient of the cross-entropy with respect to the predicted class, the box that around
    its largest blob. `gt_known` counts the boxes with enough overlap, `top1_localization` those on images that are
    also classified correctly. All are shares of all images.

    Args are those of the accuracy suite; nothing is random.

    Raises:
      InputError: the source has no boxes.
    """
    settings = settings or Settings()
    check(settings, subject, source)
    begin = time.perf_counter()
    order = choose(source, examples)
    rows: list[dict[str, np.ndarray]] = []
    pictures: list[dict[str, np.ndarray]] = []
    with jax.default_matmul_precision("highest"), track("localization", len(order), progress) as advance:
        for batch in batches(source, batch_size, order, mesh):
            outcome = programs.predict(subject.logits, subject.variables, batch["image"], batch["label"])
            gradient = _gradient(subject.logits, subject.variables, batch["image"])
            host = keep_valid(batch, clean_columns(batch, outcome) | {"gradient": gradient, "true": batch["box"]})
            heatmaps, true = localization.gradient_heatmaps(host.pop("gradient")), host.pop("true")
            boxes = localization.boxes_of(heatmaps, settings.threshold)
            host["iou"] = localization.iou(boxes, true)
            for i, side in enumerate(("x0", "y0", "x1", "y1")):
                host[side] = boxes[:, i]
            for threshold in settings.thresholds:
                host[f"iou_{threshold:g}"] = localization.iou(localization.boxes_of(heatmaps, threshold), true)
            if sum(len(p["index"]) for p in pictures) < GALLERY:
                images = keep_valid(batch, {"index": batch["index"], "image": batch["image"]})
                pictures.append(images | {"heatmap": heatmaps.astype(np.float32), "box": boxes, "true_box": true})
            rows.append(host)
            advance(len(heatmaps))
    columns = joined(rows)
    record = Record.of("localization", subject, source, examples=len(order), seed=seed)
    record.settings, record.warnings = dataclasses.asdict(settings), clean_warnings(columns)
    record.metrics = _scores(columns["iou"], columns["correct"], settings) | {
        "accuracy": proportion(columns["correct"])
    }
    how = f"gradient of the predicted class, threshold {settings.threshold:g}, IoU >= {settings.iou:g}"
    record.protocols = dict.fromkeys(record.metrics, how) | {"accuracy": "images as they are"}
    if settings.thresholds:
        record.curves["threshold"] = [
            {"label": f"{t:g}", "x": t} | _scores(columns[f"iou_{t:g}"], columns["correct"], settings)
            for t in sorted(settings.thresholds)
        ]
    record.columns = {k: v for k, v in columns.items() if not k.startswith("iou_") and k != "finite"}
    record.arrays = {name: array[:GALLERY] for name, array in joined(pictures).items()}
    record.seconds = time.perf_counter() - begin
    return record


@functools.partial(jax.jit, static_argnums=0)
def _gradient(logits, variables: Any, images: jax.Array) -> jax.Array:
    return localization.predicted_class_gradient(lambda x: logits(variables, x), images)


def _scores(iou: np.ndarray, correct: np.ndarray, settings: Settings) -> dict[str, Any]:
    hit = iou >= settings.iou
    return {"gt_known": proportion(hit), "top1_localization": proportion(hit & correct)}
