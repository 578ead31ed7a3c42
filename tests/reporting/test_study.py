import dataclasses
import json
import math

import numpy as np
import pytest

from jrobust.errors import InputError
from jrobust.reporting import run_files, study, study_page

GROUPS = tuple(study.Group(label, (f"{label}-0", f"{label}-1", f"{label}-2")) for label in ("a", "b", "a, x=2"))
STUDY = study.Study(
    "c.py",
    ("--config.train.steps=3",),
    ("acc", "K"),
    (0, 1, 2),
    GROUPS,
    (study.Sweep("a", "method.x", (("2", "a, x=2"), ("1", "a"))), study.Sweep("a", "word", (("on", "a"),))),
    "b",
    {
        **{f"a-{i}": {"acc": value, "K": -value} for i, value in enumerate((0.5, 0.6, 0.8))},
        **{f"b-{i}": {"acc": value, "K": 0.5} for i, value in enumerate((0.1, math.nan))},
    },
    {"b-2": "training diverged <here>"},
)


def test_the_interval_is_that_of_student_with_two_degrees_of_freedom():
    found = study.spread([0.5, 0.6, 0.8])
    assert found.mean == pytest.approx(1.9 / 3)
    assert found.std == pytest.approx(math.sqrt(0.14 / 9))  # divided by n
    half = 4.302652729749464 * math.sqrt(0.14 / 6) / math.sqrt(3)
    assert (found.low, found.high) == pytest.approx((found.mean - half, found.mean + half))
    one, none = study.spread([0.25, math.nan]), study.spread([math.nan])
    assert (one.mean, one.std, one.count) == (0.25, 0.0, 1) and math.isnan(one.low)
    assert none.count == 0 and math.isnan(none.mean)


def test_the_table_of_a_measure():
    found = study.table(STUDY, "acc")
    assert "ddof = 0" in found.title and "seeds 0, 1, 2" in found.title and "Student" in found.note
    assert found.rows == [
        ["a", "63.33 +- 12.47", "25.39 to 101.28", "3", "50.00, 60.00, 80.00"],
        ["b", "10.00", "", "1", "10.00, -"],
        ["a, x=2", "-", "", "0", ""],
    ]


def test_measures_are_found_in_any_suite_of_the_same_config(make_run, tmp_path):
    run = run_files.read(make_run(tmp_path / "a"))
    found = study.measured(run, ["accuracy", "IN", "robustness.pgd_20"], "0123456789ab")
    assert found == {"accuracy": 0.9, "IN": 0.7, "robustness.pgd_20": 0.4}
    with pytest.raises(InputError, match=r"unknown measure 'pgd_2': expected one of accuracy, .*did you mean 'pgd_20'"):
        study.measured(run, ["pgd_2"], "0123456789ab")
    with pytest.raises(InputError, match="unknown measure 'accuracy'"):
        study.measured(run, ["accuracy"], "of another config")


def test_the_page_and_its_figures(tmp_path):
    (tmp_path / "sweep-9.png").write_text("of an earlier study")
    paths = study_page.write(STUDY, tmp_path)
    assert [path.name for path in paths] == ["study.json", "sweep.png", "rows.png", "study.html"]
    assert not (tmp_path / "sweep-9.png").exists()
    html = paths[-1].read_text()
    assert html.count("<img") == 2 and "training diverged &lt;here&gt;" in html and "--config.train.steps=3" in html
    assert '<a href="a-0/report/index.html">' in html and "b-2: not done" in html
    content = json.loads(paths[0].read_text())
    assert content["groups"][1]["measures"]["acc"]["low"] is None and content["baseline"] == "b"
    assert content["groups"][1]["runs"][2] == {
        **{"seed": 2, "folder": "b-2", "values": None, "note": "training diverged <here>"},
    }
    nothing = dataclasses.replace(STUDY, results={})
    assert [path.name for path in study_page.write(nothing, tmp_path)] == ["study.json", "study.html"]


def test_what_a_sweep_draws(monkeypatch, tmp_path):
    from matplotlib.axes import Axes

    lines, bars, levels = [], Axes.errorbar, []
    monkeypatch.setattr(
        Axes, "errorbar", lambda axis, x, y, e, **k: lines.append((list(x), y, e, k)) or bars(axis, x, y, e, **k)
    )
    monkeypatch.setattr(Axes, "axhline", lambda axis, y, **k: levels.append((y, k["linestyle"])))
    study_page._sweep(STUDY, list(STUDY.sweeps), tmp_path / "sweep.png")
    xs, means, stds, keywords = lines[0]
    assert xs == [1.0, 2.0] and keywords["fmt"] == "o-" and keywords["label"] == "acc"  # sorted, a line
    np.testing.assert_allclose(means, [63.333, math.nan], atol=1e-3)
    np.testing.assert_allclose(stds, [12.472, math.nan], atol=1e-3)
    assert lines[2][0] == [0.0] and lines[2][3]["fmt"] == "o"  # words are no line
    assert levels == [(pytest.approx(10), "--"), (pytest.approx(50), "--")] * 2
