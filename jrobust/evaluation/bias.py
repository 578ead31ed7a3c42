"""Suite `bias`: accuracy where the bias of an image goes with its class, where it does not, and group by group."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from jrobust.attributions import grad_cam
from jrobust.data import corruptions
from jrobust.data.corruptions import DROPOUT_CELLS
from jrobust.errors import InputError, unknown
from jrobust.evaluation import programs, transfer, wise_ft
from jrobust.evaluation.accuracy import clean_columns, clean_warnings, joined, keep_valid
from jrobust.evaluation.batches import Cropped, batches, choose
from jrobust.evaluation.estimates import mean_of_groups, proportion
from jrobust.evaluation.progress import track
from jrobust.evaluation.record import Record
from jrobust.evaluation.subject import Subject

PROTOCOLS = {
    "average": "all images",
    "conflicting": "images whose bias is not that of their class",
    "aligned": "images whose bias is that of their class",
    "worst_group": "least accuracy among the groups of class and bias",
    "unbiased": "mean of the accuracies of the groups of class and bias",
}
CAM_CLASSES = ("predicted", "label")
Columns = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is measured beside the accuracies of the images as they are.

    Attributes:
      corruptions: of `jrobust.data.corruptions`, each for a line of the table `corruptions`.
      corrupt_at: the size of the images when they are corrupted: "native" (as their files, resized afterwards) or
        "resized". Unverified in BiasAdv.
      corruption_seed: of the corruptions' draws.
      dropout_cells: least and largest number of cells of Dropout, in fractions of a side. Unverified in BiasAdv.
      gallery: number of conflicting images with their Grad-CAM.
      cam_class: the class that Grad-CAM speaks of, the "predicted" one or the "label". Unverified in BiasAdv.
      shares: of a fine-tuned CLIP, from 0 to 1, the rest being the original: WiSE-FT's curve, () for none.
    """

    corruptions: tuple[str, ...] = ()
    corrupt_at: str = "native"
    corruption_seed: int = 0
    dropout_cells: tuple[float, float] = DROPOUT_CELLS
    gallery: int = 0
    cam_class: str = "predicted"
    shares: tuple[float, ...] = ()

    def __post_init__(self):
        for name in self.corruptions:
            if name not in corruptions.CORRUPTIONS:
                raise unknown("corruption", name, corruptions.CORRUPTIONS)
        if self.corrupt_at not in corruptions.PLACES:
            raise unknown("corrupt_at", self.corrupt_at, corruptions.PLACES)
        if self.cam_class not in CAM_CLASSES:
            raise unknown("cam_class", self.cam_class, CAM_CLASSES)
        if self.gallery < 0:
            raise InputError(f"gallery={self.gallery}: expected a number of images, 0 for none")


def check(settings: Settings, subject: Subject, source: Any) -> None:
    """Raise InputError if the images have no bias attribute or no colours, or the model lacks what is asked for."""
    if source.biases is None:
        raise InputError(
            f"data set {source.name!r} has no bias attribute: suite bias needs images with a field `bias`, such as"
            " those of colored_digits"
        )
    if settings.corruptions:
        _corrupted(source, settings.corruptions[0], settings)  # raises for grey images and a bad seed
    wise_ft.check(settings.shares, subject)
    if settings.gallery and subject.feature_map is None:
        raise InputError(
            f"{subject.name!r} has no feature map, on which Grad-CAM rests: set gallery to 0, or take a convolutional"
            " network (a Subject of your own: give it `feature_map`)"
        )


