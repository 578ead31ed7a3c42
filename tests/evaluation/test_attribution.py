from __future__ import annotations

import dataclasses
import math

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from jrobust.attributions import integrated
from jrobust.errors import InputError
from jrobust.evaluation import Subject, attribution, importance
from jrobust.evaluation.estimates import mean

SETTINGS = attribution.Settings(
    eps="8/255", step_size="2/255", num_steps=4, top_k=6, num_points=4, chunk=4, sweep=("0", "1/255")
)


def test_zero_radius_changes_nothing_and_larger_ones_change_more(network, photos):
    record = attribution.run(network, photos, SETTINGS, batch_size=8, examples=10, progress=False)
    points = record.curves["linf"]
    assert [p["label"] for p in points] == ["0", "1/255", "8/255"]
    for name in attribution.MEASURES:
        assert points[0][name].value == pytest.approx(1, abs=1e-6)
        assert points[2][name].value < points[1][name].value < 1
        assert record.metrics[name] == points[2][name]
    assert record.metrics["IN"].value != record.metrics["IN_logit"].value
    assert record.attack_steps == 10 * 3 * 3  # three radii; of four iterates the first takes no step
    assert record.checks["kept_prediction_share"] == 1
    assert record.checks["largest_change_over_eps"]["8/255"] <= 1 + 1e-5
    assert (
        record.threat == "Linf 8/255"
        and "cross-entropy" in record.protocols["IN"]
        and "logit" in record.protocols["K_logit"]
    )


def test_examples_are_correct_ones_in_seeded_order(network, photos):
    record = attribution.run(network, photos, SETTINGS, batch_size=4, examples=6, seed=5, progress=False)
    shuffled = np.random.default_rng(5).permutation(22)
    assert record.columns["index"].tolist() == [i for i in shuffled if i % 5][:6]
    assert record.examples == 6 and not record.warnings
    many = attribution.correct_images(network, photos, 1000, seed=5, batch_size=4)
    assert sorted(many) == [i for i in range(22) if i % 5]


def test_example_table_matches_the_totals_and_the_boxes(network, photos):
    record = attribution.run(network, photos, SETTINGS, batch_size=8, examples=10, progress=False)
    for name in attribution.MEASURES:
        assert record.metrics[name] == mean(record.columns[name])
    rows = {(row[0], row[1]): row[2:] for row in record.tables["boxes"]["rows"]}
    for radius, column in (("8/255", "K"), ("1/255", "K_1/255")):
        values = record.columns[column]
        low, median, high = np.nanpercentile(values, [25, 50, 75])
        assert rows[radius, "K"][:3] == pytest.approx([low, median, high])
        assert rows[radius, "K"][6] == pytest.approx(np.nanvar(values, ddof=1))


def test_numbers_do_not_depend_on_the_batch_size(network, photos):
    whole = attribution.run(network, photos, SETTINGS, batch_size=10, examples=10, progress=False)
    parts = attribution.run(network, photos, SETTINGS, batch_size=3, examples=10, progress=False)
    for name, column in whole.columns.items():
        np.testing.assert_allclose(parts.columns[name], column, atol=1e-4, err_msg=name)


def test_gallery_holds_the_first_examples(network, photos):
    record = attribution.run(network, photos, SETTINGS, batch_size=3, examples=10, progress=False)
    arrays = record.arrays
    assert arrays["image"].shape == arrays["adv_image"].shape == (8, 6, 6, 3)
    assert arrays["map"].shape == arrays["adv_map"].shape == (8, 6, 6)
    np.testing.assert_allclose(arrays["map"].sum((1, 2)), 36, rtol=1e-4)
    assert arrays["index"].tolist() == record.columns["index"][:8].tolist()
    change = np.abs(arrays["adv_image"] - arrays["image"]).max()
    assert 0 < change <= 8 / 255 + 1e-6
    np.testing.assert_array_equal(arrays["image"], photos.arrays()["image"][arrays["index"]].astype(np.float32) / 255)


