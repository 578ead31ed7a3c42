import json
import sys

import pytest

from benchmarks import measure, tables
from jrobust.errors import InputError

ROW = {
    "model": "wrn-16-4",
    "dtype": "float32",
    "batch": 1024,
    "devices": 1,
    "device": "cpu",
    "platform": "cpu",
    "cpu_cores": 2,
    "versions": {"jax": "0.10", "torch": None},
    "commit": "abc1234",
    "date": "2026-01-31T01:02:03+00:00",
    "load_before": 0.1,
    "load_after": 1.5,
    "share": 0.314,
    "seconds_quartiles": (0.5, 0.75),
    "matrix_flops_per_second": 1e9,
}


def write(path, rows, monkeypatch, title="steps"):
    words = [str(measure.ROOT / "benchmarks" / "x_steps.py"), "--batch=2", "--output=here"]
    monkeypatch.setattr(sys, "argv", words)
    return measure.write(rows, "x_steps", str(path), title)


def test_a_document_of_two_files(tmp_path, monkeypatch):
    rows = [ROW | {"name": "ours"}, ROW | {"name": "a|b", "same_strength": False, "seconds_over_ft": (1.0, 2.0, 3.0)}]
    paths = [
        write(tmp_path / "one.json", rows, monkeypatch),
        write(tmp_path / "two.json", [ROW | {"name": "x"}], monkeypatch, "other"),
    ]
    text = tables.main([*map(str, paths), "--title=All", f"--output={tmp_path / 'deep' / 'all.md'}"])
    assert (tmp_path / "deep" / "all.md").read_text() == text
    assert text.splitlines()[:10] == [
        "# All",
        "",
        "## Steps",
        "",
        "    python benchmarks/x_steps.py --batch=2",
        "",
        "| program | quartiles | % of matmul | seconds over ft | same strength |",
        "| :--- | ---: | ---: | ---: | ---: |",
        "| ours | 0.5 .. 0.75 | 31 | - | - |",
        r"| a\|b | 0.5 .. 0.75 | 31 | 1.00 .. 2.00 .. 3.00 | NO |",
    ]
    assert "wrn-16-4, float32, batch 1,024; 1 x cpu, 2 CPU cores; jax 0.10; commit abc1234, 2026-01-31" in text
    assert "## Other" in text and "load average before 0.10, after 1.50" in text


def test_what_differs_is_a_column_and_what_does_not_is_said_below(tmp_path):
    rows = [ROW | {"name": "x", "batch": batch} for batch in (1, 2)]
    headings, cells = tables.columns(rows, tables.COLUMNS)
    assert [heading for heading, _ in headings] == ["program", "batch", "quartiles", "% of matmul"]
    assert [row[1] for row in cells] == ["1", "2"]
    assert tables.conditions(rows)[0].startswith("wrn-16-4, float32; ")


def test_a_busy_cpu_compares_nobody():
    for load, expected in ((5.0, False), (0.1, True)):
        row = ROW | {"name": "x", "load_before": load, "speed_of_jrobust_over_this": (1.0, 1.0, 1.0)}
        found = [heading for heading, _ in tables.columns([row], tables.RATIOS)[0]]
        assert (found == ["jrobust's speed over this"]) == expected


def test_files_that_are_none(tmp_path):
    with pytest.raises(InputError, match=r"cannot read .*none.json"):
        tables.main([str(tmp_path / "none.json")])
    for text, message in (("{", "is not JSON lines"), ("", "holds no rows"), (json.dumps(ROW), "holds no rows")):
        (tmp_path / "rows.json").write_text(text)
        with pytest.raises(InputError, match=message):
            tables.main([str(tmp_path / "rows.json")])