def run(
    subject: Subject,
    source: Any,
    settings: Settings | None = None,
    *,
    against: Sequence[Subject] = (),
    batch_size: int = 256,
    examples: int = 0,
    seed: int = 0,
    progress: bool = True,
    mesh: jax.sharding.Mesh | None = None,
) -> Record:
    """Return accuracies over all images, conflicting ones, aligned ones, and groups of class and bias.

    An image is conflicting where its bias is not its label. `average` is over all images, `worst_group` the least
    accuracy of a group (with that group's interval), `unbiased` the mean over groups (Nam et al. 2020). A group without
    images is NaN in the table `groups` and left out of both. Corruptions are measured as `average under <name>` and
    `conflicting under <name>`; the table `corruptions` has them for the models of `against` too, on the same images,
    and the gallery their Grad-CAM. With `shares` the curve and the table `wise_ft` have the accuracy of aligned and of
    conflicting images between the original and the fine-tuned model.

    Args:
      subject: what is evaluated.
      source: the images, with `biases`.
      settings: of this suite.
      against: other models of the same classes, for the corruptions and the gallery.
      batch_size, examples, seed, progress, mesh: as in the accuracy suite; nothing is drawn from `seed`.

    Raises:
      InputError: see `check`; or two models have the same name, or their classes differ.
    """
    settings, models = settings or Settings(), [subject, *against]
    for model in models:
        check(settings, model, source)
    if against:
        transfer.checked(models)
    begin = time.perf_counter()
    order = choose(source, examples)
    names = [name for name in corruptions.CORRUPTIONS if name in settings.corruptions]
    work = len(order) * (1 + len(models) * len(names) + (len(against) if names else 0))
    with jax.default_matmul_precision("highest"), track("bias", work, progress) as advance:
        read = functools.partial(batches, batch_size=batch_size, indices=order, mesh=mesh)
        rows: list[Columns] = []
        for batch in read(source):
            outcome = programs.predict(subject.logits, subject.variables, batch["image"], batch["label"])
            rows.append(keep_valid(batch, clean_columns(batch, outcome) | {"bias": batch["bias"]}))
            advance(len(rows[-1]["index"]))
        columns = joined(rows)
        columns["conflicting"] = columns["bias"] != columns["label"]
        hits = {"none": [columns["correct"], *_correct(against, read(source) if names else (), advance)]}
        hits |= {name: _correct(models, read(_corrupted(source, name, settings)), advance) for name in names}
        chosen = _spread(columns["index"][columns["conflicting"]], settings.gallery)
        arrays = _gallery(models, source, chosen, settings, batch_size, mesh)
    record = Record.of("bias", subject, source, examples=len(order), seed=seed, columns=columns, arrays=arrays)
    record.settings = dataclasses.asdict(settings)
    record.warnings += clean_warnings(columns)
    _summarise(record, source)
    _tabulate(record, settings, {name: hits[name] for name in ("none", *names)} if names else {}, against)
    if settings.gallery and not len(chosen):
        record.warnings.append("no image is conflicting: there is nothing to show with Grad-CAM")
    alone = dataclasses.replace(settings, corruptions=(), gallery=0, shares=())
    at = functools.partial(run, source=source, settings=alone, batch_size=batch_size, examples=examples, seed=seed)
    between = functools.partial(at, progress=False, mesh=mesh)
    wise_ft.add(record, subject, settings.shares, ("aligned", "conflicting"), lambda s: between(s).metrics, mesh)
    record.seconds = time.perf_counter() - begin
    return record


def _summarise(record: Record, source: Any) -> None:
    """Fill in the metrics and the table of groups."""
    correct, label, bias = (record.columns[name] for name in ("correct", "label", "bias"))
    conflicting = record.columns["conflicting"]
    classes = record.class_names
    biases = list(source.bias_names) or [str(k) for k in range(int(source.biases.max()) + 1)]
    if label.max() >= len(classes) or bias.max() >= len(biases):
        raise InputError(
            f"class {label.max()} and bias {bias.max()} occur, of {len(classes)} class names and {len(biases)} bias"
            " names: expected a name for each"
        )
    cells = {
        (class_name, bias_name): correct[(label == k) & (bias == b)]
        for k, class_name in enumerate(classes)
        for b, bias_name in enumerate(biases)
    }
    estimates = {names: proportion(cell) for names, cell in cells.items()}
    filled = {names: estimate for names, estimate in estimates.items() if estimate.count}
    worst = min(filled, key=lambda names: filled[names].value)
    record.metrics = {
        "average": proportion(correct),
        "conflicting": proportion(correct[conflicting]),
        "aligned": proportion(correct[~conflicting]),
        "worst_group": filled[worst],
        "unbiased": mean_of_groups([cells[names] for names in filled]),
    }
    record.protocols = dict(PROTOCOLS)
    record.tables["groups"] = {
        "columns": ["class", "bias", "accuracy", "low", "high", "count"],
        "rows": [[*names, e.value, e.low, e.high, e.count] for names, e in estimates.items()],
    }
    record.checks = {"worst_group": " / ".join(worst), "conflicting_images": int(conflicting.sum())}
    if missing := len(cells) - len(filled):
        record.warnings.append(
            f"{missing} of {len(cells)} groups of class and bias have no images: left out of the worst group and of the"
            " mean of the groups"
        )


