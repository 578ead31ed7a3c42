from __future__ import annotations

import re

import compare
import pytest

from jrobust.errors import InputError
from jrobust.reporting import comparison


def test_equal_protocols_share_a_column(make_run, tmp_path):
    runs = [make_run(tmp_path / "a"), make_run(tmp_path / "b", accuracy=0.8, rate=10.0)]
    table = comparison.compare(runs)
    expected = ["accuracy %", "PGD-20 %", "IN %", "K %", "attacks that failed %", "localisation, class known %"]
    assert table.columns == ["run", *expected, "images/s", "parameters"]
    assert table.rows[0] == ["a", "90.00", "40.00", "70.00", "60.00", "10.00", "50.00", "2,000", "1,234,567"]
    assert table.rows[1][1] == "80.00" and table.rows[1][-2] == "20"
    assert table.warnings == []


def test_runs_of_fsr_are_told_apart_by_the_columns_of_its_tables(make_run, make_fsr, tmp_path):
    runs = [make_fsr(make_run(tmp_path / "a")), make_fsr(make_run(tmp_path / "b"), autoattack=0.25)]
    table = comparison.compare([*runs, make_run(tmp_path / "c")])
    names = [
        "accuracy",
        "FGSM",
        "PGD-20 % [1]",
        "PGD-20 % [2]",
        "PGD-100",
        "C&W-30",
        "worst case (Ensemble)",
        "AutoAttack",
    ]
    assert table.columns[1:9] == [name if "%" in name else f"{name} %" for name in names]
    assert table.rows[1][1:9] == ["90.00", "50.00", "-", "40.00", "37.50", "36.00", "35.00", "25.00"]
    assert table.rows[2][1:9] == ["90.00", "-", "40.00", "-", "-", "-", "-", "-"]
    assert not any("sanity" in text for text in table.warnings)


def test_runs_on_a_biased_set_are_told_apart_by_four_accuracies(make_run, make_biased, tmp_path):
    runs = [make_biased(make_run(tmp_path / "a")), make_biased(make_run(tmp_path / "b"), conflicting=0.625)]
    table = comparison.compare([*runs, make_run(tmp_path / "c")])
    assert table.columns[1:6] == ["accuracy %", "average %", "conflicting %", "aligned %", "worst group %"]
    assert table.rows[1][1:6] == ["90.00", "73.00", "62.50", "86.00", "25.00"]
    assert table.rows[2][1:6] == ["90.00", "-", "-", "-", "-"]
    assert not any("under" in column or "mean of" in column for column in table.columns)
    assert table.warnings == ["bias was not evaluated for c"]


def test_different_attacks_never_share_a_column(make_run, tmp_path):
    runs = [make_run(tmp_path / "a"), make_run(tmp_path / "b", eps="4/255")]
    table = comparison.compare(runs)
    first, second = (table.columns.index(f"PGD-20 % [{i}]") for i in (1, 2))
    assert [row[first] for row in table.rows] == ["-", "40.00"]
    assert [row[second] for row in table.rows] == ["40.00", "-"]
    assert "4/255" in table.protocols[first] and "8/255" in table.protocols[second]
    (warning,) = [text for text in table.warnings if text.startswith("PGD-20")]
    assert "not to be compared" in warning and "4/255" in warning and "8/255" in warning


def test_what_else_differs_is_said(make_run, tmp_path):
    runs = [make_run(tmp_path / "a"), make_run(tmp_path / "b")]
    path = runs[1] / "evaluation" / "robustness.json"
    path.write_text(path.read_text().replace('"examples": 50', '"examples": 20').replace('"seed": 0', '"seed": 1'))
    (runs[1] / "evaluation" / "attribution.json").unlink()
    (runs[1] / "environment.json").write_text('{"devices": {"kind": "gpu"}}')
    warnings = "\n".join(comparison.compare(runs).warnings)
    for expected in (
        "robustness: images differ: a 50, b 20",
        "robustness: seed differ",
        "attribution was not evaluated for b",
        "different devices",
    ):
        assert expected in warnings


def test_command_prints_and_writes(make_run, tmp_path, capsys):
    runs = [make_run(tmp_path / "x" / "run"), make_run(tmp_path / "y" / "run", eps="4/255")]
    output = tmp_path / "pages" / "table.html"
    compare.main([*map(str, runs), f"--output={output}"])
    captured = capsys.readouterr()
    assert "x/run" in captured.out and "y/run" in captured.out and str(output) in captured.out.replace("\n", "")
    assert "warning: PGD-20" in captured.err
    text = output.read_text()
    assert "not to be compared" in text and not re.search(r"https?:|//\w|url\(|<script|<link", text)


def test_no_run(tmp_path):
    with pytest.raises(InputError, match="is no folder"):
        comparison.compare([tmp_path / "none"])
