"""Suite `attribution`: how far an attack on attributions moves the map of integrated gradients (IN and K)."""

from __future__ import annotations

import dataclasses
import inspect
import time
from typing import Any

import jax
import numpy as np

from jrobust import units
from jrobust.attacks import attribution as attacks
from jrobust.attributions import gradients
from jrobust.errors import InputError
from jrobust.evaluation import importance, programs
from jrobust.evaluation.accuracy import joined, keep_valid
from jrobust.evaluation.batches import batches, choose, image_shape
from jrobust.evaluation.estimates import BOX_COLUMNS, box, mean, proportion
from jrobust.evaluation.importance import Settings
from jrobust.evaluation.progress import track
from jrobust.evaluation.rate import Rate
from jrobust.evaluation.record import Record
from jrobust.evaluation.subject import Subject

MEASURES = ("IN", "K", "IN_logit", "K_logit")
GALLERY = 8
DEFAULTS = {"batch_size": 50, "examples": 1000}  # the attack holds batch_size * chunk images
Columns = dict[str, np.ndarray]


def check(settings: Settings, subject: Subject, source: Any) -> None:
    """Raise InputError if the images are smaller than `top_k`, or the model cannot be made smooth."""
    height, width, _ = image_shape(source)
    if settings.top_k > height * width:
        raise InputError(
            f"top_k={settings.top_k} of images of {height} x {width} = {height * width} pixels: set top_k to at most"
            f" {height * width}, e.g. --suite.top_k={max(1, height * width // 10)}"
        )
    if settings.attack().judge == "full" and height * width > importance.DEVICE_PIXELS:
        raise InputError(
            f"preset {settings.preset!r} compares all pairs of pixels, too many in images of {height} x {width}: set"
            " preset to 'ifia_art'"
        )
    try:
        inspect.signature(subject.logits).bind(None, None, beta=1.0)
    except TypeError as error:
        raise InputError(
            f"the logits function of {subject.name!r} takes no argument beta: the attack on attributions needs"
            " logits(variables, images, *, beta=None) that replaces ReLU by a softplus of sharpness beta"
        ) from error


def run(
    subject: Subject,
    source: Any,
    settings: Settings | None = None,
    *,
    batch_size: int = 50,
    examples: int = 1000,
    seed: int = 0,
    progress: bool = True,
    mesh: jax.sharding.Mesh | None = None,
) -> Record:
    """Return IN and K under the attack, with their distribution and their course over radii.

    The first `examples` correctly classified images are attacked, in an order drawn with `seed`. IN is the share of
    the top k pixels that stay, K is Kendall's tau-b of the whole maps; both 1 where nothing changed. The headline
    numbers `IN` and `K` are measured on maps of the cross-entropy (IG_ce, as the published ones), `IN_logit` and
    `K_logit` on maps of the logit (IG_logit), which the attack sees. Images without an admissible iterate are dropped
    or count as 1, as the preset says; `failed` is their share. Images whose map is zero everywhere are dropped and
    counted in the checks.

    Args:
      subject: what is evaluated; its `logits` takes `beta`.
      source: the images.
      settings: of the attack.
      batch_size: images at a time; memory grows with batch_size * chunk. Changes no number.
      examples: how many correctly classified images; 0 for all.
      seed: of the order and the random starts.
      progress: whether to show a line.
      mesh: devices to spread the batches over.

    Raises:
      InputError: see `check`; or no image is classified correctly.
    """
    settings = settings or Settings()
    check(settings, subject, source)
    begin, rate = time.perf_counter(), Rate()
    radii = sorted({units.parse(r): r for r in (*settings.sweep, settings.eps)}.items())
    with jax.default_matmul_precision("highest"):
        order = correct_images(subject, source, examples, seed=seed, batch_size=batch_size, mesh=mesh)
        rows: list[Columns] = []
        pictures: list[Columns] = []
        key = jax.random.key(seed)
        with track("attribution", len(order) * len(radii), progress) as advance:
            for batch in batches(source, batch_size, order, mesh):
                columns: dict[str, Any] = {"index": batch["index"], "label": batch["label"]}
                count = int(np.sum(np.asarray(batch["valid"])))
                for eps, radius in radii:
                    with rate.timed("ifia", count * settings.gradient_steps()):
                        result = jax.block_until_ready(importance.attack(subject, batch, key, float(eps), settings))
                    found = _columns(result, settings, batch, subject)
                    main = eps == units.parse(settings.eps)
                    columns |= {name if main else f"{name}_{radius}": column for name, column in found.items()}
                    if main and sum(len(p["index"]) for p in pictures) < GALLERY:
                        pictures.append(keep_valid(batch, _pictures(batch, result, found)))
                    advance(count)
                rows.append(keep_valid(batch, columns))
    columns = joined(rows)
    record = Record.of("attribution", subject, source, examples=len(order), seed=seed)
    record.arrays = {name: array[:GALLERY] for name, array in joined(pictures).items()}
    record.attack_steps, record.attack_steps_per_second = rate.steps, rate.per_second
    _summarise(record, settings, columns, [radius for _, radius in radii])
    if len(order) < examples:
        record.warnings.append(f"only {len(order)} images are classified correctly, {examples} were asked for")
    record.seconds = time.perf_counter() - begin
    return record


