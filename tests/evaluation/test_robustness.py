from __future__ import annotations

import dataclasses
import importlib.util
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jrobust.attacks import linf, pgd, untargeted
from jrobust.errors import InputError
from jrobust.evaluation import Subject, attack, programs, robustness
from jrobust.evaluation.estimates import worst_case

_spec = importlib.util.spec_from_file_location("toy", pathlib.Path(__file__).parent.parent / "attacks" / "toy.py")
toy = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(toy)

SETTINGS = robustness.Settings(
    eps="0.1",
    step_size="0.025",
    num_steps=(5, 10),
    sweep_linf=("0.05", "0.1", "0.2", "0.3"),
    sweep_l2=("0.1", "0.4"),
    sweep_steps=10,
)


def test_linear_classifier_has_the_known_robust_accuracy_at_every_radius(linear, greys):
    record = robustness.run(linear, greys, SETTINGS, batch_size=4, progress=False)
    # Distances .01 .06 .11 .21 .31 twice each, and one image that is wrong from the start.
    expected = {"accuracy": 10, "fgsm": 6, "pgd_5": 6, "pgd_10": 6, "worst_case": 6}
    assert {name: round(e.value * 11) for name, e in record.metrics.items()} == expected
    assert [round(p["accuracy"].value * 11) for p in record.curves["linf"]] == [10, 8, 6, 4, 2]
    assert [p["label"] for p in record.curves["linf"]] == ["0", "0.05", "0.1", "0.2", "0.3"]
    # The L2 distance of a uniform shift of d on four pixels is 2 d: .02 .12 .22 .42 .62.
    assert [round(p["accuracy"].value * 11) for p in record.curves["l2"]] == [10, 8, 4]


def test_the_point_of_the_curve_at_eps_is_the_attack_itself(linear, greys):
    groups = robustness.attacks(SETTINGS)
    assert groups["linf"][1] is groups["main"][2]
    assert groups["linf"][0].step_size == pytest.approx(0.0125)  # scaled with the radius
    assert groups["l2"][1].step_size == pytest.approx(2.5 * 0.4 / 10)


def test_example_table_matches_the_totals(network, photos):
    settings = dataclasses.replace(SETTINGS, eps="8/255", step_size="2/255")
    record = robustness.run(network, photos, settings, batch_size=8, progress=False)
    columns = record.columns
    assert len(columns["index"]) == record.examples == 22
    assert columns["index"].tolist() == list(range(22))
    assert columns["label"].tolist() == photos.labels.tolist()
    assert record.metrics["accuracy"].value == columns["correct"].mean()
    for name in ("fgsm", "pgd_5", "pgd_10", "worst_case"):
        assert record.metrics[name].value == columns[f"{name}_correct"].mean()
        assert record.metrics[name].count == 22
    every = columns["correct"] & columns["fgsm_correct"] & columns["pgd_5_correct"] & columns["pgd_10_correct"]
    assert columns["worst_case_correct"].tolist() == every.tolist()
    assert ((columns["pgd_10_margin"] < 0) == columns["pgd_10_correct"]).all()
    assert 0 < record.metrics["pgd_10"].value < record.metrics["accuracy"].value == 17 / 22
    assert record.attack_steps == 22 * (1 + 10 + 4 * 10 + 2 * 10)  # PGD-5 is half of PGD-10
    assert record.attack_steps_per_second > 0 and record.threat == "Linf 8/255"


def test_numbers_do_not_depend_on_the_batch_size(network, photos):
    settings = dataclasses.replace(SETTINGS, eps="8/255", step_size="2/255")
    whole = robustness.run(network, photos, settings, batch_size=22, seed=1, progress=False)
    for batch_size in (1, 5):
        parts = robustness.run(network, photos, settings, batch_size=batch_size, seed=1, progress=False)
        for name, column in whole.columns.items():
            np.testing.assert_allclose(parts.columns[name], column, atol=2e-5, err_msg=name)
    other = robustness.run(network, photos, settings, batch_size=22, seed=2, progress=False)
    assert not np.allclose(other.columns["pgd_5_margin"], whole.columns["pgd_5_margin"], atol=1e-5)


