"""A run folder as training and evaluation leave it, written by hand."""

from __future__ import annotations

import json

import numpy as np
import pytest

BOXES = ["radius", "measure", "q1", "median", "q3", "whisker_low", "whisker_high", "mean", "variance", "outliers"]
BOXES += ["count"]


def estimate(value, count=50, kind="wilson"):
    return {"value": value, "low": value - 0.05, "high": value + 0.05, "count": count, "interval": kind}


def record(suite, **fields):
    base = {
        "format": 1,
        "suite": suite,
        "model": "net",
        "dataset": "toy test",
        "examples": 50,
        "class_names": ["cat", "<dog>"],
        "threat": "none",
        "settings": {},
        "metrics": {},
        "protocols": {},
        "curves": {},
        "tables": {},
        "checks": {},
        "warnings": [],
        "seconds": 1.5,
        "attack_steps": 0,
        "attack_steps_per_second": None,
        "parameters": 1234567,
        "dtype": "float32",
        "step": 30,
        "seed": 0,
        "device": "1 x cpu (cpu)",
        "commit": "c" * 40,
        "config_hash": "0123456789ab",
        "versions": {"jax": "0.0"},
        "created": "2024-01-01T00:00:00Z",
    }
    return base | fields


def fill(folder, *, eps="8/255", accuracy=0.9, rate=1000.0):
    """Write a whole run."""
    evaluation = folder / "evaluation"
    evaluation.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"seed": 0, "method": {"name": "art"}, "data": {"name": "toy"}}))
    (folder / "environment.json").write_text(json.dumps({"commit": "d" * 40, "devices": {"count": 1, "kind": "cpu"}}))
    lines = [{"step": s, "epoch": s / 10, "loss": 1 / s, "learning_rate": 0.1} for s in (10, 20, 30)]
    lines += [{"step": 30, "test_accuracy": 0.9, "odd": None}]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 40, "lo')
    (folder / "throughput.jsonl").write_text(
        "".join(json.dumps({"step": s, "images_per_second": rate * s}) + "\n" for s in (1, 2, 3))
    )
    protocol = f"PGD-20, Linf {eps}"
    records = [
        record(
            "accuracy",
            metrics={"accuracy": estimate(accuracy)},
            protocols={"accuracy": "images as they are"},
            tables={
                "confusion": {"columns": ["label", "cat", "<dog>"], "rows": [["cat", 20, 5], ["<dog>", 0, 25]]},
                "per_class": {
                    "columns": ["class", "accuracy", "low", "high", "count"],
                    "rows": [["cat", 0.8, 0.6, 0.9, 25], ["<dog>", 1.0, None, None, 25]],
                },
            },
        ),
        record(
            "robustness",
            threat=f"Linf {eps}",
            settings={"eps": eps, "num_steps": [20], "sweep_steps": 20},
            metrics={"accuracy": estimate(accuracy), "pgd_20": estimate(0.4), "worst_case": estimate(0.35)},
            protocols={"accuracy": "images as they are", "pgd_20": protocol, "worst_case": "all"},
            curves={
                "linf": [{"label": f"{e}/255", "x": e / 255, "accuracy": estimate(0.9 - e / 20)} for e in (0, 4, 8)],
                "l2": [{"label": str(e), "x": e, "accuracy": estimate(0.9 - e / 4)} for e in (0.0, 0.5, 1.0)],
            },
            checks={"inside_ball": True},
            warnings=["gradients may be <masked>"],
        ),
        record(
            "attribution",
            threat=f"Linf {eps}",
            settings={"eps": eps},
            metrics={"IN": estimate(0.7, 8, "normal"), "K": estimate(0.6, 8, "normal"), "failed": estimate(0.1)},
            protocols={"IN": "maps", "K": "maps", "failed": "maps"},
            curves={
                "linf": [
                    {"label": f"{e}/255", "x": e / 255}
                    | {m: estimate(0.9 - e / 20, 8) for m in ("IN", "K", "IN_logit", "K_logit")}
                    for e in (2, 8)
                ]
            },
            tables={
                "boxes": {
                    "columns": BOXES,
                    "rows": [[eps, m, 0.5, 0.6, 0.7, 0.3, 0.9, 0.6, 0.01, 1, 8] for m in ("IN", "K")]
                    + [[eps, "IN_logit", None, None, None, None, None, None, None, 0, 0]],
                }
            },
        ),
        record(
            "sanity",
            threat=f"Linf {eps}",
            metrics={"accuracy": estimate(0.875), "pgd_200": estimate(0.25), "di_fgsm from b": estimate(0.5)},
            curves={
                "iterations": [
                    {"label": str(k), "x": k, "accuracy": estimate(0.9 - k / 400)} for k in (0, 1, 5, 20, 200)
                ],
                "linf": [{"label": f"{e}/255", "x": e / 255, "accuracy": estimate(0.9 - e / 300)} for e in (0, 8, 255)],
            },
            tables={
                "checks": {
                    "columns": ["check", "result", "what was found"],
                    "rows": [["more steps <never> help", "passed", "9 to 3"], ["nothing is left", "failed", "1 of 9"]],
                }
            },
            checks={"more_steps_never_help": True, "unbounded_reaches_zero": False},
        ),
        record(
            "transfer",
            tables={"matrix": {"columns": ["evaluated", "crafted on a", "clean"], "rows": [["a", 0.123, 0.9]]}},
        ),
        record(
            "localization",
            metrics={"gt_known": estimate(0.5)},
            protocols={"gt_known": "boxes"},
            curves={
                "threshold": [
                    {"label": str(t), "x": t, "gt_known": estimate(0.5), "top1_localization": None} for t in (0.1, 0.2)
                ]
            },
        ),
    ]
    for entry in records:
        (evaluation / f"{entry['suite']}.json").write_text(json.dumps(entry))
    rng = np.random.default_rng(0)
    (evaluation / "attribution.csv").write_text("index,IN,K\n0,0.1,0.5\n1,,0.6\n2,0.6,0.7\n")
    images = rng.random((3, 6, 6, 3))
    np.savez(
        evaluation / "attribution.npz",
        image=images,
        adv_image=images,
        map=rng.random((3, 6, 6)),
        adv_map=np.zeros((3, 6, 6)),
        label=np.array([0, 1, 7]),
        IN=np.array([0.5, np.nan, 1]),
        K=np.array([0.5, np.nan, 1]),
    )
    boxes = np.tile([1.0, 1, 4, 4], (3, 1))
    np.savez(
        evaluation / "localization.npz", image=images[..., :1], heatmap=rng.random((3, 6, 6)), box=boxes, true_box=boxes
    )
    return folder


