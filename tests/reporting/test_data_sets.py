"""What pages and comparisons show of models whose classes are texts, from records as the suites write them."""

from __future__ import annotations

import json

import compare
import pytest

from jrobust.evaluation import run_suites
from jrobust.reporting import comparison, curves, page, run_files, tables
from tests.evaluation.level_model import Levels, level_set, loader

DTD = level_set("dtd", [0.25, 0.75], [0.1, 0.35, 0.45, 0.55, 0.9], [0, 0, 1, 1, 1])
C10 = level_set("cifar10", [0.25, 0.75], [0.2, 0.32, 0.6, 0.48], [0, 1, 1, 1])
SHARED = {"sets": ("dtd", "cifar10"), "source": "dtd", "eps": "0.04", "step_size": "0.02"}


def evaluate(folder, shift, **changes):
    settings = {
        "batch_size": 5,
        "zero_shot": SHARED | {"attacks": ("pgd",), "sweep": ("0.02",)} | changes,
        "interpolation": SHARED | {"shares": (0.0, 0.5, 1.0)},
    }
    suites = ["zero_shot", "interpolation"]
    model = Levels(shift=shift).subject()
    run_suites(suites, model, DTD[0], settings, folder, sets=loader(dtd=DTD, cifar10=C10), progress=False)
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return [evaluate(folder / "plain", 0.0), evaluate(folder / "tuned", 0.2)]


def test_a_page_has_the_table_the_curve_and_the_trade_off(runs):
    text = page.write(runs[1]).read_text()
    assert {file.stem for file in (runs[1] / "report").glob("*.png")} == {"zero_shot", "interpolation"}
    records = run_files.read(runs[1]).records
    whole, sets, between = tables.extras(records)
    assert whole.columns == ["accuracy", "C10", "DTD", "Avg", "zero-shot Avg"]
    assert whole.rows[:2] == [
        ["clean", "100.00", "80.00", "90.00", "100.00"],
        ["PGD-10", "75.00", "80.00", "77.50", "75.00"],
    ]
    assert whole.note == (
        "Linf 0.04; sample full, 9 images in all. Avg: unweighted mean of the sets; zero-shot Avg: without dtd, which "
        "was trained on."
    )
    assert sets.rows[0][:6] == ["C10", "cifar10 test", "4", "2", "2", "2 x 2"]
    assert between.rows[-1] == ["1", "90.00", "100.00", "77.50", "75.00"]
    for expected in ("clean, mean of the sets", "PGD-10, mean of the zero-shot sets", '<td class="number">75.00</td>'):
        assert expected in text, expected
    assert "dtd.clean" not in text and "clean at" not in text  # they are in tables of their own
    summary = [row[1] for row in tables.summary(records)]
    assert summary[:2] == ["clean, mean of the sets", "clean, mean of the zero-shot sets"] and len(summary) == 4


def test_runs_stand_under_each_other_in_the_columns_of_the_paper(runs, tmp_path, capsys):
    found = comparison.compare(runs)
    means = [f"{name}, mean of the {sets} %" for sets in ("sets", "zero-shot sets") for name in ("clean", "PGD-10")]
    assert found.columns == ["run", *means, "images/s", "parameters"]
    assert found.warnings == []
    clean, pgd, _ = found.extras
    assert clean.columns == pgd.columns == ["run", "C10", "DTD", "Avg", "zero-shot Avg"]
    assert clean.rows == [
        ["plain", "50.00", "80.00", "65.00", "50.00"],
        ["tuned", "100.00", "80.00", "90.00", "100.00"],
    ]
    assert pgd.rows[1] == ["tuned", "75.00", "80.00", "77.50", "75.00"]
    assert pgd.title.startswith("PGD-10") and pgd.note.endswith(
        "sample full, 9 images in all. zero-shot Avg: without dtd."
    )
    assert "Linf 0.04, step 0.02, random start" in pgd.note and "mean over" not in pgd.note
    output = tmp_path / "table.html"
    compare.main([*map(str, runs), f"--output={output}"])
    assert "tuned" in capsys.readouterr().out and "PGD-10, accuracy (%) on each data set" in output.read_text()
    assert output.read_text().count('<img width="') == 1
    ((how, curves),) = found.trade_offs.items()
    assert list(curves) == ["plain", "tuned"] and "Linf 0.04" in how and how.endswith("C10, DTD (full)")


def test_the_trade_off_is_robust_over_clean_accuracy_and_its_ends_are_marked(runs, monkeypatch, tmp_path):
    from matplotlib.axes import Axes

    drawn, plot = [], Axes.plot
    monkeypatch.setattr(Axes, "plot", lambda axis, *xy, **k: drawn.append((*map(list, xy), k)) or plot(axis, *xy, **k))
    points = run_files.read(runs[1]).records["interpolation"]["curves"]["interpolation"]
    assert curves.trade_off({"tuned": points, "none": []}, tmp_path / "a.png")
    line, original, fine_tuned = drawn
    assert line[0] == pytest.approx([65, 87.5, 90]) and line[1] == pytest.approx([65, 87.5, 77.5])
    assert original[:2] == ([pytest.approx(65)], [pytest.approx(65)]) and original[2]["label"] == "original"
    assert fine_tuned[1] == [pytest.approx(77.5)] and fine_tuned[2]["label"] == "fine-tuned"
    assert not curves.trade_off({"none": []}, tmp_path / "b.png") and not curves.zero_shot({}, tmp_path / "c.png")


def test_other_radii_sets_and_sources_do_not_share_a_table_or_a_mean(runs, tmp_path):
    path = tmp_path / "other" / "evaluation" / "zero_shot.json"
    path.parent.mkdir(parents=True)

    def tables_with(**settings):
        entry = json.loads((runs[1] / "evaluation" / "zero_shot.json").read_text())
        entry["settings"] |= settings
        path.write_text(json.dumps(entry))
        return comparison.compare([runs[0], path.parent.parent]).extras

    assert len(tables_with(sample="strided20")) == 6
    found = tables_with(source="cifar10")
    assert len(found) == 3 and found[0].columns == ["run", "C10", "DTD", "Avg"] and len(found[0].rows[1]) == 4
    path.write_text(path.read_text().replace("Linf 0.04", "Linf 0.01"))
    assert [len(extra.rows) for extra in comparison.compare([runs[0], path.parent.parent]).extras] == [2, 1, 2, 1]