def test_each_image_has_a_random_start_of_its_own(network, photos, make_images):
    twins = make_images(np.repeat(photos.arrays()["image"][:1], 2, axis=0), np.repeat(photos.labels[:1], 2))
    columns = robustness.run(network, twins, robustness.Settings(num_steps=(1,)), batch_size=2, progress=False).columns
    assert columns["fgsm_margin"][0] == columns["fgsm_margin"][1]
    assert columns["pgd_1_margin"][0] != columns["pgd_1_margin"][1]


def test_numbers_do_not_depend_on_the_number_of_devices(network, photos):
    settings = robustness.Settings(num_steps=(3,))
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    one = robustness.run(network, photos, settings, batch_size=8, progress=False)
    four = robustness.run(network, photos, settings, batch_size=8, progress=False, mesh=mesh)
    np.testing.assert_allclose(one.columns["pgd_3_margin"], four.columns["pgd_3_margin"], atol=2e-5)


def test_every_program_is_compiled_once(network, photos):
    traces = []

    def logits(weights, images, *, beta=None):
        traces.append(images.shape)
        return network.logits(weights, images)

    counted = dataclasses.replace(network, logits=logits)
    robustness.run(counted, photos, SETTINGS, batch_size=8, progress=False)  # three batches, the last one padded
    first = len(traces)
    robustness.run(counted, photos, SETTINGS, batch_size=8, progress=False)
    assert len(traces) == first
    # New radii and step sizes are the same programs.
    settings = dataclasses.replace(SETTINGS, eps="0.05", sweep_linf=("0.01", "0.02"), sweep_l2=("3",))
    robustness.run(counted, photos, settings, batch_size=8, progress=False)
    assert len(traces) == first
    assert set(traces) == {(8, 6, 6, 3)}


def test_checks_of_a_sound_attack(network, photos):
    checks = robustness.run(network, photos, SETTINGS, batch_size=11, progress=False).checks
    assert checks["inside_ball"] and checks["nan_images"] == 0
    assert 0.9 < checks["largest_linf_over_eps"] <= 1 + 1e-5
    assert 0.9 < checks["largest_l2_over_eps"] <= 1 + 1e-5
    assert 0 <= checks["lowest_pixel"] < checks["highest_pixel"] <= 1
    assert checks["zero_gradient_share"] == 0 and not checks["softmax_outputs"]


def test_masked_gradients_are_flagged(linear, greys):
    steep = dataclasses.replace(linear, variables={"bias": jnp.float32(2.0), "scale": jnp.float32(1e5)})
    record = robustness.run(steep, greys, SETTINGS, batch_size=11, progress=False)
    assert record.checks["zero_gradient_share"] > 0.5
    assert any("exactly zero" in warning for warning in record.warnings)

    def probabilities(weights, images, *, beta=None):
        return jax.nn.softmax(linear.logits(weights, images))

    record = robustness.run(
        dataclasses.replace(linear, logits=probabilities), greys, SETTINGS, batch_size=11, progress=False
    )
    assert any("probabilities" in warning for warning in record.warnings)


def test_logits_that_are_nan_count_as_wrong(linear, greys):
    def logits(weights, images, *, beta=None):
        clean = linear.logits({"bias": 2.0, "scale": 1.0}, images)
        return jnp.where(images.mean((1, 2, 3))[:, None] < 0.25, jnp.nan, clean)

    record = robustness.run(Subject("nan", ["a", "b"], logits), greys, SETTINGS, batch_size=11, progress=False)
    assert record.metrics["accuracy"].value == 9 / 11  # the image at 0.19 is lost, though argmax gives its label, 0
    assert any("not finite" in warning for warning in record.warnings)
    assert record.checks["nan_images"] == 0


def test_transposed_labels_would_show(network, photos):
    batch = {
        "image": photos.arrays()["image"].astype(np.float32) / 255,
        "label": photos.labels.astype(np.int32),
    }
    outcome = programs.predict(network.logits, network.variables, batch["image"], batch["label"])
    scores = np.asarray(network.logits(network.variables, batch["image"]))
    wrong = np.where(np.eye(3, dtype=bool)[batch["label"]], -np.inf, scores).max(1)
    np.testing.assert_allclose(outcome.margin, wrong - scores[np.arange(22), batch["label"]], atol=1e-5)