def with_bias(folder, *, conflicting=0.5, models=("net", "other")):
    """Add what the suite bias measures; `fill` comes before. A group has no images, a share is 1 as a whole number."""
    metrics = {
        "average": estimate(0.73, 22),
        "conflicting": estimate(conflicting, 8),
        "aligned": estimate(0.86, 14),
        "worst_group": estimate(0.25, 4),
        "unbiased": estimate(0.7, 22, "normal"),
        "average under jpeg": estimate(0.6, 22),
        "conflicting under jpeg": estimate(0.35, 8),
    }
    rows = [["cat", "in", 1.0, 0.6, 1.0, 6], ["cat", "out", 0.5, 0.1, 0.9, 2], ["cat", "sky", None, None, None, 0]]
    rows += [["<dog>", "in", 0.25, 0.0, 0.7, 4], ["<dog>", "out", 0.75, 0.4, 0.9, 8], ["<dog>", "sky", 1.0, 0.3, 1, 2]]
    corruptions = [["none", 0.73, 0.5, 0.8, 0.125], ["jpeg", 0.6, 0.35, 0.7, None]]
    entry = record(
        "bias",
        examples=22,
        settings={"cam_class": "label", "gallery": 3},
        metrics=metrics,
        protocols=dict.fromkeys(metrics, "images"),
        tables={
            "groups": {"columns": ["class", "bias", "accuracy", "low", "high", "count"], "rows": rows},
            "corruptions": {
                "columns": ["corruption", "average", "conflicting", "average of other", "conflicting of other"],
                "rows": corruptions,
            },
        },
        checks={"worst_group": "<dog> / in", "conflicting_images": 8},
        warnings=["1 of 6 groups of class and bias have no images"],
    )
    (folder / "evaluation" / "bias.json").write_text(json.dumps(entry))
    height, width = np.mgrid[0:12, 0:12] / 11
    cams = np.stack([[height, np.zeros_like(height)][: len(models)], [width, height][: len(models)]])
    np.savez(
        folder / "evaluation" / "bias.npz",
        image=np.random.default_rng(1).random((2, 12, 12, 3)).astype(np.float32),
        cam=cams.astype(np.float32),
        label=np.array([0, 1]),
        bias=np.array([1, 0]),
        index=np.array([3, 8]),
        prediction=np.array([[0, 1], [0, 1]])[:, : len(models)],
        model=np.array(models),
    )
    return folder


def as_fsr(folder, *, autoattack=0.31):
    """Add what the protocol of FSR measures; `fill` comes before."""
    path = folder / "evaluation" / "robustness.json"
    entry = json.loads(path.read_text())
    for name, value in (("fgsm", 0.5), ("pgd_20", 0.4), ("pgd_100", 0.375), ("cw_30", 0.36), ("worst_case", 0.35)):
        entry["metrics"].pop(name, None)
        entry["metrics"][name] = estimate(value)
        entry["protocols"][name] = f"{name}, Linf 8/255"
    path.write_text(json.dumps(entry))
    parts = {
        "columns": ["attack", "robust accuracy", "broken", "seconds"],
        "rows": [["apgd-ce", 0.335, 1234, 12.345], ["square", 0.31, 0, None]],
    }
    entry = record(
        "autoattack",
        examples=40,
        metrics={
            "accuracy": estimate(0.9, 40),
            "after apgd-ce": estimate(0.335, 40),
            "robust_accuracy": estimate(autoattack, 40),
        },
        protocols={"accuracy": "images as they are", "robust_accuracy": "AutoAttack standard, Linf 8/255"},
        tables={"parts": parts},
    )
    (folder / "evaluation" / "autoattack.json").write_text(json.dumps(entry))
    return folder


@pytest.fixture
def make_fsr():
    return as_fsr


@pytest.fixture
def make_biased():
    return with_bias


@pytest.fixture
def run_folder(tmp_path):
    return fill(tmp_path / "run")


@pytest.fixture
def make_run():
    return fill
