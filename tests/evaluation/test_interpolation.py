from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from jrobust.errors import InputError
from jrobust.evaluation import Record, interpolation, run_suites, suites, zero_shot
from jrobust.evaluation.class_runs import Runner
from tests.evaluation.level_model import Levels, level_set, loader

# The border of the model at share l is at 0.5 - 0.2 l.
DTD = level_set("dtd", [0.25, 0.75], [0.1, 0.35, 0.45, 0.55, 0.9], [0, 0, 1, 1, 1])
C10 = level_set("cifar10", [0.25, 0.75], [0.2, 0.32, 0.6, 0.48], [0, 1, 1, 1], side=3)
SETS = loader(dtd=DTD, cifar10=C10)
SETTINGS = interpolation.Settings(
    sets=("dtd", "cifar10"), source="dtd", eps="0.04", step_size="0.02", shares=(0.0, 0.25, 1.0)
)
RUN = {"sets": SETS, "batch_size": 5, "progress": False}


def test_the_curve_is_the_one_computed_by_hand():
    record = interpolation.run(Levels(shift=0.2).subject(), DTD[0], SETTINGS, **RUN)
    # Borders 0.5, 0.45 and 0.3; 0.45 is 115/255 = 0.45098.
    clean = {0: (4 / 5, 2 / 4), 0.25: (5 / 5, 3 / 4), 1: (4 / 5, 4 / 4)}
    robust = {0: (4 / 5, 2 / 4), 0.25: (4 / 5, 2 / 4), 1: (4 / 5, 3 / 4)}
    for point, share in zip(record.curves["interpolation"], (0, 0.25, 1), strict=True):
        assert point["x"] == share and point["label"] == f"{share:g}"
        for word, measure, shares in (("clean", "clean", clean), ("robust", "pgd_10", robust)):
            assert point[word].value == pytest.approx(np.mean(shares[share])), (share, word)
            assert point[f"zero_shot_{word}"].value == pytest.approx(shares[share][1])  # dtd was trained on
            assert record.metrics[f"average.{measure} at {share:g}"] == point[word]
            assert record.metrics[f"zero_shot_average.{measure} at {share:g}"] == point[f"zero_shot_{word}"]
    table = record.tables["interpolation"]
    assert table["columns"] == ["share", "clean", "zero-shot clean", "robust", "zero-shot robust"]
    assert table["rows"][1] == ["0.25", *(pytest.approx(v) for v in (7 / 8, 3 / 4, 13 / 20, 2 / 4))]
    assert record.examples == 9 and record.dataset == "C10, DTD (full)" and record.threat == "Linf 0.04"
    assert record.columns["set"].tolist() == ["cifar10"] * 4 + ["dtd"] * 5
    assert record.columns["clean at 0.25"].sum() == 8
    assert record.columns["pgd_10 at 1"].sum() == 7
    assert record.attack_steps == 3 * 9 * 10 and record.warnings == []


def test_the_ends_are_the_two_models(tmp_path):
    subject = Levels(shift=0.2).subject()
    settings = dataclasses.replace(SETTINGS, sets=("", "cifar10"), source="", shares=(0.0, 1.0))
    section = {"batch_size": 5, "interpolation": dataclasses.asdict(settings)}
    (record,) = run_suites(["interpolation"], subject, DTD[0], section, tmp_path, sets=SETS, progress=False)
    assert record.checks["share_1_exact"] and record.dataset == "C10, own test set (full)"
    same = {"sets": ("", "cifar10"), "eps": "0.04", "step_size": "0.02", "attacks": ("pgd",)}
    for share, shift in ((0, 0.0), (1, 0.2)):
        alone = zero_shot.run(Levels(shift=shift).subject(), DTD[0], zero_shot.Settings(**same), **RUN)
        for name, measure in (("clean", "correct"), ("pgd_10", "pgd_10_correct")):
            assert record.columns[f"{name} at {share}"].tolist() == alone.columns[measure].tolist()
            assert record.metrics[f"average.{name} at {share}"] == alone.metrics[f"average.{name}"]
    assert Record.read(tmp_path / "evaluation" / "interpolation.json").curves == record.curves
    assert not (tmp_path / "evaluation" / "interpolation.kept").exists()


def test_a_killed_curve_goes_on_where_it_was(tmp_path, monkeypatch):
    section = {"batch_size": 5, "interpolation": dataclasses.asdict(SETTINGS)}
    whole, begun = Runner._gradients, []

    def killed(self, model, part, advance):
        begun.append(part.name)
        if len(begun) == 3:
            raise KeyboardInterrupt
        return whole(self, model, part, advance)

    monkeypatch.setattr(Runner, "_gradients", killed)
    run = {"sets": SETS, "progress": False}
    with pytest.raises(KeyboardInterrupt):
        run_suites(["interpolation"], Levels(shift=0.2).subject(), DTD[0], section, tmp_path, **run)
    (record,) = run_suites(["interpolation"], Levels(shift=0.2).subject(), DTD[0], section, tmp_path, **run)
    assert begun == [f"C10 at {share}" for share in ("0", "0.25", "1", "1")] + [
        f"DTD at {share}" for share in ("0", "0.25", "1")
    ]
    alone = interpolation.run(Levels(shift=0.2).subject(), DTD[0], SETTINGS, **RUN)
    assert record.metrics == alone.metrics and record.attack_steps == alone.attack_steps


def test_an_end_that_is_not_the_model_is_told():
    subject = dataclasses.replace(Levels(shift=0.2).subject(), zero_shot=Levels(shift=0.1))
    settings = dataclasses.replace(SETTINGS, sets=("",), source="", shares=(1.0,))
    record = interpolation.run(subject, DTD[0], settings, **RUN)
    assert not record.checks["share_1_exact"] and "is not the fine-tuned one" in record.warnings[0]


def test_drift_is_that_of_the_published_code_and_a_distance():
    before, after = (
        {"a": np.array([3.0, 4.0]), "b": np.array([[2.0]])},
        {"a": np.array([0.0, 10.0]), "b": np.array([[1]])},
    )
    found = interpolation.drift(before, after)
    assert found["drift"] == pytest.approx(4) and found["relative_drift"] == pytest.approx(4 / 7)
    assert found["relative_distance"] == pytest.approx(np.sqrt((9 + 36 + 1) / 29))


@pytest.mark.parametrize("shares", [(), (-0.1,), (0.5, 1.5)])
def test_shares_without_a_meaning(shares):
    with pytest.raises(InputError, match="from 0 to 1"):
        interpolation.Settings(shares=shares)
    assert len(interpolation.Settings().shares) == 11 and interpolation.Settings().shares[-1] == 1
    words = suites.overridden(["interpolation"], {}, {"shares": "0,0.5", "sets": ""})["interpolation"]
    assert words == {"shares": (0.0, 0.5), "sets": ()}