def test_headline_is_on_maps_of_the_cross_entropy(network, photos):
    record = attribution.run(network, photos, SETTINGS, batch_size=8, examples=8, progress=False)
    pair = record.arrays["image"], record.arrays["adv_image"]
    for suffix, make in (("", integrated.ig_ce), ("_logit", integrated.ig_logit)):
        maps = make(lambda x: network.logits(network.variables, x), record.arrays["label"], num_points=4)
        clean, moved = (np.asarray(maps(images)) for images in pair)
        top, top_moved = (np.argsort(-m, axis=1)[:, :6] for m in (clean, moved))
        overlap = [len({*a} & {*b}) / 6 for a, b in zip(top.tolist(), top_moved.tolist(), strict=True)]
        taus = [scipy.stats.kendalltau(a, b).statistic for a, b in zip(clean, moved, strict=True)]
        np.testing.assert_allclose(record.columns[f"IN{suffix}"], overlap, atol=1e-6)
        np.testing.assert_allclose(record.columns[f"K{suffix}"], taus, atol=0.01)


def test_maps_on_the_host_give_the_same_kendall(network, photos, monkeypatch):
    on_device = attribution.run(network, photos, SETTINGS, batch_size=8, examples=8, progress=False)
    monkeypatch.setattr(importance, "HOST_PIXELS", 1)
    on_host = attribution.run(network, photos, SETTINGS, batch_size=8, examples=8, progress=False)
    for name in ("K", "K_logit", "IN", "K_1/255"):
        np.testing.assert_allclose(on_host.columns[name], on_device.columns[name], atol=1e-5)


def test_failures_are_dropped_or_count_as_one(network, photos):
    def fickle(weights, images, *, beta=None):
        # Whatever is not an image of 256 levels is called something else: no iterate is admissible.
        scores = network.logits(weights, images, beta=beta)
        steps = images * 255
        odd = jnp.abs(steps - steps.round()).reshape(images.shape[0], -1).max(1) > 1e-3
        return scores - 1e3 * odd[:, None] * (scores == scores.max(1, keepdims=True))

    subject = dataclasses.replace(network, logits=fickle)
    kwargs = {"batch_size": 8, "examples": 8, "progress": False}
    settings = dataclasses.replace(SETTINGS, eps="0.73/255", step_size="0.1/255", sweep=())
    dropped = attribution.run(subject, photos, settings, **kwargs)
    assert dropped.metrics["failed"].value == 1
    assert math.isnan(dropped.metrics["IN"].value) and dropped.metrics["IN"].count == 0
    assert any("failed on 100.0 %" in warning for warning in dropped.warnings)


def test_strict_preset_counts_failures():
    assert dataclasses.replace(SETTINGS, preset="ifia_strict").attack().count_failures
    assert not SETTINGS.attack().count_failures


def test_what_does_not_fit_is_an_error(network, photos, linear, greys):
    with pytest.raises(InputError, match="top_k=37 of images of 6 x 6 = 36 pixels"):
        attribution.check(dataclasses.replace(SETTINGS, top_k=37), network, photos)
    plain = Subject("plain", ["a", "b"], lambda weights, images: images.mean((1, 2)))
    with pytest.raises(InputError, match="takes no argument beta"):
        attribution.check(dataclasses.replace(SETTINGS, top_k=2), plain, greys)
    with pytest.raises(InputError, match="unknown preset"):
        attribution.Settings(preset="ifia")
    inverted = Subject("inverted", ["a", "b"], lambda w, x, beta=None: -1e3 * linear.logits(linear.variables, x))
    settings = dataclasses.replace(SETTINGS, top_k=2)
    greys.labels[10] = 0
    with pytest.raises(InputError, match="classifies no image of toy test correctly"):
        attribution.run(inverted, greys, settings, progress=False)


def test_saturated_maps_are_left_out_and_counted(network, photos):
    def saturated(weights, images, *, beta=None):
        return 1e4 * network.logits(weights, images, beta=beta)

    subject = dataclasses.replace(network, logits=saturated)
    record = attribution.run(
        subject, photos, dataclasses.replace(SETTINGS, sweep=()), batch_size=8, examples=8, progress=False
    )
    assert record.checks["empty_maps"] + record.metrics["IN"].count + int(record.columns["failed"].sum()) >= 8
    assert np.isfinite(record.metrics["K_logit"].value)