def correct_images(
    subject: Subject, source: Any, examples: int, *, seed: int, batch_size: int, mesh: jax.sharding.Mesh | None = None
) -> np.ndarray:
    """Return the positions of the first `examples` correctly classified images, in an order drawn with `seed`.

    Raises:
      InputError: none is classified correctly.
    """
    choose(source, examples)
    order = np.random.default_rng(seed).permutation(len(source))
    found: list[int] = []
    for batch in batches(source, batch_size, order, mesh):
        outcome = programs.predict(subject.logits, subject.variables, batch["image"], batch["label"])
        found += np.asarray(batch["index"])[np.asarray(outcome.correct) & np.asarray(batch["valid"])].tolist()
        if examples and len(found) >= examples:
            break
    if not found:
        raise InputError(
            f"{subject.name!r} classifies no image of {source.name} {source.split} correctly: none to attack"
        )
    return np.asarray(found[:examples] if examples else found)


def _columns(result: attacks.IfiaResult, settings: Settings, batch: dict[str, Any], subject: Subject) -> dict[str, Any]:
    """Return IN, K and the checks of one batch; NaN where an example does not count."""
    failed = np.asarray(result.failed)
    columns: dict[str, Any] = {"failed": failed, "tau_of_judge": result.tau}
    for suffix, name in (("", "ce"), ("_logit", "logit")):
        maps = (result.clean_maps[name], result.adv_maps[name])
        undefined = np.logical_or(*(np.asarray(gradients.empty_maps(m)) | ~np.isfinite(m).all(-1) for m in maps))
        dropped = undefined | (failed if not settings.attack().count_failures else np.zeros_like(failed))
        columns[f"IN{suffix}"] = np.where(dropped, np.nan, result.top_k_intersection[name])
        columns[f"K{suffix}"] = np.where(dropped, np.nan, result.kendall[name])
        columns[f"empty{suffix}"] = undefined
    outcome = programs.predict(subject.logits, subject.variables, result.adv_images, batch["label"])
    size = programs.size(batch["image"], result.adv_images)
    return columns | {"kept_prediction": outcome.correct, "largest_change": size.linf}


def _pictures(batch: dict[str, Any], result: attacks.IfiaResult, found: dict[str, Any]) -> dict[str, Any]:
    shape = batch["image"].shape[:3]
    return {
        "index": batch["index"],
        "label": batch["label"],
        "image": batch["image"],
        "map": result.clean_maps["ce"].reshape(shape),
        "adv_image": result.adv_images,
        "adv_map": result.adv_maps["ce"].reshape(shape),
        "IN": found["IN"],
        "K": found["K"],
    }


def _summarise(record: Record, settings: Settings, columns: dict[str, np.ndarray], radii: list[str]) -> None:
    """Fill in metrics, curve, box plots, checks and columns."""
    suffix = {r: "" if units.parse(r) == units.parse(settings.eps) else f"_{r}" for r in radii}
    record.settings, record.threat = dataclasses.asdict(settings), f"Linf {settings.eps}"
    failures = "count as 1" if settings.attack().count_failures else "are dropped"
    for name in MEASURES:
        record.metrics[name] = mean(columns[name], highest=1)
        record.protocols[name] = _protocol(settings, name, settings.eps)
    record.metrics["failed"] = proportion(columns["failed"])
    record.protocols["failed"] = (
        f"images without an admissible iterate, which {failures}; {_protocol(settings, '', settings.eps)}"
    )
    if settings.sweep:
        measured = [{name: mean(columns[name + suffix[r]], highest=1) for name in MEASURES} for r in radii]
        failed = [{"failed": proportion(columns["failed" + suffix[r]])} for r in radii]
        record.curves["linf"] = [
            {"label": r, "x": units.number(r)} | m | f for r, m, f in zip(radii, measured, failed, strict=True)
        ]
    rows = [[r, name, *box(columns[name + suffix[r]])] for r in radii for name in MEASURES]
    record.tables["boxes"] = {"columns": ["radius", "measure", *BOX_COLUMNS], "rows": rows}
    kept = np.concatenate([(columns["kept_prediction" + s] | columns["failed" + s]) for s in suffix.values()])
    record.checks = {
        "largest_change_over_eps": {
            r: float(columns["largest_change" + suffix[r]].max()) / units.number(r) if units.parse(r) else None
            for r in radii
        },
        "kept_prediction_share": float(kept.mean()),
        "empty_maps": int(columns["empty"].sum()),
        "empty_maps_logit": int(columns["empty_logit"].sum()),
    }
    for name, what in (("empty", "cross-entropy"), ("empty_logit", "logit")):
        if columns[name].any():
            record.warnings.append(
                f"{int(columns[name].sum())} images are left out: their map of the {what} is zero everywhere"
            )
    if columns["failed"].mean() > 0.1:
        share = 100 * columns["failed"].mean()
        record.warnings.append(
            f"the attack failed on {share:.1f} % of the images, which {failures}: compare shares too"
        )
    excess = max(float(columns["largest_change" + suffix[r]].max()) - units.number(r) for r in radii)
    if excess > 1e-6:
        record.warnings.append("perturbed images left the ball: the numbers are not valid")
    record.columns = {k: v for k, v in columns.items() if not k.startswith(("empty", "kept_prediction"))}


def _protocol(settings: Settings, measure: str, radius: str) -> str:
    """Return the sentence that identifies how IN and K were measured."""
    maps = {"IN": "cross-entropy", "K": "cross-entropy", "IN_logit": "logit", "K_logit": "logit"}
    map_text = f"maps of the {maps[measure]}; " if measure else ""
    return (
        f"{map_text}{settings.preset}, Linf {radius}, {settings.num_steps} steps of {settings.step_size}, top"
        f" {settings.top_k}, {settings.num_points} path points, softplus {settings.beta:g}; correctly classified images"
    )
