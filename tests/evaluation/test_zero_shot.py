from __future__ import annotations

import dataclasses
import json

import jax
import numpy as np
import pytest

from jrobust.attacks.autoattack_state import State
from jrobust.errors import InputError
from jrobust.evaluation import Record, autoattack, class_runs, class_sets, run_suites, suites, zero_shot
from jrobust.evaluation.class_runs import Runner
from tests.evaluation.level_model import Levels, level_logits, level_set, loader

# Two levels with the border at 0.5, at distances .01 .06 .11 .31 twice each; the last image is mislabelled.
DTD = level_set("dtd", [0.25, 0.75], [0.19, 0.39, 0.44, 0.49, 0.51, 0.56, 0.61, 0.81, 0.3], [0, 0, 0, 0, 1, 1, 1, 1, 1])
# Three levels with borders at 0.35 and 0.65, at distances .15 .05 .02, and larger images.
C10 = level_set("cifar10", [0.2, 0.5, 0.8], [0.5, 0.4, 0.67], [1, 1, 2], side=3)
PETS = level_set("oxford_pets", [0.25, 0.75], [0.1, 0.9], [0, 1])
SETS = loader(dtd=DTD, cifar10=C10, oxford_pets=PETS)
SETTINGS = zero_shot.Settings(
    sets=("dtd", "cifar10", "oxford_pets"), source="oxford_pets", eps="0.1", step_size="0.025", sweep=("0.04", "0.1")
)
CLEAN = {"dtd": 8 / 9, "cifar10": 3 / 3, "oxford_pets": 1.0}
ROBUST = {"dtd": 4 / 9, "cifar10": 1 / 3, "oxford_pets": 1.0}
AT_004 = {"dtd": 6 / 9, "cifar10": 2 / 3, "oxford_pets": 1.0}


@pytest.fixture(scope="module")
def record():
    return zero_shot.run(Levels().subject(), PETS[0], SETTINGS, sets=SETS, batch_size=4, progress=False)


def test_accuracies_of_sets_and_their_means_are_those_computed_by_hand(record):
    for measure, shares in (("clean", CLEAN), ("pgd_10", ROBUST), ("cw_10", ROBUST)):
        for name, share in shares.items():
            assert record.metrics[f"{name}.{measure}"].value == pytest.approx(share), (name, measure)
        assert record.metrics[f"average.{measure}"].value == pytest.approx(np.mean(list(shares.values())))
        others = [shares["dtd"], shares["cifar10"]]
        assert record.metrics[f"zero_shot_average.{measure}"].value == pytest.approx(np.mean(others))
    assert record.metrics["dtd.clean"].interval == "wilson" and record.metrics["average.clean"].interval == "normal"
    assert record.metrics["average.clean"].count == 14 == record.examples
    assert record.protocols["average.pgd_10"] == (
        "PGD-10 on cross-entropy, Linf 0.1, step 0.025, random start, last iterate; mean over 3 sets"
    )
    assert record.protocols["zero_shot_average.clean"] == "images as they are; mean over the sets, without Pets"
    assert "confidence 50" in record.protocols["cifar10.cw_10"]


def test_the_table_has_the_columns_of_the_paper_in_their_order(record):
    table = record.tables["zero_shot"]
    assert table["columns"] == ["accuracy", "C10", "Pets", "DTD", "Avg", "zero-shot Avg"]
    assert [row[0] for row in table["rows"]] == ["clean", "PGD-10", "C&W-10", "PGD-10 at 0.04"]
    cells = [[shares[name] for name in ("cifar10", "oxford_pets", "dtd")] for shares in (CLEAN, ROBUST, AT_004)]
    for row, expected in zip([record.tables["zero_shot"]["rows"][i] for i in (0, 1, 3)], cells, strict=True):
        assert row[1:4] == pytest.approx(expected)
        assert row[4:] == pytest.approx([np.mean(expected), np.mean([expected[0], expected[2]])])
    assert record.dataset == "C10, Pets, DTD (full)"
    sizes = {row[0]: row[1:6] for row in record.tables["sets"]["rows"]}
    assert sizes["C10"] == ["cifar10 test", 3, 3, 2, "3 x 3"] and sizes["DTD"] == ["dtd test", 9, 2, 2, "2 x 2"]


def test_the_curve_is_of_the_means_and_keeps_the_step_size(record):
    points = record.curves["linf"]
    assert [point["label"] for point in points] == ["0", "0.04", "0.1"]
    for point, shares in zip(points, (CLEAN, AT_004, ROBUST), strict=True):
        assert point["accuracy"].value == pytest.approx(np.mean(list(shares.values())))
        assert point["zero_shot"].value == pytest.approx((shares["dtd"] + shares["cifar10"]) / 2)
    plan = SETTINGS.plan()
    assert plan["sweep"][1] is plan["main"][0] and plan["sweep"][0].step_size == plan["main"][0].step_size == 0.025


