from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from jrobust.errors import InputError
from jrobust.evaluation import accuracy, batches
from jrobust.evaluation.estimates import proportion


def test_counts_and_confusion(linear, greys):
    record = accuracy.run(linear, greys, batch_size=4, progress=False)
    assert record.metrics["accuracy"] == proportion(np.arange(11) < 10)
    assert record.tables["confusion"] == {
        "columns": ["label", "dark", "bright"],
        "rows": [["dark", 5, 0], ["bright", 1, 5]],  # the mislabelled image is dark and called bright
    }
    rows = {row[0]: row for row in record.tables["per_class"]["rows"]}
    assert rows["dark"][1] == 1 and rows["bright"][1] == 5 / 6 and rows["bright"][4] == 6
    assert record.columns["correct"].sum() == 10 and record.parameters == 2
    assert (record.model, record.dataset, record.examples) == ("linear", "toy test", 11)
    assert record.commit == "" or len(record.commit.split("+")[0]) == 40
    assert record.versions["jax"] and record.device


@pytest.mark.parametrize("batch_size", [1, 4, 11, 64])
def test_batches_have_one_shape_and_lose_nothing(greys, batch_size):
    found = list(batches.batches(greys, batch_size, [10, 3, 4, 0, 7]))
    assert {batch["image"].shape for batch in found} == {(batch_size, 2, 2, 1)}
    assert np.concatenate([batch["index"][batch["valid"]] for batch in found]).tolist() == [10, 3, 4, 0, 7]
    first = found[0]
    np.testing.assert_allclose(first["image"][0] * 255, greys[10]["image"], rtol=1e-6)
    assert first["image"].dtype == np.float32 and first["label"].dtype == first["index"].dtype == np.int32


def test_pixels_are_scaled_to_one(make_images):
    batch = next(
        batches.batches(make_images(np.array([0, 51, 255], np.uint8).reshape(3, 1, 1, 1), [0, 1, 0]), 3, [0, 1, 2])
    )
    np.testing.assert_allclose(batch["image"].ravel(), [0, 0.2, 1], rtol=1e-6)


def test_centre_crop(make_images):
    pixels = np.arange(36, dtype=np.uint8).reshape(1, 6, 6, 1)
    source = batches.Cropped(make_images(pixels, [0], boxes=[[1, 2, 5, 6]]), 4)
    batch = next(batches.batches(source, 1, [0]))
    np.testing.assert_allclose(batch["image"][0] * 255, pixels[0, 1:5, 1:5], atol=1e-4)
    assert batch["box"].tolist() == [[0, 1, 4, 5]]
    assert batches.image_shape(source) == (4, 4, 1) and (source.name, source.split, len(source)) == ("toy", "test", 1)


def test_examples_are_spread_and_empty_sources_are_refused(linear, greys):
    record = accuracy.run(linear, greys, examples=3, batch_size=2, progress=False)
    assert record.columns["index"].tolist() == [0, 3, 7]
    assert accuracy.run(linear, greys, examples=99, batch_size=2, progress=False).examples == 11
    subset = type("Empty", (), {"name": "toy", "split": "test", "__len__": lambda self: 0})()
    with pytest.raises(InputError, match="no images"):
        accuracy.run(linear, subset)
    with pytest.raises(InputError, match="negative"):
        accuracy.run(linear, greys, examples=-1)


def test_too_few_class_names(linear, greys):
    with pytest.raises(InputError, match="names 1 classes"):
        accuracy.run(dataclasses.replace(linear, class_names=["dark"]), greys, progress=False)


def test_progress_tells_the_end_where_there_is_no_terminal(linear, greys, capsys):
    accuracy.run(linear, greys, batch_size=4)
    assert "accuracy: done in" in capsys.readouterr().err
