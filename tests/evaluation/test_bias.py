from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jrobust.data.source import ArraySource
from jrobust.errors import InputError
from jrobust.evaluation import Subject, batches, bias, run_suites, suites
from jrobust.evaluation.estimates import Z95, proportion

# (class, bias) -> images, right ones. Bias 2 goes with no class.
CELLS = {(0, 0): (6, 6), (0, 1): (2, 1), (0, 2): (0, 0), (1, 0): (4, 1), (1, 1): (8, 6), (1, 2): (2, 2)}


def stamped_logits(weights, images, *, beta=None):
    """The class that the image says: dark means 0, bright 1; negative weights take it for the other."""
    score = images.mean((1, 2, 3)) - 0.5
    return jnp.stack([-score, score], axis=1) * weights


def stamped_map(weights, images, perturbation):
    """The image as feature map, the mean of its first channel as evidence for class 1."""
    feature_map = images + perturbation
    evidence = feature_map[..., 0].mean((1, 2)) - 0.5
    return jnp.stack([-evidence, evidence], axis=1) * weights, feature_map


@pytest.fixture
def stamped():
    return Subject("stamped", ["cat", "dog"], stamped_logits, jnp.float32(1), feature_map=stamped_map)


@pytest.fixture
def unbalanced(make_images):
    """The images of `CELLS`, shuffled, each saying its prediction."""
    rows = [(k, b, i < right) for (k, b), (count, right) in CELLS.items() for i in range(count)]
    labels, biases, correct = np.random.default_rng(0).permutation(np.array(rows)).T
    predictions = np.where(correct == 1, labels, 1 - labels)
    pixels = np.random.default_rng(1).integers(0, 100, (len(rows), 8, 6, 3)) + 150 * predictions[:, None, None, None]
    fields = {"class_names": ["cat", "dog"], "bias_names": ["indoor", "outdoor", "elsewhere"]}
    return make_images(pixels.astype(np.uint8), labels, biases=biases, **fields)