def test_a_line_an_image_with_the_name_of_its_set(record):
    columns = record.columns
    assert columns["set"].tolist() == ["cifar10"] * 3 + ["oxford_pets"] * 2 + ["dtd"] * 9
    assert columns["label"].tolist() == [*C10[0].labels, *PETS[0].labels, *DTD[0].labels]
    assert columns["pgd_10_correct"][columns["set"] == "dtd"].sum() == 4
    assert columns["linf_0.04_correct"][columns["set"] == "dtd"].sum() == 6
    assert "softmax" not in columns and not any(name.startswith(".") for name in columns)
    assert record.checks["inside_ball"] and 0.9 < record.checks["largest_linf_over_eps"] <= 1 + 1e-5
    assert record.attack_steps == 14 * 30 and record.seconds > 0 and record.checks["images_per_second"] > 0
    assert record.warnings == []


def test_programs_are_compiled_once_for_a_size_and_a_number_of_classes():
    shapes = []

    def logits(variables, images, *, beta=None):
        shapes.append((images.shape, variables.state["levels"].shape))
        return level_logits(variables, images)

    settings = dataclasses.replace(SETTINGS, sets=("dtd", "cifar10"), source="", attacks=("pgd",), sweep=())
    zero_shot.run(Levels(logits=logits).subject(), PETS[0], settings, sets=SETS, batch_size=4, progress=False)
    first = len(shapes)
    assert set(shapes) == {((4, 2, 2, 3), (2,)), ((4, 3, 3, 3), (3,))}
    more = dataclasses.replace(settings, sets=("dtd", "cifar10", "oxford_pets"))
    zero_shot.run(Levels(logits=logits).subject(), PETS[0], more, sets=SETS, batch_size=4, progress=False)
    assert len(shapes) == first


def test_missing_sets_are_named_in_one_line_or_skipped():
    settings = dataclasses.replace(SETTINGS, sets=("pcam", "dtd", "eurosat"), source="", attacks=(), sweep=())
    with pytest.raises(
        InputError, match=r"2 of 3 data sets are not there: EuroS \(eurosat is not in.*PCAM.*missing=skip"
    ):
        run_suites(["zero_shot"], Levels().subject(), PETS[0], {"zero_shot": dataclasses.asdict(settings)}, sets=SETS)
    skipping = dataclasses.replace(settings, missing="skip")
    record = zero_shot.run(Levels().subject(), PETS[0], skipping, sets=SETS, progress=False)
    assert record.tables["zero_shot"]["columns"] == ["accuracy", "DTD", "Avg"]
    assert record.warnings[0].startswith("2 of 3 data sets were skipped: EuroS")
    with pytest.raises(InputError, match="1 of 1 data sets are not there: PCAM"):
        zero_shot.run(Levels().subject(), PETS[0], dataclasses.replace(skipping, sets=("pcam",)), sets=SETS)
    with pytest.raises(InputError, match="nothing loads the data sets"):
        zero_shot.run(Levels().subject(), PETS[0], settings)