def _tabulate(
    record: Record, settings: Settings, hits: dict[str, list[np.ndarray]], against: Sequence[Subject]
) -> None:
    """Fill in the table of corruptions, and the subject's metrics under them, from hits by corruption and model."""
    conflicting, rows = record.columns["conflicting"], []
    how = f"corrupted at {settings.corrupt_at} size, seed {settings.corruption_seed}"
    for name, models in hits.items():
        pairs = [(proportion(hit), proportion(hit[conflicting])) for hit in models]
        rows.append([name, *(estimate.value for pair in pairs for estimate in pair)])
        if name == "none":
            continue
        record.columns = record.columns | {f"{name}_correct": models[0]}
        for measure, estimate in zip(("average", "conflicting"), pairs[0], strict=True):
            record.metrics[f"{measure} under {name}"] = estimate
            record.protocols[f"{measure} under {name}"] = f"{PROTOCOLS[measure]}, {how}"
    if rows:
        others = [f"{measure} of {model.name}" for model in against for measure in ("average", "conflicting")]
        record.tables["corruptions"] = {"columns": ["corruption", "average", "conflicting", *others], "rows": rows}


def _correct(models: Sequence[Subject], stream: Any, advance: Callable[[float], None]) -> list[np.ndarray]:
    """Return for each model whether it is right, bool[N]; every batch is read, and corrupted, once for all of them."""
    rows: list[Columns] = []
    for batch in stream if models else ():
        images, labels = batch["image"], batch["label"]
        found = {str(i): programs.predict(m.logits, m.variables, images, labels).correct for i, m in enumerate(models)}
        rows.append(keep_valid(batch, found))
        advance(len(models) * len(rows[-1]["0"]))
    return list(joined(rows).values()) if rows else []


def _corrupted(source: Any, name: str, settings: Settings) -> Any:
    """Return the source with corrupted images, cropped afterwards where the images are evaluated so."""
    if isinstance(source, Cropped):
        return dataclasses.replace(source, source=_corrupted(source.source, name, settings))
    cells = settings.dropout_cells
    return corruptions.corrupted(source, name, settings.corruption_seed, settings.corrupt_at, dropout_cells=cells)


def _spread(positions: np.ndarray, count: int) -> np.ndarray:
    """Return at most `count` of the positions, spread evenly over them."""
    count = min(count, len(positions))
    return positions[np.arange(count) * len(positions) // max(count, 1)]


def _gallery(
    models: Sequence[Subject],
    source: Any,
    positions: np.ndarray,
    settings: Settings,
    batch_size: int,
    mesh: jax.sharding.Mesh | None,
) -> Columns:
    """Return the images at `positions` with, model by model, prediction [N, M] and Grad-CAM float[N, M, H, W]."""
    devices = mesh.size if mesh is not None else 1
    rows = []
    for batch in batches(source, min(batch_size, -(-len(positions) // devices) * devices) or 1, positions, mesh):
        columns = {name: batch[name] for name in ("image", "label", "bias", "index")}
        for i, model in enumerate(models):
            outcome = programs.predict(model.logits, model.variables, batch["image"], batch["label"])
            classes = outcome.prediction if settings.cam_class == "predicted" else batch["label"]
            columns[f"cam_{i}"] = _cam(model.feature_map, model.variables, batch["image"], classes)
            columns[f"prediction_{i}"] = outcome.prediction
        rows.append(keep_valid(batch, columns))
    if not rows:
        return {}
    found = joined(rows)
    for name in ("cam", "prediction"):
        found[name] = np.stack([found.pop(f"{name}_{i}") for i in range(len(models))], axis=1)
    return found | {"model": np.array([model.name for model in models])}


@functools.partial(jax.jit, static_argnums=0)
def _cam(feature_map, variables: Any, images: jax.Array, classes: jax.Array) -> jax.Array:
    height, width = images.shape[1:3]
    return grad_cam(lambda perturbation: feature_map(variables, images, perturbation), classes, (height, width))
