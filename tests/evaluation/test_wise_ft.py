from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from jrobust.data.imagenet_names import wnids
from jrobust.errors import InputError
from jrobust.evaluation import Record, Subject, bias, natural_shift, run_suites, suites
from tests.evaluation.level_model import Levels, level_set
from tests.evaluation.test_natural_shift import IN, SETS, codes

# The border of the model at share a is at 0.5 - 0.2 a.
MEANS, LABELS, BIASES = (0.25, 0.35, 0.45, 0.55, 0.9), (0, 0, 1, 1, 1), (0, 1, 1, 1, 0)
SHARES = (1.0, 0.0, 0.25)


@pytest.fixture
def images(make_images):
    source, _ = level_set("levels", [0.25, 0.75], MEANS, LABELS)
    names = {"class_names": source.class_names, "bias_names": ["dark", "bright"]}
    return make_images(source.arrays()["image"], LABELS, biases=np.array(BIASES), **names)


@dataclasses.dataclass(frozen=True)
class Faded:
    """The model of natural shifts whose original has no logits but 0: the first of the classes is predicted."""

    def interpolated(self, share):
        return Subject("codes", wnids(), codes, jnp.float32(share), zero_shot=self)


def test_the_curve_of_a_bias_is_the_one_computed_by_hand(images, tmp_path):
    section = {"batch_size": 3, "bias": {"shares": SHARES}}
    (record,) = run_suites(["bias"], Levels(shift=0.2).subject(), images, section, tmp_path, progress=False)
    # Aligned are images 0, 2 and 3. Borders 0.5, 0.45 (115/255 lies above it) and 0.3.
    expected = {0.0: (2 / 3, 2 / 2), 0.25: (3 / 3, 2 / 2), 1.0: (3 / 3, 1 / 2)}
    points = record.curves["wise_ft"]
    assert [(point["x"], point["label"]) for point in points] == [(0, "0"), (0.25, "0.25"), (1, "1")]
    found = {point["x"]: (point["aligned"].value, point["conflicting"].value) for point in points}
    assert found == {share: pytest.approx(pair) for share, pair in expected.items()}
    assert points[-1]["conflicting"] == record.metrics["conflicting"]
    assert record.tables["wise_ft"]["columns"] == ["share", "aligned", "conflicting"]
    assert record.tables["wise_ft"]["rows"][1] == ["0.25", 1.0, 1.0]
    assert Record.read(tmp_path / "evaluation" / "bias.json").curves == record.curves
    alone = bias.run(Levels(shift=0.2).subject(), images, progress=False)
    assert alone.metrics == record.metrics and not alone.curves and "wise_ft" not in alone.tables


def test_the_curve_of_natural_shifts(tmp_path):
    section = {"batch_size": 4, "natural_shift": {"shares": (0.0, 1.0)}}
    subject = Faded().interpolated(1.0)
    (record,) = run_suites(["natural_shift"], subject, IN[0], section, tmp_path, sets=SETS, progress=False)
    original, fine_tuned = record.curves["wise_ft"]
    # Class 0 of all, 1 of R, 409 of ObjectNet, 6 of A.
    assert original["imagenet"].value == pytest.approx(1 / 6)
    assert original["average_shift"].value == pytest.approx((0 + 2 / 4 + 0 + 0 + 1 / 3) / 5)
    assert fine_tuned["average_shift"] == record.metrics["average_shift"]
    settings = natural_shift.Settings(sets=("imagenet",), shares=(0.0,))
    only = natural_shift.run(subject, IN[0], settings, sets=SETS, progress=False)
    assert set(only.curves["wise_ft"][0]) == {"label", "x", "imagenet"}  # nothing is a shift


@pytest.mark.parametrize(("suite", "source"), [("bias", None), ("natural_shift", IN[0])])
def test_what_cannot_be_is_refused_before_anything_is_measured(suite, source, images):
    subject = Levels().subject() if source is None else Faded().interpolated(1.0)
    for shares, model, message in (
        ((0.5, 1.5), subject, r"shares=0.5,1.5: expected numbers from 0 to 1"),
        ((0.5,), dataclasses.replace(subject, zero_shot=None), "what '.*' was before fine-tuning is not known"),
    ):
        with pytest.raises(InputError, match=message):
            suites.check([suite], model, source or images, {suite: {"shares": shares}})