def test_the_sample_of_the_tables_and_what_it_lacks():
    labels = np.minimum(np.arange(5400) // 1000, 5)
    big = level_set("big", [0.1, 0.2, 0.3, 0.4, 0.5, 0.6], (labels + 1) / 10, labels)
    settings = zero_shot.Settings(sets=("big",), sample="strided20", attacks=())
    (part,), warnings = class_sets.opened(settings, None, loader(big=big), 0)
    assert part.order.tolist() == [*range(256), *range(5120, 5376)]
    assert warnings == [
        "the images taken show few of the classes: big 2 of 6; these accuracies are not those of the sets"
    ]
    (part,), _ = class_sets.opened(settings, None, loader(big=big), 4)
    assert part.order.tolist() == [0, 128, 5120, 5248]
    assert class_sets.described([part], "strided20") == "big (strided20)"
    full, none = class_sets.opened(dataclasses.replace(settings, sample="full"), None, loader(big=big), 0)
    assert len(full[0].order) == 5400 and none == []


def test_below_ten_classes_autoattack_is_another_sequence():
    levels = [round(0.05 + 0.1 * k, 2) for k in range(10)]
    ten = level_set("ten", levels, levels, range(10))
    settings = zero_shot.Settings(
        sets=("ten", "dtd"), eps="0.03", attacks=(), autoattack=True, apgd_steps=2, fab_steps=2, square_queries=2
    )
    plan = class_runs.Plan([], settings.judge())
    assert [plan.judge(k).version for k in (2, 9, 10, 1000)] == ["few", "few", "standard", "standard"]
    short = dataclasses.replace(settings, sets=("dtd",))
    record = zero_shot.run(Levels().subject(), PETS[0], short, sets=SETS, batch_size=9, progress=False)
    assert record.metrics["average.shortened_autoattack"].value == record.columns["autoattack_correct"].mean() == 6 / 9
    protocol = record.protocols["dtd.shortened_autoattack"]
    assert protocol.startswith("on DTD, of fewer than 10 classes: shortened AutoAttack (few)")
    assert "APGD-CE 2 steps; FAB 2 steps; Square 2 queries" in protocol
    assert set(record.columns["autoattack_broken_by"]) <= {"", "clean", "apgd-ce", "fab", "square"}
    assert record.attack_steps > 0
    whole = dataclasses.replace(settings, apgd_steps=100, fab_steps=100, square_queries=5000)
    parts, _ = class_sets.opened(whole, None, loader(ten=ten, dtd=DTD), 0)
    (*_, measure) = zero_shot._measures(whole, parts)
    assert measure.name == "autoattack"
    standard, few = measure.protocol.split("; on DTD, of fewer than 10 classes: ")
    assert standard.startswith("AutoAttack standard, Linf 0.03: APGD-CE 100 steps; APGD-T 9 targets")
    assert few.startswith("AutoAttack for few classes, Linf 0.03: APGD-CE 100 steps; FAB 100 steps; Square 5000")


class Killed(Exception):
    pass


@pytest.fixture
def die(monkeypatch):
    def at(count, kind="_gradients"):
        whole, begun = getattr(Runner, kind), []

        def killed(self, model, part, *rest):
            begun.append(part.name)
            if len(begun) == count:
                raise Killed
            return whole(self, model, part, *rest)

        monkeypatch.setattr(Runner, kind, killed)
        return begun

    return at


def test_a_killed_evaluation_goes_on_after_the_sets_that_are_done(record, tmp_path, die, capsys):
    section = {"batch_size": 4, "zero_shot": dataclasses.asdict(SETTINGS)}
    begun, asked = die(3), []

    def sets(name):
        asked.append(name)
        return SETS(name)

    with pytest.raises(Killed):
        run_suites(["zero_shot"], Levels().subject(), PETS[0], section, tmp_path, sets=sets)
    assert begun == ["C10", "Pets", "DTD"]
    assert sorted(asked) == ["cifar10", "dtd", "oxford_pets"]  # each is loaded once
    folder = tmp_path / "evaluation" / "zero_shot.kept"
    assert len(list(folder.iterdir())) == 2 and not (tmp_path / "evaluation" / "zero_shot.json").exists()
    # Another model, other attacks or texts do not take them.
    for changes in ({"shift": 0.001}, {}):
        other = Levels(**changes).subject()
        settings = dataclasses.replace(SETTINGS, sets=("cifar10",), attacks=("pgd",) if not changes else ("pgd", "cw"))
        zero_shot.run(other, PETS[0], settings, sets=SETS, batch_size=4, progress=False, workdir=tmp_path)
    texts = loader(cifar10=(C10[0], [["0.3"], ["0.5"], ["0.8"]]))
    settings = dataclasses.replace(SETTINGS, sets=("cifar10",))
    zero_shot.run(Levels().subject(), PETS[0], settings, sets=texts, batch_size=4, progress=False, workdir=tmp_path)
    assert begun[3:] == ["C10"] * 3
    (resumed,) = run_suites(["zero_shot"], Levels().subject(), PETS[0], section, tmp_path, sets=SETS)
    assert begun[6:] == ["DTD"] and not folder.exists()
    assert resumed.metrics == record.metrics and resumed.checks["parts_of_an_earlier_run"] == 2
    for name, column in record.columns.items():
        np.testing.assert_array_equal(resumed.columns[name], column, err_msg=name)
    assert resumed.attack_steps == record.attack_steps
    back = Record.read(tmp_path / "evaluation" / "zero_shot.json")
    assert back.metrics == record.metrics and back.curves == record.curves
    told = capsys.readouterr().err
    assert "zero_shot: DTD (3 of 3): clean 88.89, PGD-10 44.44" in told
    assert json.loads((tmp_path / "evaluation" / "zero_shot.json").read_text())["settings"]["sample"] == "full"


def test_pieces_of_autoattack_are_kept_one_by_one(tmp_path, die, monkeypatch):
    settings = zero_shot.Settings(
        sets=("dtd",), eps="0.03", attacks=(), autoattack=True, apgd_steps=2, fab_steps=2, square_queries=2
    )
    whole = zero_shot.run(Levels().subject(), PETS[0], settings, sets=SETS, batch_size=9, progress=False)
    monkeypatch.setattr(class_runs, "CHUNK", 3)
    settings = dataclasses.replace(settings, attacks=("pgd",), num_steps=1)
    pieces = zero_shot.run(Levels().subject(), PETS[0], settings, sets=SETS, batch_size=9, progress=False)
    assert pieces.attack_steps == whole.attack_steps + 9  # one step of PGD on nine images
    begun = die(3, "_judged")
    run = {"sets": SETS, "batch_size": 9, "progress": False, "workdir": tmp_path}
    with pytest.raises(Killed):
        zero_shot.run(Levels().subject(), PETS[0], settings, **run)
    # And in the middle of a piece.
    save, load, loaded = State.save, State.load, []

    def once(state, path):
        save(state, path)
        raise Killed

    monkeypatch.setattr(autoattack, "SAVE_SECONDS", 0)
    monkeypatch.setattr(State, "save", once)
    with pytest.raises(Killed):
        zero_shot.run(Levels().subject(), PETS[0], settings, **run)
    monkeypatch.setattr(State, "save", save)
    monkeypatch.setattr(State, "load", lambda path: loaded.append(path.name) or load(path))
    record = zero_shot.run(Levels().subject(), PETS[0], settings, **run)
    assert len(loaded) == 1 and loaded[0].startswith("DTD-autoattack-2")
    assert begun == [f"DTD-autoattack-{k}" for k in (0, 1, 2, 2, 2)]
    assert record.columns["autoattack_broken_by"].tolist() == whole.columns["autoattack_broken_by"].tolist()
    assert record.columns["autoattack_correct"].tolist() == [True, True, True, False, False, True, True, True, False]


def test_numbers_do_not_depend_on_the_number_of_devices(record):
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    settings = dataclasses.replace(SETTINGS, sets=("dtd",), source="", attacks=("pgd",), sweep=())
    run = {"sets": SETS, "batch_size": 4, "progress": False}
    four = zero_shot.run(Levels().subject(), PETS[0], settings, **run, mesh=mesh).columns["pgd_10_margin"]
    np.testing.assert_allclose(four, record.columns["pgd_10_margin"][-9:], atol=1e-4)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"sets": ()}, "at least one data set"),
        ({"sets": ("dtd", "dtd")}, "each once"),
        ({"source": "tiny_imagenett"}, "unknown source.*did you mean 'tiny_imagenet'"),
        ({"missing": "ignore"}, "unknown missing 'ignore'"),
        ({"sample": "strided"}, "did you mean 'strided20'"),
        ({"attacks": ("fgsm",)}, "unknown attack 'fgsm'"),
        ({"sweep": ("0",)}, "radii above 0"),
        ({"eps": "one"}, "'one' is not a radius"),
        ({"num_steps": 0}, "num_steps=0"),
        ({"square_queries": 0}, "square_queries=0"),
    ],
)
def test_settings_without_a_meaning(fields, message):
    with pytest.raises(InputError, match=message):
        zero_shot.Settings(**fields)


