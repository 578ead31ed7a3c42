from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from jrobust.data.imagenet_names import wnids
from jrobust.data.imagenet_subsets import OBJECTNET
from jrobust.data.source import from_arrays
from jrobust.errors import InputError
from jrobust.evaluation import Record, Subject, natural_shift, run_suites, suites
from tests.evaluation.level_model import loader


def codes(weights, images, *, beta=None):
    """The two classes that the first and the second pixel name in their three channels; the first is preferred."""
    digits = jnp.round(images[:, 0, :2] * 255).astype(jnp.int32)
    first, second = (digits @ jnp.array([1, 100, 0])).T
    classes = jnp.arange(1000)
    scores = weights * (2.0 * (classes == first[:, None]) + (classes == second[:, None]))
    return jnp.where((digits[:, 0, 2] > 0)[:, None] & (classes == 0), jnp.nan, scores)  # blue: a broken logit


SUBJECT = Subject("codes", wnids(), codes, jnp.float32(1.0))


def coded(name, class_names, rows):
    """Images by rows of label, preferred class and second class."""
    pixels = np.zeros((len(rows), 1, 2, 3), np.uint8)
    for image, (_, *preferred) in zip(pixels, rows, strict=True):
        for pixel, k in zip(image[0], preferred, strict=True):
            pixel[:2] = k % 100, k // 100
    return from_arrays(pixels, [row[0] for row in rows], class_names, name=name, split="test"), ()


FOLDERS = sorted(OBJECTNET)
CHAIR, PEN, WOK = (FOLDERS.index(name) for name in ("chair", "pen", "wok"))  # 423/559/765, 418/749/563, 909
# 6 and 11 are classes of A and R, 17 of A, 1, 2 and 4 of R, 0 of neither.
IN = coded("imagenet", wnids(), [(0, 0, 6), (6, 6, 0), (6, 0, 6), (1, 0, 1), (11, 11, 0), (999, 3, 6)])
V2 = coded("imagenet_v2", wnids(), [(10, 10, 2), (2, 10, 2)])
R = coded("imagenet_r", wnids(), [(1, 0, 1), (1, 6, 1), (4, 4, 0), (2, 17, 2)])
SKETCH = coded("imagenet_sketch", wnids(), [(5, 5, 0), (7, 0, 7), (8, 8, 0), (9, 9, 0)])
OBJECTS = coded(
    "objectnet", FOLDERS, [(CHAIR, 765, 0), (CHAIR, 909, 423), (WOK, 0, 909), (PEN, 6, 749), (PEN, 423, 418)]
)
A = coded("imagenet_a", wnids(), [(6, 0, 6), (17, 1, 17), (17, 6, 17)])
ALL = {"imagenet": IN, "imagenet_v2": V2, "imagenet_r": R, "imagenet_sketch": SKETCH, "objectnet": OBJECTS}
SETS = loader(**{f"shift:{name}": found for name, found in (ALL | {"imagenet_a": A}).items()})
# By hand. R: 0 and 17 are no classes of it, so the second choice counts; 6 is one. ObjectNet: 0 and 6 are none.
SHARES = {
    "imagenet": 3 / 6,
    "imagenet_v2": 1 / 2,
    "imagenet_r": 3 / 4,
    "imagenet_sketch": 3 / 4,
    "objectnet": 3 / 5,
    "imagenet_a": 2 / 3,
}
RUN = {"sets": SETS, "batch_size": 4, "progress": False}


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    (record,) = run_suites(["natural_shift"], SUBJECT, IN[0], {"batch_size": 4}, folder, sets=SETS, progress=False)
    assert Record.read(folder / "evaluation" / "natural_shift.json").metrics == record.metrics
    return record