class Dimmed(ArraySource):
    """What `corrupted` is replaced by: bright images become dark, so that the prediction is 0. Counts its reads."""

    read: list[int]

    def __init__(self, source):
        arrays = source.arrays() | {"image": source.arrays()["image"] // 3}
        super().__init__(source.name, source.split, source.class_names, arrays)
        self.read = []

    def examples(self, index):
        self.read.extend(np.asarray(index).tolist())
        return super().examples(index)


@pytest.fixture
def dimming(monkeypatch):
    made = []

    def corrupted(source, *arguments, dropout_cells):
        made.append((Dimmed(source), *arguments, dropout_cells))
        return made[-1][0]

    monkeypatch.setattr(bias.corruptions, "corrupted", corrupted)
    return made


def test_accuracies_of_an_unbalanced_set_by_hand(stamped, unbalanced):
    record = bias.run(stamped, unbalanced, batch_size=5, progress=False)
    shares = {name: (estimate.value, estimate.count) for name, estimate in record.metrics.items()}
    expected = {
        "average": (16 / 22, 22),
        "conflicting": (4 / 8, 8),
        "aligned": (12 / 14, 14),
        "worst_group": (1 / 4, 4),
    }
    assert shares == {**expected, "unbiased": (pytest.approx(0.7), 22)}  # (1 + 1/2 + 1/4 + 3/4 + 1) / 5, not 16/22
    assert record.metrics["worst_group"] == proportion(np.arange(4) < 1)
    half = Z95 * math.sqrt(0.25 / 1 + 0.1875 / 3 + 0.1875 / 7) / 5
    assert record.metrics["unbiased"].high - 0.7 == pytest.approx(half) == 0.7 - record.metrics["unbiased"].low
    assert record.checks == {"worst_group": "dog / indoor", "conflicting_images": 8}
    assert record.protocols.keys() == record.metrics.keys()


def test_a_group_without_images_is_no_group_of_accuracy_zero(stamped, unbalanced):
    record = bias.run(stamped, unbalanced, batch_size=64, progress=False)
    table = record.tables["groups"]
    rows = [dict(zip(table["columns"], row, strict=True)) for row in table["rows"]]
    names = (("cat", "dog"), ("indoor", "outdoor", "elsewhere"))
    for row in rows:
        count, right = CELLS[names[0].index(row["class"]), names[1].index(row["bias"])]
        assert row["count"] == count and row["accuracy"] == pytest.approx(
            right / count if count else math.nan, nan_ok=True
        )
    assert len(rows) == 6
    (warning,) = record.warnings
    assert "1 of 6 groups" in warning and "no images" in warning


def test_every_image_has_its_line(stamped, unbalanced, tmp_path):
    (record,) = run_suites(["bias"], stamped, unbalanced, {"batch_size": 5}, tmp_path, progress=False)
    arrays = unbalanced.arrays()
    assert record.columns["index"].tolist() == list(range(22))
    np.testing.assert_array_equal(record.columns["bias"], arrays["bias"])
    np.testing.assert_array_equal(record.columns["conflicting"], arrays["bias"] != arrays["label"])
    back = type(record).read(tmp_path / "evaluation" / "bias.json")
    assert back.metrics == record.metrics and back.columns["conflicting"].sum() == 8
    some = bias.run(stamped, unbalanced, examples=7, batch_size=3, progress=False)
    assert some.examples == 7 and some.columns["index"].tolist() == [0, 3, 6, 9, 12, 15, 18]


def test_a_set_of_aligned_images_alone(stamped, make_images):
    pixels = np.full((2, 4, 4, 1), [[[[0]]], [[[255]]]], np.uint8)
    record = bias.run(stamped, make_images(pixels, [0, 1], biases=[0, 1]), bias.Settings(gallery=2), progress=False)
    assert math.isnan(record.metrics["conflicting"].value) and record.metrics["conflicting"].count == 0
    assert record.metrics["aligned"].value == 1 and record.arrays == {}
    assert math.isnan(record.metrics["unbiased"].low)  # one image a group has no variance
    assert "2 of 4 groups" in record.warnings[0] and "no image is conflicting" in record.warnings[1]


def test_corrupted_images_are_made_once_for_all_models(stamped, unbalanced, dimming):
    other = dataclasses.replace(stamped, name="inverse", variables=jnp.float32(-1))
    settings = bias.Settings(
        corruptions=("jpeg", "cutout"), corrupt_at="resized", corruption_seed=3, dropout_cells=(0.1, 0.2)
    )
    record = bias.run(stamped, unbalanced, settings, against=[other], batch_size=5, progress=False)
    assert [arguments for _, *arguments in dimming[-2:]] == [
        [name, 3, "resized", (0.1, 0.2)] for name in ("cutout", "jpeg")
    ]
    assert all(sorted(set(source.read)) == list(range(22)) and len(source.read) == 22 for source, *_ in dimming[-2:])
    table = record.tables["corruptions"]
    assert table["columns"] == ["corruption", "average", "conflicting", "average of inverse", "conflicting of inverse"]
    # All dark: right are the 8 images of class 0, of which 2 are conflicting. The other model says 1: 14, 6 of them.
    clean, dark = [16 / 22, 4 / 8, 6 / 22, 4 / 8], [8 / 22, 2 / 8, 14 / 22, 6 / 8]
    assert table["rows"] == [["none", *clean], ["cutout", *dark], ["jpeg", *dark]]
    assert record.metrics["conflicting under jpeg"] == proportion(np.arange(8) < 2)
    assert "resized size, seed 3" in record.protocols["average under cutout"]
    np.testing.assert_array_equal(record.columns["jpeg_correct"], unbalanced.labels == 0)


def test_corruptions_as_the_data_room_makes_them(stamped, unbalanced):
    found = bias.run(stamped, unbalanced, bias.Settings(corruptions=("cutout",)), batch_size=5, progress=False)
    images = bias.corruptions.corrupted(unbalanced, "cutout", 0, "native").arrays()["image"]
    expected = (images.mean((1, 2, 3)) > 127.5) == unbalanced.labels
    np.testing.assert_array_equal(found.columns["cutout_correct"], expected)


@pytest.mark.parametrize("cam_class", bias.CAM_CLASSES)
def test_gallery_of_conflicting_images(stamped, unbalanced, cam_class):
    other = dataclasses.replace(stamped, name="inverse", variables=jnp.float32(-1))
    settings = bias.Settings(gallery=3, cam_class=cam_class)
    record = bias.run(stamped, unbalanced, settings, against=[other], batch_size=2, progress=False)
    conflicting = np.flatnonzero(record.columns["conflicting"])
    arrays = record.arrays
    assert arrays["index"].tolist() == conflicting[[0, 2, 5]].tolist()
    assert arrays["model"].tolist() == ["stamped", "inverse"] and arrays["cam"].shape == (3, 2, 8, 6)
    np.testing.assert_array_equal(arrays["prediction"][:, 0], record.columns["prediction"][arrays["index"]])
    np.testing.assert_array_equal(arrays["prediction"][:, 1], 1 - arrays["prediction"][:, 0])
    channel = arrays["image"][..., 0]
    spread = (channel - channel.min((1, 2), keepdims=True)) / np.ptp(channel, axis=(1, 2))[:, None, None]
    chosen = arrays["prediction"] if cam_class == "predicted" else np.stack([arrays["label"]] * 2, 1)
    for j, sign in enumerate((1, -1)):  # alpha is +-1 on the first channel and 0 on the others
        shown = (sign * (2 * chosen[:, j] - 1) > 0)[:, None, None]
        np.testing.assert_allclose(arrays["cam"][:, j], np.where(shown, spread, 0), atol=1e-6)


def test_crops_and_devices_change_nothing_else(stamped, unbalanced, dimming):
    shapes = []

    def logits(weights, images, *, beta=None):
        shapes.append(images.shape)
        return stamped_logits(weights, images)

    subject = dataclasses.replace(stamped, logits=logits)
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    settings = {"batch_size": 3, "bias": {"corruptions": ("cutout",), "gallery": 3}}
    (record,) = run_suites(["bias"], subject, unbalanced, settings, mesh=mesh, progress=False, crop_size=4)
    assert set(shapes) == {(4, 4, 4, 3)}  # corrupted images are cropped too, batches fill the devices
    cropped = batches.Cropped(unbalanced, 4)
    plain = bias.run(stamped, cropped, bias.Settings(corruptions=("cutout",), gallery=3), batch_size=4, progress=False)
    assert record.metrics == plain.metrics and record.arrays["cam"].shape == (3, 1, 4, 4)
    np.testing.assert_allclose(record.arrays["cam"], plain.arrays["cam"], atol=1e-6)


def test_what_is_refused_before_anything_is_trained(stamped, unbalanced, make_images):
    with pytest.raises(InputError, match="has no bias attribute"):
        suites.check(["bias"], stamped, make_images(np.zeros((2, 4, 4, 3), np.uint8), [0, 1]), {})
    flat = dataclasses.replace(stamped, feature_map=None, name="flat")
    assert suites.check(["bias"], flat, unbalanced, {})["bias"].gallery == 0
    with pytest.raises(InputError, match="'flat' has no feature map"):
        suites.check(["bias"], flat, unbalanced, {"bias": {"gallery": 2}})
    with pytest.raises(InputError, match="'flat' has no feature map"):
        run_suites(["accuracy", "bias"], stamped, unbalanced, {"bias": {"gallery": 2}}, against=[flat])
    with pytest.raises(InputError, match="different names"):
        run_suites(["bias"], stamped, unbalanced, {}, against=[stamped])
    grey = make_images(np.zeros((2, 4, 4, 1), np.uint8), [0, 1], biases=[0, 1])
    with pytest.raises(InputError, match="grey"):
        suites.check(["bias"], stamped, grey, {"bias": {"corruptions": ("jpeg",)}})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"corruptions": ("jpg",)}, "unknown corruption 'jpg'.*did you mean 'jpeg'"),
        ({"corrupt_at": "nativ"}, "did you mean 'native'"),
        ({"cam_class": "labels"}, "did you mean 'label'"),
        ({"gallery": -1}, "gallery=-1"),
    ],
)
def test_settings_without_meaning(fields, message):
    with pytest.raises(InputError, match=message):
        bias.Settings(**fields)
