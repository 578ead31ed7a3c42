import dataclasses
import json
import math

import numpy as np
import pytest

from jrobust.errors import InputError
from jrobust.reporting import curves, run_files, study, study_page

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


def points(*pairs):
    """The curve of a run as a record has it, from the share, aligned and conflicting accuracy of each point."""
    words = ("aligned", "conflicting")
    return [{"label": f"{s:g}", "x": s} | {w: {"value": v} for w, v in zip(words, vs, strict=True)} for s, *vs in pairs]


CURVES = {
    "a-0": {"bias": points((0.0, 0.9, 0.8), (0.5, 1.0, 0.7), (1.0, 1.0, 0.4)), "interpolation": []},
    "a-1": {"bias": points((0.0, 0.9, 0.8), (1.0, 0.8, 0.6)), "interpolation": []},
    "b-0": {"bias": points((0.0, 0.9, 0.8), (1.0, 0.95, 0.75))},
}


def test_the_curve_of_a_row_is_the_mean_over_its_seeds(tmp_path):
    found = dataclasses.replace(STUDY, between=CURVES)
    assert found.suites_between() == ["bias"]
    curve = found.curve("a", "bias")
    assert list(curve) == [0.0, 1.0]  # the second run has no other shares
    assert (curve[1.0]["aligned"].mean, curve[1.0]["conflicting"].mean) == (pytest.approx(0.9), pytest.approx(0.5))
    assert curve[1.0]["conflicting"].std == pytest.approx(0.1) and found.curve("a, x=2", "bias") == {}
    table = study.between_table(found, "bias")
    assert table.columns == ["share", "a: aligned", "a: conflicting", "b: aligned", "b: conflicting"]
    assert table.rows[1] == ["1", "90.00 +- 10.00", "50.00 +- 10.00", "95.00", "75.00"]
    paths = study_page.write(found, tmp_path)
    assert [path.name for path in paths][-2:] == ["between-bias.png", "study.html"]
    html = paths[-1].read_text()
    assert "50.00 +- 10.00" in html and html.count("<img") == 3
    content = json.loads(paths[0].read_text())
    assert content["groups"][0]["between"]["bias"][1]["conflicting"]["mean"] == pytest.approx(0.5)
    assert study_page.write(STUDY, tmp_path) and not (tmp_path / "between-bias.png").exists()


def test_the_figure_has_what_is_out_of_distribution_over_what_is_in_it(monkeypatch, tmp_path):
    from matplotlib.axes import Axes

    drawn, plot = [], Axes.plot
    monkeypatch.setattr(Axes, "plot", lambda axis, *xy, **k: drawn.append((*map(list, xy), k)) or plot(axis, *xy, **k))
    numbers, annotate = [], Axes.annotate
    monkeypatch.setattr(Axes, "annotate", lambda axis, *a, **k: numbers.append(a) or annotate(axis, *a, **k))
    assert study_page._between(dataclasses.replace(STUDY, between=CURVES), "bias", tmp_path / "a.png")
    lines = [line for line in drawn if len(line[0]) > 1]
    assert [line[2]["label"] for line in lines] == ["a", "b"]
    assert lines[0][0] == pytest.approx([90, 90]) and lines[0][1] == pytest.approx([80, 50])
    places = [(90, 80), (90, 50), (95, 75)]  # where both lines begin there is one number
    assert numbers == [(text, pytest.approx(xy)) for text, xy in zip("011", places, strict=True)]


def test_curves_of_another_config_or_without_one_of_the_measures_are_left_out():
    records = {"bias": {"config_hash": "h", "curves": {"wise_ft": points((0.0, 0.9, 0.8))}}}
    assert curves.between(records, "bias", "h") == curves.between(records, "bias") == points((0.0, 0.9, 0.8))
    assert curves.between(records, "bias", "other") == curves.between(records, "natural_shift") == []
    del records["bias"]["curves"]["wise_ft"][0]["conflicting"]
    assert curves.between(records, "bias") == []
