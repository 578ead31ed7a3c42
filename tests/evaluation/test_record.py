from __future__ import annotations

import dataclasses
import json
import math
import os

import numpy as np
import pytest

from jrobust.errors import InputError
from jrobust.evaluation import Record
from jrobust.evaluation import record as records
from jrobust.evaluation.estimates import mean, proportion


@pytest.fixture
def filled(linear, greys):
    return Record.of(
        "robustness",
        linear,
        greys,
        examples=3,
        threat="Linf 8/255",
        settings={"eps": "8/255", "num_steps": (20, 40)},
        metrics={"accuracy": proportion(np.array([True, False, True])), "IN": mean(np.array([np.nan]))},
        protocols={"accuracy": "images as they are"},
        curves={"linf": [{"label": "0", "x": 0.0, "accuracy": proportion(np.array([True]))}]},
        tables={"boxes": {"columns": ["measure", "q1"], "rows": [["K", 0.5], ["IN, k", None]]}},
        checks={"largest": np.float32(0.5), "nan_images": np.int64(0), "inside": np.bool_(True), "undefined": math.nan},
        columns={
            "index": np.arange(3),
            "correct": np.array([True, False, True]),
            "margin": np.array([0.1, np.nan, -3e-7], np.float32),
        },
        arrays={"image": np.random.default_rng(0).random((2, 4, 4, 3), np.float32)},
    )


def test_round_trip(filled, tmp_path):
    paths = filled.write(tmp_path / "evaluation")
    names = ["robustness.json", "robustness.csv", "robustness.boxes.csv", "robustness.npz"]
    assert [path.name for path in paths] == names
    back = Record.read(paths[0])
    for field in dataclasses.fields(Record):
        if field.name not in ("columns", "arrays", "settings", "checks", "metrics"):
            assert getattr(back, field.name) == getattr(filled, field.name), field.name
    assert back.settings == {"eps": "8/255", "num_steps": [20, 40]}
    assert back.checks == {"largest": 0.5, "nan_images": 0, "inside": True, "undefined": None}
    assert back.metrics["accuracy"] == filled.metrics["accuracy"]
    assert math.isnan(back.metrics["IN"].value) and back.metrics["IN"].count == 0
    for name, column in filled.columns.items():
        np.testing.assert_array_equal(back.columns[name].astype(column.dtype), column)
    assert back.columns["correct"].dtype == bool and back.columns["index"].dtype == int
    np.testing.assert_array_equal(back.arrays["image"], filled.arrays["image"])


def test_json_is_standard(filled, tmp_path):
    text = filled.write(tmp_path)[0].read_text()
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        ["robustness.json", "robustness.csv", "robustness.boxes.csv", "robustness.npz"]
    )


def test_a_second_record_leaves_nothing_of_the_first(filled, tmp_path):
    filled.write(tmp_path)
    filled.arrays, filled.tables = {}, {}
    filled.write(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["robustness.csv", "robustness.json"]


def test_a_write_that_fails_leaves_the_old_record(filled, tmp_path, monkeypatch):
    filled.write(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    monkeypatch.setattr(os, "replace", lambda *args: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        dataclasses.replace(filled, seconds=5.0).write(tmp_path)
    assert {name: (tmp_path / name).read_bytes() for name in before} == before


def test_no_record(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        Record.read(tmp_path / "robustness.json")
    (tmp_path / "half.json").write_text('{"format": 1, "suite": "rob')
    with pytest.raises(InputError, match="not an evaluation record"):
        Record.read(tmp_path / "half.json")
    (tmp_path / "other.json").write_text('{"hello": 1}')
    with pytest.raises(InputError, match="not an evaluation record"):
        Record.read(tmp_path / "other.json")


def test_config_hash_ignores_the_order_of_keys(tmp_path):
    assert records.config_hash(tmp_path) == records.config_hash(None) == ""
    (tmp_path / "config.json").write_text('{"a": 1, "b": [1, 2]}')
    first = records.config_hash(tmp_path)
    (tmp_path / "config.json").write_text('{"b": [1, 2],\n "a": 1}')
    assert records.config_hash(tmp_path) == first and len(first) == 12
    (tmp_path / "config.json").write_text('{"b": [1, 3], "a": 1}')
    assert records.config_hash(tmp_path) != first
