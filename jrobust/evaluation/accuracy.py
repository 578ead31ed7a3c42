"""Suite `accuracy`: how often the prediction is right, overall, per class, and what is taken for what."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import jax
import numpy as np

from jrobust.errors import InputError
from jrobust.evaluation.batches import batches, choose
from jrobust.evaluation.estimates import proportion
from jrobust.evaluation.programs import predict
from jrobust.evaluation.progress import track
from jrobust.evaluation.record import Record
from jrobust.evaluation.subject import Subject


@dataclasses.dataclass(frozen=True)
class Settings:
    """There is nothing to set."""


def run(
    subject: Subject,
    source: Any,
    settings: Settings | None = None,
    *,
    batch_size: int = 256,
    examples: int = 0,
    seed: int = 0,
    progress: bool = True,
    mesh: jax.sharding.Mesh | None = None,
) -> Record:
    """Return the accuracy with Wilson intervals, per class too, and the confusion matrix (rows: labels).

    Args:
      subject: what is evaluated.
      source: the images; see `batches`.
      settings: of this suite.
      batch_size: images at a time; changes no number.
      examples: only so many images, spread evenly over the source; 0 for all.
      seed: unused, nothing is random.
      progress: whether to show a line.
      mesh: devices to spread the batches over.
    """
    begin = time.perf_counter()
    order = choose(source, examples)
    rows: list[dict[str, np.ndarray]] = []
    with jax.default_matmul_precision("highest"), track("accuracy", len(order), progress) as advance:
        for batch in batches(source, batch_size, order, mesh):
            outcome = predict(subject.logits, subject.variables, batch["image"], batch["label"])
            rows.append(keep_valid(batch, clean_columns(batch, outcome)))
            advance(len(rows[-1]["index"]))
    columns = joined(rows)
    record = Record.of("accuracy", subject, source, examples=len(order), seed=seed, columns=columns)
    record.metrics["accuracy"] = proportion(columns["correct"])
    record.protocols["accuracy"] = "images as they are"
    record.tables = per_class(columns, subject.class_names)
    record.warnings += clean_warnings(columns)
    record.seconds = time.perf_counter() - begin
    return record


def clean_columns(batch: dict[str, Any], outcome: Any) -> dict[str, Any]:
    """Return the columns that every per-example table begins with."""
    return {
        "index": batch["index"],
        "label": batch["label"],
        "prediction": outcome.prediction,
        "correct": outcome.correct,
        "margin": outcome.margin,
        "finite": outcome.finite,
    }


def keep_valid(batch: dict[str, Any], columns: dict[str, Any]) -> dict[str, np.ndarray]:
    """Bring columns to the host and drop the padding of the batch."""
    valid = np.asarray(batch["valid"])
    return {name: np.asarray(column)[valid] for name, column in jax.device_get(columns).items()}


def joined(rows: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Join the columns of all batches."""
    return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}


def clean_warnings(columns: dict[str, np.ndarray]) -> list[str]:
    """Return what the clean logits give to complain about."""
    broken = int((~columns["finite"]).sum())
    return [f"{broken} images have logits that are not finite; they count as misclassified"] if broken else []


def per_class(columns: dict[str, np.ndarray], class_names: Any) -> dict[str, dict[str, list]]:
    """Return the tables `per_class` and `confusion`.

    Raises:
      InputError: a label has no class name.
    """
    names = [str(name) for name in class_names]
    labels, predictions = columns["label"], columns["prediction"]
    top = int(max(labels.max(), predictions.max()))
    if top >= len(names):
        raise InputError(
            f"class {top} occurs but the subject names {len(names)} classes: expected one class name for each logit"
        )
    rows = []
    for k, name in enumerate(names):
        estimate = proportion(columns["correct"][labels == k])
        rows.append([name, estimate.value, estimate.low, estimate.high, estimate.count])
    counts = np.zeros((len(names), len(names)), np.int64)
    np.add.at(counts, (labels, predictions), 1)
    return {
        "per_class": {"columns": ["class", "accuracy", "low", "high", "count"], "rows": rows},
        "confusion": {
            "columns": ["label", *names],
            "rows": [[name, *row] for name, row in zip(names, counts.tolist(), strict=True)],
        },
    }
