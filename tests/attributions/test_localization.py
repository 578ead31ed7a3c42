import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage

from jrobust.attributions import localization as loc


def block(shape, *slices, value=255):
    grey = np.zeros(shape, np.uint8)
    for rows, columns in slices:
        grey[rows, columns] = value
    return grey


def test_filled_block():
    grey = block((64, 64), (slice(10, 20), slice(30, 50)))
    np.testing.assert_array_equal(loc.bounding_box(grey), [30, 10, 50, 20])
    assert loc.polygon_area(grey > 0) == 171


def test_empty_map_has_the_corner_box():
    np.testing.assert_array_equal(loc.bounding_box(np.zeros((8, 8), np.uint8)), [0, 0, 1, 1])


def test_areas():
    assert loc.polygon_area(np.ones((1, 30), bool)) == 0
    assert loc.polygon_area(np.ones((1, 1), bool)) == 0
    ring = np.ones((10, 10), bool)
    ring[1:-1, 1:-1] = False
    assert loc.polygon_area(ring) == 81  # the hole counts as filled
    diamond = np.asarray([[0, 1, 0], [1, 0, 1], [0, 1, 0]], bool)
    assert loc.polygon_area(diamond) == 2


def test_largest_by_area_not_by_pixels_and_diagonals_connect():
    line_and_block = block((40, 40), (slice(2, 3), slice(0, 40)), (slice(20, 24), slice(20, 24)))
    np.testing.assert_array_equal(loc.bounding_box(line_and_block), [20, 20, 24, 24])
    stairs = block((40, 40), (slice(0, 5), slice(0, 5)), (slice(5, 10), slice(5, 10)))
    np.testing.assert_array_equal(loc.bounding_box(stairs), [0, 0, 10, 10])


def test_threshold_is_the_floor_of_a_share_of_the_maximum():
    grey = block((20, 20), (slice(0, 10), slice(0, 10)), value=51)  # int(0.2 * 255) = 51 is not above itself
    grey[15:18, 15:18] = 255
    np.testing.assert_array_equal(loc.bounding_box(grey, 0.2), [15, 15, 18, 18])
    grey[:10, :10] = 52
    np.testing.assert_array_equal(loc.bounding_box(grey, 0.2), [0, 0, 10, 10])


def test_grey_levels():
    values = np.asarray([0, 1 / 256 - 1e-9, 1 / 256, 0.5, 255.9 / 256, 1])
    np.testing.assert_array_equal(loc.grey_levels(values), [0, 0, 1, 128, 255, 255])


def test_iou():
    same = np.asarray([3, 4, 20, 30])
    assert loc.iou(same, same) == 1
    assert loc.iou(np.asarray([0, 0, 9, 9]), np.asarray([0, 0, 19, 9])) == 0.5
    # Without the cut at 0 these two would be a hit: 0.506.
    assert loc.iou(np.asarray([0, 0, 49, 49]), np.asarray([91, 91, 140, 140])) == 0
    assert loc.iou(np.asarray([0, 0, 9, 9]), np.asarray([30, 0, 39, 9])) == 0


def test_ground_truth_in_the_crop():
    box, size = np.asarray([60, 27, 385, 331]), np.asarray([335, 500])  # the first image of CUB-200
    np.testing.assert_allclose(loc.crop_frame(box, size), [15.6, 5.55, 181.35, 236.96], atol=5e-3)
    np.testing.assert_allclose(loc.crop_frame(box, size, resized=256), [14.72, 4.63, 181.12, 236.94], atol=5e-3)


def test_percentages_are_of_all_images():
    true = np.tile([0, 0, 9, 9], (100, 1))
    boxes = true.copy()
    boxes[50:] += 50
    correct = np.arange(100) % 2 == 0
    scores = loc.localization_scores(boxes, true, correct)
    assert scores == (50.0, 25.0, 50.0)  # the mean of running percentages would print 84.4 for the first
    boxes[0] = [0, 0, 19, 9]
    assert loc.localization_scores(boxes, true, correct).gt_known == 50.0  # an IoU of exactly 0.5 is a hit


