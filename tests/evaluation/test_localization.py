from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from jrobust.errors import InputError
from jrobust.evaluation import Subject, localization


def window_logits(weights, images, *, beta=None):
    """Two classes that look at the pixels inside a window only, so that the gradient is the window."""
    inside = (images * weights).sum((1, 2, 3))
    return jnp.stack([inside, -inside], axis=1)


@pytest.fixture
def windows(make_images):
    window = np.zeros((48, 48, 3), np.float32)
    window[10:34, 14:40] = 1e-3
    images = np.random.default_rng(0).integers(1, 256, (5, 48, 48, 3)).astype(np.uint8)
    hit, miss = [11, 7, 42, 36], [0, 40, 8, 47]
    boxes = np.array([hit, miss, hit, hit, miss], np.float32)
    source = make_images(images, np.array([0, 0, 1, 0, 1]), boxes=boxes)
    return Subject("window", ["in", "out"], window_logits, jnp.asarray(window)), source


def test_shares_are_of_all_images(windows):
    subject, source = windows
    record = localization.run(subject, source, batch_size=2, progress=False)
    shares = {name: estimate.value for name, estimate in record.metrics.items()}
    # Hits: 0, 2, 3; correct: 0, 1, 3; both: 0, 3. A mean of percentages of batches would be another number.
    assert shares == {"gt_known": 3 / 5, "top1_localization": 2 / 5, "accuracy": 3 / 5}
    assert record.columns["iou"][0] > 0.7 and record.columns["iou"][1] < 0.1
    assert len(record.curves["threshold"]) == 20
    assert record.curves["threshold"][4]["gt_known"] == record.metrics["gt_known"]
    assert record.arrays["heatmap"].shape == (5, 48, 48) and record.arrays["true_box"].tolist()[1] == [0, 40, 8, 47]


def test_without_boxes(windows, photos):
    with pytest.raises(InputError, match="has no boxes"):
        localization.run(windows[0], photos)
    with pytest.raises(InputError, match="out of range"):
        localization.Settings(threshold=2)
