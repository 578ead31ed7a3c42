"""One self-contained HTML page per run."""

from __future__ import annotations

import json
import os
import pathlib
import time
from collections.abc import Callable
from typing import Any

import jinja2

from jrobust.reporting import boxplots, curves, gallery, tables
from jrobust.reporting.figures import embedded
from jrobust.reporting.run_files import Row, Run, number, read

Draw = Callable[[pathlib.Path], bool]
WISE_FT = (
    "Between the original weights (0) and the fine-tuned ones (1), as in WiSE-FT: accuracy out of distribution over"
    " that in distribution. Numbers: the share of the fine-tuned weights."
)
CAM_CLASSES = {"predicted": "the class that the model predicts", "label": "the true class"}


def write(workdir: str | os.PathLike) -> pathlib.Path:
    """Write WORKDIR/report/index.html and its figures as PNG from the run's result files; return the page's path.

    The page holds its figures and needs nothing from elsewhere, so it can be sent by itself. Figures of an earlier
    report are replaced or removed.

    Raises:
      InputError: the folder holds no run, or a result file is damaged.
    """
    run = read(workdir)
    folder = run.path / "report"
    folder.mkdir(exist_ok=True)
    for old in folder.glob("*.png"):
        old.unlink()
    drawn = [figure for figure in figures(run, folder) if figure]
    html = (
        environment()
        .get_template("page.html")
        .render(
            run=run,
            facts=facts(run),
            columns=tables.SUMMARY_COLUMNS,
            summary=tables.summary(run.records),
            warnings=[(suite, text) for suite, record in run.records.items() for text in record.get("warnings", [])],
            figures=drawn,
            extras=tables.extras(run.records),
            per_class=_per_class(run.records.get("accuracy", {})),
            config=json.dumps(run.config, indent=2),
            environment=json.dumps(run.environment, indent=2),
            written=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        )
    )
    return write_text(folder / "index.html", html)


def figures(run: Run, folder: pathlib.Path) -> list[Row | None]:
    """Draw every figure that the run has results for; an entry is {"section", "name", "caption", "data", "width"}."""
    names = ("accuracy", "robustness", "attribution", "localization", "sanity")
    accuracy, robustness, attribution, localization, sanity = (run.records.get(name, {}) for name in names)
    step = number(robustness.get("settings", {}).get("sweep_steps"))

    def one(section: str, name: str, draw: Draw, caption: str) -> Row | None:
        path = folder / f"{name}.png"
        if not draw(path):
            return None
        return {"section": section, "caption": caption} | embedded(path)

    return [
        one("Training", "training", lambda p: curves.training(run.metrics, p), "Training, from metrics.jsonl."),
        one("Accuracy", "confusion", lambda p: gallery.confusion(accuracy, p), "What each class is taken for."),
        *_of_texts(run, one),
        *_of_patches(run, one),
        *_of_biases(run, one),
        one(
            "Robustness",
            "robustness",
            lambda p: curves.robustness(robustness, p),
            f"{step:.0f} steps of PGD on {robustness.get('examples')} images. Bands: 95 % Wilson intervals.",
        ),
        one(
            "Sanity",
            "sanity",
            lambda p: curves.sanity(sanity, p),
            f"Accuracy over the number of steps at {sanity.get('threat')} and over the radius, under PGD on"
            f" {sanity.get('examples')} images. It should not rise, and end at 0 on the right. Bands: 95 % Wilson"
            " intervals.",
        ),
        one(
            "Attributions",
            "attribution_boxes",
            lambda p: boxplots.attribution(attribution, run.columns("attribution"), p),
            "Agreement of the maps before and after the attack. Boxes: quartiles and median; circles: means; whiskers:"
            " the outermost examples within 1.5 interquartile ranges.",
        ),
        one(
            "Attributions",
            "attribution",
            lambda p: curves.attribution(attribution, p),
            f"IN, the share of the top pixels that stay, and K, Kendall's tau of the maps: means over"
            f" {attribution.get('examples')} correctly classified images. Bands: 95 % normal intervals.",
        ),
        one(
            "Attributions",
            "gallery",
            lambda p: gallery.attribution(run.arrays("attribution"), attribution.get("class_names", []), p),
            "Image, its map (integrated gradients of the cross-entropy), perturbed image and its map. Both maps of an"
            " example share their colours, which end at the 99th percentile of the clean map. IN and K in percent.",
        ),
        one(
            "Localisation",
            "localization",
            lambda p: curves.localization(localization, p),
            f"Boxes found among {localization.get('examples')} images. Bands: 95 % Wilson intervals.",
        ),
        one(
            "Localisation",
            "boxes",
            lambda p: gallery.localization(run.arrays("localization"), p),
            "True boxes (solid, green) and found ones (dashed, orange), over images and heatmaps.",
        ),
    ]


