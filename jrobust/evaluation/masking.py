"""Suite `masking`: how well the patches that a classifier rests on cover the object of an image.

The measures of Xiao et al., "Masked Images Are Counterfactual Samples for Robust Fine-tuning", CVPR 2023, A.2.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jrobust.attributions.masking import MaskingScores, masking_scores
from jrobust.attributions.patches import object_mask, refill
from jrobust.errors import InputError
from jrobust.evaluation import programs
from jrobust.evaluation.accuracy import clean_columns, clean_warnings, joined, keep_valid
from jrobust.evaluation.batches import batches, choose
from jrobust.evaluation.estimates import mean, proportion
from jrobust.evaluation.progress import track
from jrobust.evaluation.record import Record
from jrobust.evaluation.subject import Subject

GALLERY = 8
THRESHOLDS = tuple(round(0.1 * i, 1) for i in range(1, 10))
MEASURES = MaskingScores._fields
DEFAULTS = {"batch_size": 64}


@dataclasses.dataclass(frozen=True)
class Settings:
    """How patches are masked, and what of a mask image is the object.

    Attributes:
      threshold: a patch is masked where the relevance, of largest value 1, exceeds it.
      thresholds: of the curve; () for none.
      object_values: values of masks that are the object; in trimaps 1 is the object, 2 the rest and 3 the border.
    """

    threshold: float = 0.3
    thresholds: tuple[float, ...] = THRESHOLDS
    object_values: tuple[int, ...] = (1,)

    def __post_init__(self):
        for value in (self.threshold, *self.thresholds):
            if not 0 <= value <= 1:
                raise InputError(f"threshold {value} is out of range: expected a number in [0, 1]")
        if not self.object_values:
            raise InputError("object_values is empty: expected the values of masks that are the object")


def check(settings: Settings, subject: Subject, source: Any) -> None:
    """Raise InputError if the model has no relevance of patches, or the images no masks that fit its patches."""
    if subject.relevance is None:
        raise InputError(
            f"{subject.name!r} has no relevance of patches: suite masking needs a vision transformer (a Subject of your"
            " own: give it `relevance`)"
        )
    if "mask" not in source[0]:
        raise InputError(
            f"data set {source.name!r} has no masks: suite masking needs images with a field `mask`, such as those of"
            " shapes"
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
    """Return how much of the image and of its object the patches of high relevance mask, and their IoU.

    Patches are those on which the logit of the true label rests. The numbers are means of the ratios of single images;
    images whose mask has no object are left out of all of them (both is assumed: the paper does not say).

    Args are those of the accuracy suite; nothing is random.

    Raises:
      InputError: see `check`; or the size of the images is no multiple of the number of patches on a side.
    """
    settings = settings or Settings()
    check(settings, subject, source)
    begin = time.perf_counter()
    order = choose(source, examples)
    thresholds = sorted({settings.threshold, *settings.thresholds})
    values, cuts = settings.object_values, jnp.array(thresholds)
    rows: list[dict[str, np.ndarray]] = []
    pictures: list[dict[str, np.ndarray]] = []
    with jax.default_matmul_precision("highest"), track("masking", len(order), progress) as advance:
        for batch in batches(source, batch_size, order, mesh):
            outcome = programs.predict(subject.logits, subject.variables, batch["image"], batch["label"])
            maps, objects, scores = _scores(
                subject.relevance, subject.variables, batch["image"], batch["label"], batch["mask"], values, cuts
            )
            columns = clean_columns(batch, outcome)
            for measure, ratios in zip(MEASURES, scores, strict=True):
                columns |= {f"{measure}_{t:g}": ratios[i] for i, t in enumerate(thresholds)}
            rows.append(keep_valid(batch, columns))
            if sum(len(p["index"]) for p in pictures) < GALLERY:
                shown = {"index": batch["index"], "image": batch["image"], "relevance": maps, "object": objects}
                pictures.append(keep_valid(batch, shown))
            advance(len(rows[-1]["index"]))
    columns = joined(rows)
    record = Record.of("masking", subject, source, examples=len(order), seed=seed)
    record.settings, record.warnings = dataclasses.asdict(settings), clean_warnings(columns)
    _summarise(record, columns, settings, maps.shape[1:])
    record.arrays = _gallery({name: a[:GALLERY] for name, a in joined(pictures).items()}, settings.threshold)
    record.seconds = time.perf_counter() - begin
    return record


def _summarise(record: Record, columns: dict[str, np.ndarray], settings: Settings, grid: tuple[int, ...]) -> None:
    """Fill in metrics, curve, table and per-example columns."""

    def at(threshold: float) -> dict[str, Any]:
        return {measure: mean(columns[f"{measure}_{threshold:g}"], highest=1.0) for measure in MEASURES}

    how = f"patches of {grid[0]}x{grid[1]} with relevance above {settings.threshold:g}, mean over images with an object"
    record.metrics = at(settings.threshold) | {"accuracy": proportion(columns["correct"])}
    record.protocols = dict.fromkeys(MEASURES, how) | {"accuracy": "images as they are"}
    points = [(t, at(t)) for t in sorted(settings.thresholds)]
    if points:
        record.curves["threshold"] = [{"label": f"{t:g}", "x": t} | estimates for t, estimates in points]
        record.tables["thresholds"] = {
            "columns": ["threshold", *MEASURES],
            "rows": [[t, *(estimates[measure].value for measure in MEASURES)] for t, estimates in points],
        }
    chosen = {measure: columns[f"{measure}_{settings.threshold:g}"] for measure in MEASURES}
    kept = {k: v for k, v in columns.items() if not k.startswith(MEASURES) and k != "finite"}
    record.columns = kept | chosen
    empty = int(np.isnan(chosen["iou"]).sum())
    record.checks = {"images_without_object": empty}
    if empty:
        record.warnings.append(f"{empty} of {record.examples} images have no object in their mask: they are left out")


def _gallery(pictures: dict[str, np.ndarray], threshold: float) -> dict[str, np.ndarray]:
    """Add which patches are masked, and the images with these taken from the next image."""
    masked = object_mask(jnp.asarray(pictures["relevance"]), threshold)
    donors = (np.arange(len(masked)) + 1) % len(masked)
    filled = refill(jnp.asarray(pictures["image"]), masked, jnp.asarray(donors))
    return pictures | {"masked": np.asarray(masked), "filled": np.asarray(filled)}


@functools.partial(jax.jit, static_argnums=(0, 5))
def _scores(
    relevance: Any,
    variables: Any,
    images: jax.Array,
    labels: jax.Array,
    masks: jax.Array,
    object_values: tuple[int, ...],
    thresholds: jax.Array,
) -> tuple[jax.Array, jax.Array, MaskingScores]:
    """Return maps float32[B, g, g], objects bool[B, H, W], and scores float32[thresholds, B] each."""
    maps = relevance(variables, images, labels)
    segmentation = jnp.isin(masks, jnp.array(object_values))
    return maps, segmentation, masking_scores(object_mask(maps, thresholds[:, None, None, None]), segmentation)