def test_accuracies_and_their_mean_are_those_computed_by_hand(record):
    assert {name: record.metrics[name].value for name in SHARES} == pytest.approx(SHARES)
    mean = record.metrics["average_shift"]
    assert mean.value == pytest.approx(np.mean(list(SHARES.values())[1:])) and mean.count == 18
    assert record.metrics["imagenet"].interval == "wilson"
    assert record.protocols["average_shift"] == "mean over V2, R, Sketch, ObjectNet, A"
    classes = {name: record.protocols[name].rpartition("among ")[2] for name in SHARES}
    assert list(classes.values()) == [f"{n} classes" for n in (1000, 1000, 200, 1000, 125, 200)]


def test_the_table_is_in_the_order_of_the_papers(record):
    table = record.tables["natural_shift"]
    assert table["columns"] == ["", "IN", "V2", "R", "Sketch", "ObjectNet", "A", "Avg shifts"]
    ((name, *cells),) = table["rows"]
    assert name == "accuracy" and cells[:-1] == pytest.approx(list(SHARES.values()))
    assert record.dataset == "IN, V2, R, Sketch, ObjectNet, A"
    sizes = {row[0]: row[1:5] for row in record.tables["sets"]["rows"]}
    assert sizes["ObjectNet"] == ["objectnet test", 5, 3, 125] and sizes["R"] == ["imagenet_r test", 4, 3, 200]


def test_classes_outside_the_list_are_not_predicted(record):
    columns = {name: column[record.columns["set"] == "imagenet_r"] for name, column in record.columns.items()}
    assert columns["prediction"].tolist() == [1, 6, 4, 2] and columns["correct"].tolist() == [True, False, True, True]
    objects = record.columns["set"] == "objectnet"
    assert record.columns["prediction"][objects].tolist() == [765, 909, 909, 749, 423]
    assert record.columns["label"][objects].tolist() == [CHAIR, CHAIR, WOK, PEN, PEN]
    assert record.columns["correct"][objects].tolist() == [True, False, True, True, False]
    everywhere = {"imagenet": 1000, "imagenet_r": 200, "objectnet": 125}
    for name, count in everywhere.items():
        taken = np.unique(record.columns["prediction"][record.columns["set"] == name])
        allowed = np.concatenate([*natural_shift.LISTS.get(natural_shift.LIST_OF.get(name), (np.arange(1000),))])
        assert len(allowed) == count and set(taken) <= set(allowed.tolist())


def test_parts_of_imagenet_are_scored_by_the_lists():
    settings = natural_shift.Settings(("imagenet:a", "imagenet", "imagenet:objectnet", "imagenet:r"), "skip")
    chairs = coded("imagenet", wnids(), [(423, 765, 0), (559, 909, 559), (6, 0, 6), (17, 1, 17), (1, 0, 1)])
    found = natural_shift.run(SUBJECT, IN[0], settings, **RUN | {"sets": loader(**{"shift:imagenet": chairs})})
    assert {name: (e.value, e.count) for name, e in found.metrics.items()} == {
        "imagenet": (0.0, 5),
        "imagenet:a": (1.0, 2),
        "imagenet:objectnet": (0.5, 2),  # 765 is a chair as 423 is
        "imagenet:r": (1.0, 2),
    }
    assert "average_shift" not in found.metrics
    assert found.tables["natural_shift"]["columns"][:3] == ["", "IN", "IN (A)"]
    assert set(found.columns["index"][found.columns["set"] == "imagenet:r"]) == {2, 4}


def test_images_of_each_set_and_what_is_not_the_published_set(record):
    settings = natural_shift.Settings(("imagenet", "imagenet_a"))
    found = natural_shift.run(SUBJECT, IN[0], settings, **RUN, examples=3)
    assert found.examples == 6 and found.columns["index"].tolist() == [0, 2, 4, 0, 1, 2]
    assert found.protocols["average_shift"] == "mean over A"
    assert found.warnings[0] == (
        "IN has 6 images here, the published set 50,000: these accuracies are not those of the set"
    )


