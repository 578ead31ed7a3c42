from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from jrobust.attacks.autoattack_state import State
from jrobust.errors import InputError
from jrobust.evaluation import Record, Subject, autoattack, run_suites

SHORT = {"eps": "6/255", "apgd_steps": 4, "fab_steps": 3, "square_queries": 60}
SETTINGS = autoattack.Settings(**SHORT)
EVALUATION = {"batch_size": 8, "autoattack": SHORT | {"examples": 0}}


@pytest.fixture
def record(network, photos):
    return autoattack.run(network, photos, SETTINGS, batch_size=8, examples=0, progress=False)


def test_the_record_adds_up(record, network, photos):
    columns, rows = record.columns, record.tables["parts"]["rows"]
    assert record.examples == 22 == len(columns["index"]) and columns["label"].tolist() == photos.labels.tolist()
    assert record.metrics["accuracy"].value == columns["correct"].mean() == 17 / 22
    assert record.metrics["shortened AutoAttack"].value == columns["robust"].mean() < 17 / 22
    broken = columns["broken_by"]
    assert ((broken == "") == columns["robust"]).all() and ((broken == "clean") == ~columns["correct"]).all()
    assert ((columns["margin"] > 0) == ~columns["robust"]).all()
    assert (columns["linf"][columns["correct"] & ~columns["robust"]] > 0).all()
    assert columns["linf"].max() <= 6 / 255 + 1e-7 and not columns["linf"][columns["robust"]].any()
    assert (columns["l2"] <= columns["linf"] * np.sqrt(108) * (1 + 1e-6)).all()
    standing = 17
    assert [row[0] for row in rows] == ["apgd-ce", "apgd-dlr", "fab-t", "square"]
    for name, attacked, count, share, seconds, forward, backward in rows:
        assert attacked == standing and count == (broken == name).sum()
        standing -= count
        assert share == pytest.approx(standing / 22) and seconds >= 0 and forward >= backward >= 0
        if name != "square":
            assert record.metrics[f"after {name}"].value == pytest.approx(share)
    assert standing == columns["robust"].sum()
    assert record.attack_steps == sum(row[-1] for row in rows) and record.threat == "Linf 6/255"
    assert record.checks["inside_ball"] and record.checks["unconfirmed"] == 0
    assert 0.9 < record.checks["largest_over_eps"] <= 1 + 1e-5 and record.checks["answers_differ_by"] == 0
    assert any("3 classes" in text for text in record.warnings)


def test_only_the_whole_attack_is_called_autoattack(record):
    assert "robust_accuracy" not in record.metrics
    protocol = record.protocols["shortened AutoAttack"]
    assert protocol.startswith("shortened AutoAttack (standard), not comparable") and "Square 60 queries" in protocol
    assert record.protocols["after apgd-dlr"] == (
        "the first 2 of the 4 attacks of shortened AutoAttack (standard), not comparable with AutoAttack, Linf 6/255:"
        " APGD-CE 4 steps; APGD-DLR 2 x 4 steps; each on what the ones before left"
    )
    assert autoattack.Settings().protocol(10) == (
        "AutoAttack standard, Linf 8/255: APGD-CE 100 steps; APGD-T 9 targets x 100 steps; FAB-T 9 targets x 100 steps;"
        " Square 5000 queries; each on what the ones before left"
    )
    assert (
        autoattack.Settings(norm="l2", eps="0.5", version="plus")
        .protocol(10)
        .startswith(
            "AutoAttack plus, L2 0.5: APGD-CE 5 x 100 steps; APGD-DLR 5 x 100 steps; FAB 100 steps; FAB from random"
        )
    )


class Killed(Exception):
    pass


def same(first, second):
    for name, column in first.columns.items():
        np.testing.assert_array_equal(second.columns[name], column, err_msg=name)
    assert first.metrics == second.metrics and first.protocols == second.protocols
    assert [row[:4] for row in first.tables["parts"]["rows"]] == [row[:4] for row in second.tables["parts"]["rows"]]


def test_a_killed_suite_goes_on_where_it_was(record, network, photos, tmp_path, monkeypatch, capsys):
    save, saves = State.save, []

    def die_after(count):
        def killed(state, path):
            save(state, path)
            saves.append(state.part)
            if len(saves) == count:
                raise Killed

        monkeypatch.setattr(State, "save", killed)

    monkeypatch.setattr(autoattack, "SAVE_SECONDS", 0)
    file = tmp_path / "evaluation" / autoattack.STATE
    for count in (3, 8):  # in the middle of a part, and again
        die_after(count)
        with pytest.raises(Killed):
            run_suites(["autoattack"], network, photos, EVALUATION, tmp_path, progress=False)
        assert file.exists() and not (tmp_path / "evaluation" / "autoattack.json").exists()
    monkeypatch.setattr(State, "save", save)
    (resumed,) = run_suites(["autoattack"], network, photos, EVALUATION, tmp_path, progress=False)
    same(record, resumed)
    assert not file.exists() and not capsys.readouterr().err
    same(record, Record.read(tmp_path / "evaluation" / "autoattack.json"))
    assert json.loads((tmp_path / "evaluation" / "autoattack.json").read_text())["settings"]["eps"] == "6/255"


def test_the_state_of_something_else_is_set_aside(record, network, photos, tmp_path, monkeypatch, capsys):
    other = dataclasses.replace(network, variables={**network.variables, "bias": network.variables["bias"] + 1})
    monkeypatch.setattr(autoattack, "SAVE_SECONDS", 0)
    for subject, settings in ((network, dataclasses.replace(SETTINGS, eps="5/255")), (other, SETTINGS)):
        save = State.save

        def once(state, path, save=save):
            save(state, path)
            raise Killed

        monkeypatch.setattr(State, "save", once)
        with pytest.raises(Killed):
            autoattack.run(subject, photos, settings, batch_size=8, progress=False, workdir=tmp_path)
        monkeypatch.setattr(State, "save", save)
        again = autoattack.run(network, photos, SETTINGS, batch_size=8, examples=0, progress=False, workdir=tmp_path)
        same(record, again)
        told = capsys.readouterr().err
        assert "beginning anew" in told and ("another model" in told) == (subject is other)
        assert (tmp_path / "evaluation" / "autoattack.state.old.npz").exists()
    (tmp_path / "evaluation" / autoattack.STATE).write_bytes(b"half a file")
    same(record, autoattack.run(network, photos, SETTINGS, batch_size=8, examples=0, progress=False, workdir=tmp_path))
    assert "is not the state" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"norm": "l1"}, "unknown norm 'l1'"),
        ({"version": "standart"}, "did you mean 'standard'"),
        ({"eps": "eight"}, "'eight' is not a radius"),
        ({"fab_steps": 0}, "fab_steps=0"),
    ],
)
def test_settings_without_a_meaning(fields, message):
    with pytest.raises(InputError, match=message):
        autoattack.Settings(**fields)


def test_randomised_subjects_take_keys(network, photos):
    rand = autoattack.Settings(version="rand")
    with pytest.raises(InputError, match="takes no argument keys"):
        autoattack.check(rand, network, photos)
    keyed = Subject("keyed", network.class_names, lambda weights, images, *, keys=None, beta=None: images)
    autoattack.check(rand, keyed, photos)
    with pytest.raises(InputError, match="at least 2 classes"):
        autoattack.check(autoattack.Settings(), Subject("one", ["a"], lambda w, x: x), photos)