def test_defaults_are_those_of_the_paper_and_words_set_them():
    settings = zero_shot.Settings()
    assert len(settings.sets) == 16 and settings.sets[:3] == ("cifar10", "cifar100", "stl10")
    assert [class_sets.title(name) for name in settings.sets[-4:]] == ["Cal101", "Cal256", "Cars", "PCAM"]
    assert settings.plan()["main"][0].protocol == (
        "PGD-10 on cross-entropy, Linf 1/255, step 1/255, random start, last iterate"
    )
    words = {"sets": "dtd,pcam", "autoattack": "true", "missing": "skip", "sweep": "2/255"}
    section = suites.overridden(["zero_shot"], {}, words)["zero_shot"]
    assert suites.settings_of("zero_shot", section) == zero_shot.Settings(
        sets=("dtd", "pcam"), autoattack=True, missing="skip", sweep=("2/255",)
    )


def test_other_models_and_broken_sets_are_told(linear, greys):
    with pytest.raises(InputError, match="'linear' cannot take other classes"):
        run_suites(["zero_shot"], linear, greys, {})
    short = DTD[0], DTD[1][:1]
    with pytest.raises(InputError, match="'dtd' has 2 classes and prompts for 1"):
        class_sets.opened(dataclasses.replace(SETTINGS, sets=("dtd",)), None, loader(dtd=short), 0)