def _of_biases(run: Run, one: Callable[[str, str, Draw, str], Row | None]) -> list[Row | None]:
    """Draw the figures of images whose bias goes with their class, or does not."""
    bias = run.records.get("bias", {})
    cam_class = bias.get("settings", {}).get("cam_class", "")
    return [
        one("Bias", "wise_ft_bias", lambda p: _between(run, "bias", p), WISE_FT),
        one(
            "Bias",
            "bias_groups",
            lambda p: gallery.groups(bias, p),
            "Accuracy of the groups of class (rows) and bias (columns), with the number of images. Grey: no images.",
        ),
        one(
            "Bias",
            "grad_cam",
            lambda p: gallery.grad_cam(run.arrays("bias"), bias.get("class_names", []), p),
            f"Conflicting images and, over them, Grad-CAM of {CAM_CLASSES.get(cam_class, cam_class)}, each map from its"
            " smallest value (blue) to its largest (red). Above a map: the model's prediction, green where it is"
            " right.",
        ),
    ]


def _of_patches(run: Run, one: Callable[[str, str, Draw, str], Row | None]) -> list[Row | None]:
    """Draw the figures of models whose images are patches."""
    record = run.records.get("masking", {})
    threshold = number(record.get("settings", {}).get("threshold"))
    return [
        one(
            "Masking",
            "masking",
            lambda p: curves.masking(record, p),
            "What patches of high relevance cover of the image and of its object: means over images. Bands: 95 % normal"
            " intervals.",
        ),
        one(
            "Masking",
            "masked",
            lambda p: gallery.masking(run.arrays("masking"), p),
            "Images with their objects outlined; the relevance of their patches to the label, from 0 to 1; and the"
            f" images whose patches above {threshold:g} are those of another image.",
        ),
    ]


def _of_texts(run: Run, one: Callable[[str, str, Draw, str], Row | None]) -> list[Row | None]:
    """Draw the figures of models whose classes are texts."""
    zero_shot, interpolation = run.records.get("zero_shot", {}), run.records.get("interpolation", {})
    return [
        one(
            "Data sets",
            "zero_shot",
            lambda p: curves.zero_shot(zero_shot, p),
            f"{number(zero_shot.get('settings', {}).get('num_steps')):.0f} steps of PGD: the mean over data sets of"
            " their accuracies. Bands: 95 % normal intervals.",
        ),
        one(
            "Data sets",
            "interpolation",
            lambda p: _between(run, "interpolation", p),
            "Between the original model (0) and the fine-tuned one (1): accuracy under PGD at"
            f" {interpolation.get('threat')} over clean accuracy, means over data sets. Numbers: the share of the"
            " fine-tuned model.",
        ),
        one("Data sets", "wise_ft_shift", lambda p: _between(run, "natural_shift", p), WISE_FT),
    ]


def _between(run: Run, suite: str, path: pathlib.Path) -> bool:
    return curves.trade_off({run.name: curves.between(run.records, suite)}, path, suite)


def facts(run: Run) -> list[tuple[str, str]]:
    """Return what identifies the run and its numbers, as pairs of a word and a text."""
    record: Row = next(iter(run.records.values()), {})
    method, model = run.config.get("method", {}), run.config.get("model", {})
    rates = sorted(number(row.get("images_per_second")) for row in run.throughput if "images_per_second" in row)
    versions = run.environment.get("versions") or record.get("versions", {})
    devices = run.environment.get("devices", {})
    trained_on = f"{devices.get('count')} x {devices.get('kind')}" if devices else ""
    found = [
        ("method", " ".join(str(method[key]) for key in ("name", "objective") if method.get(key))),
        ("model", model.get("name", record.get("model", ""))),
        ("parameters", tables.count(record.get("parameters")) if record else ""),
        ("data", str(run.config.get("data", {}).get("name") or record.get("dataset", ""))),
        ("steps trained", tables.count(run.metrics[-1].get("step")) if run.metrics else ""),
        ("training speed", f"{rates[len(rates) // 2]:,.0f} images/s (median)" if rates else ""),
        ("trained on", trained_on),
        ("evaluated on", record.get("device", "")),
        ("step evaluated", str(record.get("step") or "")),
        ("compute type of the evaluation", record.get("dtype", "")),
        ("seed", str(run.config.get("seed", record.get("seed", "")))),
        ("commit", run.environment.get("commit") or record.get("commit", "")),
        ("config hash", record.get("config_hash", "")),
        ("versions", ", ".join(f"{name} {version}" for name, version in versions.items())),
    ]
    return [(word, text) for word, text in found if text]


def environment() -> jinja2.Environment:
    """Return the templates of this package; everything put into a page is escaped."""
    loader = jinja2.PackageLoader("jrobust.reporting", "templates")
    templates = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    templates.globals["zip"] = zip
    templates.tests["numeric"] = tables.numeric_column
    templates.filters |= {"percent": tables.percent, "count": tables.count, "metric": tables.metric_name}
    return templates


def write_text(path: pathlib.Path, text: str) -> pathlib.Path:
    """Write a file at once or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
    return path


def _per_class(record: Row) -> list[list[str]]:
    table: Any = record.get("tables", {}).get("per_class", {"rows": []})
    rows = []
    for name, value, low, high, count in table["rows"]:
        rows.append([name, tables.percent(value), tables.interval({"low": low, "high": high}), tables.count(count)])
    return rows