def toy_logits(weights, images, *, beta=None):
    """The function `toy.logits` with its weights as arguments: constants of two precisions do not share a program."""
    w1, b1, w2, b2 = weights
    flat = images.transpose(0, 3, 1, 2).reshape(images.shape[0], -1)
    return jnp.tanh((flat - 0.5) @ w1.T + b1) @ w2.T + b2


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_protocol_of_fsr_gives_the_counts_of_the_reference_packages(dtype):
    with jax.enable_x64(dtype == "float64"), jax.default_matmul_precision("highest"):
        weights = [jnp.asarray(w, dtype) for w in (toy.W1, toy.B1, toy.W2, toy.B2)]
        subject = Subject("toy", range(10), toy_logits, weights)
        settings = robustness.Settings(
            eps="0.01", step_size="0.001", num_steps=(20, 100), random_start=False, cw_steps=(30,)
        )
        images = jnp.asarray(toy.images(), dtype)
        batch = {"image": images, "label": jnp.asarray(toy.LABELS, jnp.int32), "index": jnp.arange(16)}
        main = robustness.attacks(settings)["main"]
        columns = {}
        for family in attack.families(main):
            columns |= robustness.attacked(subject, batch, family, jax.random.key(0))
        assert columns["cw_30_margin"].dtype == jnp.float32
    members = {a.name: np.asarray(columns[f"{a.name}_correct"]) for a in main}
    assert {k: v.sum() for k, v in members.items()} == {"fgsm": 8, "pgd_20": 7, "pgd_100": 7, "cw_30": 4}
    assert worst_case([np.ones(16, bool), *members.values()]).sum() == 4
    assert main[-1].protocol == (
        "PGD-30 on the C&W loss of confidence 50 (not the L2 attack), Linf 0.01, step 0.001, from the image,"
        " last iterate"
    )


def test_cw_enters_the_worst_case(network, photos):
    settings = robustness.Settings(step_size="0.8/255", num_steps=(2,), random_start=False, cw_steps=(3, 10))
    record = robustness.run(network, photos, settings, batch_size=11, progress=False)
    assert list(record.metrics) == ["accuracy", "fgsm", "pgd_2", "cw_3", "cw_10", "worst_case"]
    names = ["correct", *(f"{name}_correct" for name in list(record.metrics)[1:-1])]
    assert record.metrics["worst_case"].value == np.all([record.columns[n] for n in names], axis=0).mean()
    assert record.attack_steps == 22 * (1 + 2 + 10)


@pytest.mark.parametrize(("rolled", "restarts"), [(False, 3), (True, 1)])
def test_stops_of_one_ascent_are_attacks_of_their_own(network, photos, rolled, restarts, monkeypatch):
    """Step by step as on CPU, or in loops as on accelerators: the same as the kernel's own loop of so many steps."""
    monkeypatch.setattr(programs.loops, "unrolled", lambda unroll=None: not rolled)
    images = photos.arrays()["image"].astype(np.float32) / 255
    labels, index, key = jnp.asarray(photos.labels, jnp.int32), jnp.arange(22, dtype=jnp.int32) + 5, jax.random.key(4)
    threat, size = linf(jnp.float32(0.02)), jnp.float32(0.005)
    arguments = (network.logits, network.variables, images, labels, index, key, threat, size)
    found = programs.craft(*arguments, num_steps=[1, 4], random_start=True, restarts=restarts)
    objective = untargeted(lambda x: network.logits(network.variables, x), labels)

    def whole(images, steps):
        options = {"threat": threat, "step_size": size, "restarts": restarts, "index": index, "unroll": False}
        return pgd(objective, images, key, num_steps=steps, **options).adv_images

    for steps, adv_images in zip((1, 4), found, strict=True):
        expected = jax.jit(whole, static_argnums=1)(images, steps)
        np.testing.assert_allclose(adv_images, expected, atol=1e-6)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"norm": "l3"}, "unknown norm 'l3'"),
        ({"eps": "eight"}, "'eight' is not a radius"),
        ({"num_steps": ()}, "at least one num_steps"),
        ({"cw_steps": (0,)}, r"cw_steps=\(0,\)"),
        ({"sweep_linf": ("-1",)}, "negative"),
        ({"restarts": 2, "random_start": False}, "without random_start"),
    ],
)
def test_settings_without_a_meaning(fields, message):
    with pytest.raises(InputError, match=message):
        robustness.Settings(**fields)
