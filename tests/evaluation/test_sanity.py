from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jrobust.errors import InputError
from jrobust.evaluation import Record, run_suites, sanity, sanity_checks

SETTINGS = sanity.Settings(
    iterations=(5, 1, 20), radii=("0", "2/255", "64/255", "255/255"), num_steps=10, unbounded_steps=20, queries=60
)
PASSED = dict.fromkeys(sanity_checks.WORDS, True)


@pytest.fixture(scope="module")
def runs():
    """Records by what was done to the logits: every test looks at the same few runs."""
    return {}


def run(runs, name, network, photos, change=None):
    if name not in runs:

        def logits(weights, images, *, beta=None):
            return change(network.logits(weights, images))

        subject = dataclasses.replace(network, logits=logits) if change else network
        runs[name] = sanity.run(subject, photos, SETTINGS, batch_size=11, examples=0, progress=False)
    return runs[name]


def test_a_plain_network_passes(runs, network, photos):
    record = run(runs, "plain", network, photos)
    assert record.checks == PASSED and record.warnings == [] and sanity.failures([record]) == []
    assert [row[1] for row in record.tables["checks"]["rows"]] == ["passed"] * 4
    assert list(record.metrics) == ["accuracy", "pgd_20", "square", "unbounded"]
    assert record.metrics["unbounded"].value == 0 < record.metrics["pgd_20"].value < record.metrics["square"].value
    steps, radii = record.curves["iterations"], record.curves["linf"]
    assert [p["label"] for p in steps] == ["0", "1", "5", "20"] and [p["x"] for p in steps] == [0, 1, 5, 20]
    assert [p["label"] for p in radii] == ["0", "2/255", "64/255", "255/255"] and radii[-1]["x"] == 1
    assert steps[0]["accuracy"].value == radii[0]["accuracy"].value == 17 / 22
    assert steps[-1]["accuracy"] == record.metrics["pgd_20"]
    assert radii[-1]["accuracy"] == record.metrics["unbounded"]
    assert record.columns["unbounded_correct"].dtype == bool and "unbounded_2_correct" not in record.columns
    assert record.attack_steps == 22 * (20 + 2 * 10 + 20) and record.threat == "Linf 8/255"


def quantised(logits):
    return jnp.round(8 * logits) / 8


def saturated(logits):
    return 1e4 * logits


@pytest.mark.parametrize("change", [quantised, saturated, jax.lax.stop_gradient], ids=lambda change: change.__name__)
def test_masked_gradients_fail(runs, network, photos, change):
    record = run(runs, change.__name__, network, photos, change)
    assert record.checks["white_box_beats_black_box"] is False and record.checks["unbounded_reaches_zero"] is False
    assert len(record.warnings) == 2 and all(text.startswith("failed: ") for text in record.warnings)
    (line,) = sanity.failures([record])
    assert line.startswith("sanity failed: white-box attacks beat black-box ones (") and "unbounded" in line
    # Square sees through the mask: only the order of the logits counts.
    assert record.metrics["square"].value < record.metrics["pgd_20"].value


def test_nan_and_a_gradient_that_explodes_are_no_defence(runs, network, photos):
    """Where the clean logits are right and those around are NaN, the image counts as wrong."""

    def logits(weights, images, *, beta=None):
        on_grid = jnp.all(jnp.abs(images * 255 - jnp.round(images * 255)) < 1e-3, (1, 2, 3))
        return jnp.where(on_grid[:, None], network.logits(weights, images), jnp.nan)

    subject = dataclasses.replace(network, logits=logits)
    settings = dataclasses.replace(SETTINGS, radii=(), iterations=(1,), black_box=())
    record = sanity.run(subject, photos, settings, batch_size=11, progress=False)
    assert record.checks["unbounded_reaches_zero"] and record.checks["white_box_beats_black_box"] is None
    assert record.tables["checks"]["rows"][0][1] == "not checked" and record.warnings == []


def test_other_models_are_black_boxes(network, photos):
    weights = jax.tree.map(lambda leaf: leaf[..., ::-1], network.variables)
    twin = dataclasses.replace(network, name="twin")
    other = dataclasses.replace(network, name="other", variables=weights)
    settings = dataclasses.replace(SETTINGS, iterations=(10,), radii=(), black_box=(), unbounded_steps=10)
    record = sanity.run(network, photos, settings, against=[twin, other], batch_size=11, progress=False)
    # The twin's images are the white-box ones, those of the network with its classes shuffled are weaker.
    assert record.columns["pgd from twin_correct"].tolist() == record.columns["pgd_10_correct"].tolist()
    assert record.metrics["pgd_10"].value < record.metrics["pgd from other"].value
    assert record.metrics["pgd_10"].value < record.metrics["di_fgsm from other"].value
    assert record.protocols["pgd from other"].endswith("crafted on other")
    assert "step 2/255" in record.protocols["di_fgsm from other"]
    assert record.checks["white_box_beats_black_box"]
    with pytest.raises(InputError, match="different names"):
        sanity.run(network, photos, settings, against=[network])