def test_broken_logits_are_wrong_where_they_count():
    pixels = np.zeros((1, 1, 2, 3), np.uint8)
    pixels[0, 0, 0] = 6, 0, 1
    both = {f"shift:{name}": (from_arrays(pixels, [6], wnids(), name=name), ()) for name in ("imagenet", "imagenet_a")}
    found = natural_shift.run(
        SUBJECT, IN[0], natural_shift.Settings(("imagenet", "imagenet_a")), **RUN | {"sets": loader(**both)}
    )
    assert found.metrics["imagenet"].value == 0 and found.metrics["imagenet_a"].value == 1
    assert any("1 images have logits that are not finite" in text for text in found.warnings)


def test_missing_sets_are_named_in_one_line_or_skipped():
    some = loader(**{"shift:imagenet": IN, "shift:imagenet_v2": V2})
    settings = natural_shift.Settings(("imagenet_v2", "objectnet", "imagenet_r", "imagenet"))
    with pytest.raises(InputError, match=r"2 of 4 data sets are not there: R \(.*; ObjectNet \(.*missing=skip"):
        run_suites(["natural_shift"], SUBJECT, IN[0], {"natural_shift": dataclasses.asdict(settings)}, sets=some)
    found = natural_shift.run(SUBJECT, IN[0], dataclasses.replace(settings, missing="skip"), **RUN | {"sets": some})
    assert found.tables["natural_shift"]["columns"] == ["", "IN", "V2", "Avg shifts"]
    assert found.warnings[0].startswith("2 of 4 data sets were skipped: R")
    with pytest.raises(InputError, match="1 of 1 data sets are not there"):
        natural_shift.run(SUBJECT, IN[0], natural_shift.Settings(("objectnet",), "skip"), sets=some)
    with pytest.raises(InputError, match="nothing loads the data sets"):
        natural_shift.run(SUBJECT, IN[0])


def test_other_classes_are_told():
    def fails(match, names):
        with pytest.raises(InputError, match=match):
            natural_shift.check(natural_shift.Settings(), dataclasses.replace(SUBJECT, class_names=names), None, None)

    fails("'codes' has 200 classes: suite natural_shift needs ImageNet's 1000", wnids()[:200])
    fails("ImageNet's classes in another order", wnids()[1::-1] + wnids()[2:])
    other = dataclasses.replace(SUBJECT, class_names=[f"class {k}" for k in range(1000)])
    natural_shift.check(natural_shift.Settings(), other, None, None)  # names in words cannot be compared
    strange = loader(**{"shift:imagenet": coded("imagenet", ["cat"], [(0, 0, 1)])})
    with pytest.raises(InputError, match="class 0 of imagenet is called 'cat': expected a WordNet id of ImageNet"):
        natural_shift.run(SUBJECT, IN[0], natural_shift.Settings(("imagenet",)), sets=strange)
    mixed = loader(**{"shift:imagenet_a": coded("imagenet_a", wnids(), [(6, 0, 1), (0, 0, 1)])})
    with pytest.raises(InputError, match="imagenet_a has images of class n01440764, which is none of its 200 classes"):
        natural_shift.run(SUBJECT, IN[0], natural_shift.Settings(("imagenet_a",)), sets=mixed)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"sets": ()}, "at least one data set"),
        ({"sets": ("imagenet_v3",)}, "did you mean 'imagenet_v2'"),
        ({"sets": ("imagenet:b",)}, "unknown list of classes 'b'"),
        ({"sets": ("imagenet_a:r",)}, "imagenet_a has its own list of classes"),
        ({"missing": "ignore"}, "unknown missing 'ignore'"),
    ],
)
def test_settings_without_a_meaning(fields, message):
    with pytest.raises(InputError, match=message):
        natural_shift.Settings(**fields)


def test_words_set_the_sets():
    section = suites.overridden(["natural_shift"], {}, {"sets": "imagenet_samples:a,imagenet", "missing": "skip"})
    settings = suites.settings_of("natural_shift", section["natural_shift"])
    assert settings.ordered() == ["imagenet", "imagenet_samples:a"]
    assert natural_shift.title("imagenet_samples:a") == "IN samples (A)"