def test_gradient_heatmaps_step_by_step():
    rng = np.random.default_rng(0)
    gradient = rng.normal(size=(2, 24, 20, 3)) * np.asarray([1e-3, 1e3])[:, None, None, None]
    maps = loc.gradient_heatmaps(gradient)
    image = np.abs(gradient[1]).mean(-1)
    image = (image - image.mean()) / np.sqrt(((image - image.mean()) ** 2).sum() / (image.size - 1))
    low, high = np.percentile(image, 2), np.percentile(image, 98)
    image = (np.minimum(np.maximum(image, low), high) - low) / (high - low)
    padded = np.pad(image, 1)
    image = sum(padded[i : i + 24, j : j + 20] for i in range(3) for j in range(3)) / 9
    image = scipy.ndimage.gaussian_filter(image, 3)
    image = (image - image.min()) / (image.max() - image.min())
    np.testing.assert_allclose(maps[1], image, atol=1e-12)
    # An image's map does not depend on its neighbours, nor on the scale of its gradient.
    np.testing.assert_array_equal(maps[:1], loc.gradient_heatmaps(gradient[:1]))
    np.testing.assert_allclose(loc.gradient_heatmaps(1e-9 * gradient), maps, atol=1e-9)


def test_zero_gradient():
    maps = loc.gradient_heatmaps(np.zeros((1, 8, 8, 3)))
    np.testing.assert_array_equal(maps, 0)
    np.testing.assert_array_equal(loc.boxes_of(maps), [[0, 0, 1, 1]])


def test_gradient_is_of_the_predicted_class():
    weights = jnp.asarray(np.random.default_rng(0).normal(size=(12, 3)), jnp.float32)
    logits_fn = lambda x: x.reshape(x.shape[0], -1) @ weights
    images = jnp.asarray(np.random.default_rng(1).uniform(size=(4, 2, 2, 3)), jnp.float32)
    logits = np.asarray(logits_fn(images), np.float64)
    share = np.exp(logits - logits.max(-1, keepdims=True))
    share /= share.sum(-1, keepdims=True)
    share[np.arange(4), logits.argmax(-1)] -= 1
    expected = (share @ np.asarray(weights).T).reshape(images.shape)
    np.testing.assert_allclose(loc.predicted_class_gradient(logits_fn, images), expected, atol=1e-6)


def test_class_activation_map_finds_the_class():
    features = np.zeros((2, 14, 14, 3), np.float32)
    features[0, 2:6, 8:12, 1] = 1
    features[0, 9:12, 1:4, 2] = 1
    features[1, 2:6, 8:12, 1] = 1
    features[1, 9:12, 1:4, 2] = 1
    weights = np.asarray([[0, 1, 0], [0, 0, 1]], np.float32)
    maps = loc.class_activation_heatmaps(jnp.asarray(features), jnp.asarray(weights), (224, 224))
    assert maps.shape == (2, 224, 224) and maps.min() == 0 and maps.max() == 1
    boxes = loc.boxes_of(maps, 0.5)
    np.testing.assert_allclose(boxes[0], [8 * 16, 2 * 16, 12 * 16, 6 * 16], atol=1)
    np.testing.assert_allclose(boxes[1], [1 * 16, 9 * 16, 4 * 16, 12 * 16], atol=1)


def test_threshold_curve():
    heatmap = np.zeros((1, 32, 32))
    heatmap[0, 4:28, 4:28] = 0.3
    heatmap[0, 12:16, 12:16] = 1.0
    true = np.asarray([[4, 4, 28, 28]])
    curve = loc.threshold_curve(heatmap, true, np.asarray([True]))
    assert len(curve) == 20 and loc.THRESHOLDS[1] == 0.05 and loc.THRESHOLDS[-1] == 0.95
    assert [scores.gt_known for scores in curve] == [100.0 if t < 0.3 else 0.0 for t in loc.THRESHOLDS]
    assert curve[-1].top1_accuracy == 100 == curve[0].top1_localization


@pytest.mark.parametrize("seed", range(3))
def test_pruning_by_the_bounding_rectangle_does_not_change_the_choice(seed):
    rng = np.random.default_rng(seed)
    grey = (255 * (scipy.ndimage.gaussian_filter(rng.normal(size=(64, 64)), 1.5) > 0.1)).astype(np.uint8)
    components, count = scipy.ndimage.label(grey, np.ones((3, 3)))
    areas = [loc.polygon_area(components == i + 1) for i in range(count)]
    rows, columns = scipy.ndimage.find_objects(components)[int(np.argmax(areas))]
    np.testing.assert_array_equal(loc.bounding_box(grey), [columns.start, rows.start, columns.stop, rows.stop])