def test_what_is_written_comes_back_whatever_the_batch_size(runs, network, photos, tmp_path):
    section = {"examples": 5, "sanity": dataclasses.asdict(SETTINGS) | {"examples": 0, "batch_size": 5}}
    (record,) = run_suites(["sanity"], network, photos, section, tmp_path, progress=False)
    for name, column in run(runs, "plain", network, photos).columns.items():
        assert record.columns[name].tolist() == column.tolist(), name
    back = Record.read(tmp_path / "evaluation" / "sanity.json")
    assert back.examples == 22 and back.checks == record.checks == PASSED
    failed = run(runs, "saturated", network, photos, saturated)
    failed.write(tmp_path)
    assert sanity.failures([back, Record.read(tmp_path / "sanity.json")]) == sanity.failures([failed]) != []
    assert "failed" in (tmp_path / "sanity.checks.csv").read_text()


@pytest.mark.parametrize(
    ("counts", "allowed", "passed"),
    [
        ([20, 10, 10, 3], 0, True),
        ([20, 10, 11, 3], 0, False),
        ([20, 10, 11, 3], 1, True),
        ([20, 10, 11, 12], 1, False),  # two rises of one are a rise of two
        ([20, 10, 9, 11], 1, False),
        ([20], 0, None),
    ],
)
def test_a_rise_counts_from_any_earlier_point(counts, allowed, passed):
    check = sanity_checks.never_rises("more_steps_never_help", [(str(i), c) for i, c in enumerate(counts)], allowed)
    assert check.passed is passed
    if passed is False:
        assert f"{max(counts[2:])} at" in check.found and f"a rise of {allowed} is allowed" in check.found


def test_a_black_box_may_lead_by_the_tolerance():
    for lead, passed in ((-5, True), (0, True), (1, True), (2, False)):
        check = sanity_checks.white_box_is_strongest(("PGD", 10), {"weak": 12, "square": 10 - lead}, 1)
        assert check.passed is passed and ("weak" if lead == -5 else "square") in check.found
    assert not sanity_checks.reaches_zero(1, 1000, 100).passed


def test_nothing_to_lose_is_said(network, photos, make_images):
    wrong = make_images(photos.arrays()["image"], (photos.labels + 1) % 3)
    wrong = make_images(wrong.arrays()["image"][1:5], wrong.labels[1:5])
    settings = dataclasses.replace(SETTINGS, iterations=(1,), radii=(), black_box=(), unbounded_steps=10)
    record = sanity.run(network, wrong, settings, batch_size=11, progress=False)
    assert record.metrics["accuracy"].value == 0
    assert record.warnings == ["no image of the sample is classified correctly, so the checks say nothing"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"eps": "eight"}, "'eight' is not a radius"),
        ({"radii": ("-1",)}, "negative"),
        ({"iterations": ()}, "at least one iterations"),
        ({"queries": 0}, "queries=0"),
        ({"tolerance": 1.0}, "tolerance=1.0"),
        ({"black_box": ("sqare",)}, "unknown black-box attack 'sqare'.*did you mean 'square'"),
    ],
)
def test_settings_without_a_meaning(fields, message):
    with pytest.raises(InputError, match=message):
        sanity.Settings(**fields)


def test_the_looks_at_the_unbounded_attack():
    for steps, looks in ((100, list(range(10, 101, 10))), (4, [1, 2, 3, 4]), (15, [2, 3, 5, 6, 8, 9, 11, 12, 14, 15])):
        plan = sanity.attacks(sanity.Settings(unbounded_steps=steps))["unbounded"]
        assert [attack.num_steps for attack in plan] == looks
        assert {(attack.eps, attack.step_size) for attack in plan} == {(1.0, 0.1)}
    default = sanity.attacks(sanity.Settings())
    assert [a.radius for a in default["linf"]] == [f"{r}/255" for r in (2, 4, 8, 12, 16, 32, 64, 128)]
    np.testing.assert_allclose([a.step_size / a.eps for a in default["linf"]], 0.1)
    np.testing.assert_allclose([a.step_size for a in default["iterations"]], 0.8 / 255)
