"""Weakly supervised localisation: boxes out of heatmaps, on the host, as Singh et al. 2020 evaluate CUB-200."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.ndimage

from jrobust.attributions import gradients

THRESHOLDS = tuple(round(0.05 * i, 2) for i in range(20))  # 0, 0.05 .. 0.95
NO_BOX = (0.0, 0.0, 1.0, 1.0)


class LocalizationScores(NamedTuple):
    """Percentages over all images (not means of percentages of batches).

    Attributes:
      gt_known: share of images with IoU >= 0.5.
      top1_localization: share of images with IoU >= 0.5 that are also classified correctly.
      top1_accuracy: share of images classified correctly.
    """

    gt_known: float
    top1_localization: float
    top1_accuracy: float


def predicted_class_gradient(logits_fn: gradients.LogitsFn, images: jax.Array) -> jax.Array:
    """Return the gradient of CE(f(x), argmax f(x)) with respect to pixels: float[B, H, W, C], on the device.

    The predicted class is used for GT-known localisation too. Ties go to the lowest class.
    """
    labels = jnp.argmax(logits_fn(images), axis=-1)
    return gradients.input_gradient(gradients.cross_entropy_score(logits_fn, labels), images)


def gradient_heatmaps(gradient: np.ndarray) -> np.ndarray:
    """Return heatmaps float64[B, H, W] in [0, 1] of input gradients float[B, H, W, C].

    For each image by itself: mean over channels of |g|, standardised (mean, unbiased standard deviation), clipped to
    its 2nd and 98th percentile, brought to [0, 1], 3 x 3 mean (zeros outside), Gaussian of sigma 3 (reflected), brought
    to [0, 1]. The released code takes the first [0, 1] over the whole batch, which leaks the batch into the zero border
    of the 3 x 3 mean; here it is each image's own. A zero gradient gives a zero heatmap.
    """
    maps = []
    for image in np.abs(np.asarray(gradient, np.float64)).mean(-1):
        spread = image.std(ddof=1)
        standard = (image - image.mean()) / spread if spread > 0 else np.zeros_like(image)
        clipped = _unit_range(np.clip(standard, *np.percentile(standard, (2, 98))))
        smooth = scipy.ndimage.uniform_filter(clipped, 3, mode="constant")
        maps.append(_unit_range(scipy.ndimage.gaussian_filter(smooth, 3.0)))
    return np.stack(maps)


def class_activation_heatmaps(features: jax.Array, class_weights: jax.Array, size: tuple[int, int]) -> np.ndarray:
    """Return heatmaps float64[B, H, W] in [0, 1] of class activation maps (Zhou et al. 2016).

    The map is the channel mean of features times the class's weights, resized to `size` by cubic convolution (a =
    -0.75, no antialiasing: as PyTorch and OpenCV), brought to [0, 1] for each image. The usual threshold is 0.1.

    Args:
      features: float[B, h, w, D], the feature map before global pooling.
      class_weights: float[B, D], for every image the last layer's weights of its ground-truth class.
      size: (H, W) of the images.
    """
    maps = jnp.mean(features * class_weights[:, None, None, :], axis=-1)
    method = jax.image.ResizeMethod.CUBIC_PYTORCH
    resized = jax.image.resize(maps, (maps.shape[0], *size), method, antialias=False)
    return np.stack([_unit_range(image) for image in np.asarray(resized, np.float64)])


def grey_levels(heatmap: np.ndarray) -> np.ndarray:
    """Return uint8[..., H, W]: floor(256 * heatmap) capped at 255, for heatmaps in [0, 1].

    Stands for the colour map and grey conversion of the released code, which is monotone and within one level of this.
    """
    return np.minimum(np.floor(256 * np.asarray(heatmap)), 255).astype(np.uint8)


def bounding_box(grey: np.ndarray, threshold: float = 0.2) -> np.ndarray:
    """Return the box float64[4] = (x, y, x + w, y + h) of the largest blob of a grey image uint8[H, W].

    Blobs are the 8-connected components of grey > floor(threshold * max grey); the largest is that of largest
    `polygon_area`, the first in raster order among equals. (0, 0, 1, 1) if there is none.
    """
    mask = grey > int(threshold * int(grey.max()))
    components, count = scipy.ndimage.label(mask, structure=np.ones((3, 3)))
    best, largest = NO_BOX, -1.0
    for component, (rows, columns) in zip(range(1, count + 1), scipy.ndimage.find_objects(components), strict=True):
        height, width = rows.stop - rows.start, columns.stop - columns.start
        if (height - 1) * (width - 1) <= largest:
            continue  # the bounding rectangle's polygon is an upper limit
        area = polygon_area(components[rows, columns] == component)
        if area > largest:
            best, largest = (columns.start, rows.start, columns.stop, rows.stop), area
    return np.asarray(best, np.float64)


def polygon_area(component: np.ndarray) -> float:
    """Return the area inside the outer contour of ONE 8-connected component bool[H, W], through pixel centres.

    The contour is a polygon with its corners at the centres of border pixels (OpenCV's contourArea): a filled h x w
    block has (h - 1)(w - 1), a line of pixels 0. Holes count as filled. Between four neighbouring centres the polygon
    covers 1 if all four are set, 1/2 if three are.

    >>> polygon_area(np.ones((10, 20), bool))
    171.0
    """
    filled = scipy.ndimage.binary_fill_holes(component).astype(int)
    corners = filled[:-1, :-1] + filled[1:, :-1] + filled[:-1, 1:] + filled[1:, 1:]
    return float(np.sum(corners == 4) + np.sum(corners == 3) / 2)


def boxes_of(heatmaps: np.ndarray, threshold: float = 0.2) -> np.ndarray:
    """Return boxes float64[B, 4] of heatmaps [B, H, W] in [0, 1]; see `bounding_box`."""
    return np.stack([bounding_box(grey, threshold) for grey in grey_levels(heatmaps)])


def crop_frame(boxes: np.ndarray, image_size: np.ndarray, *, resized: int = 255, crop: int = 224) -> np.ndarray:
    """Return ground-truth boxes in the frame of the centre crop: float64[..., 4].

        x -> x / W * resized - floor((resized - crop) / 2),   y likewise with H

    Not clipped to the crop. `resized=255` is the released code's value for images resized to 256, about 1 pixel off;
    `resized=256` is the crop's true position.

    Args:
      boxes: float[..., 4], (x0, y0, x1, y1) in pixels of the original images.
      image_size: int[..., 2], the originals' (H, W).
    """
    boxes, image_size = np.asarray(boxes, np.float64), np.asarray(image_size, np.float64)
    return boxes / image_size[..., [1, 0, 1, 0]] * resized - (resized - crop) // 2


def iou(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return the intersection over union float64[...] of boxes [..., 4], both ends of an interval counting (+1).

    Disjoint boxes give 0: both sides of the intersection are cut at 0, whose product would otherwise be positive.

    >>> float(iou(np.array([0, 0, 9, 9]), np.array([0, 0, 19, 9])))
    0.5
    """
    boxes, others = np.asarray(boxes, np.float64), np.asarray(others, np.float64)
    low, high = np.maximum(boxes[..., :2], others[..., :2]), np.minimum(boxes[..., 2:], others[..., 2:])
    shared = np.prod(np.maximum(high - low + 1, 0), axis=-1)
    areas = [np.prod(box[..., 2:] - box[..., :2] + 1, axis=-1) for box in (boxes, others)]
    return shared / (areas[0] + areas[1] - shared)


def localization_scores(boxes: np.ndarray, true_boxes: np.ndarray, correct: np.ndarray) -> LocalizationScores:
    """Return the percentages for predicted and true boxes [N, 4] and bool[N], whether each image's top-1 is right."""
    hit, correct = iou(boxes, true_boxes) >= 0.5, np.asarray(correct, bool)
    return LocalizationScores(*(float(100 * np.mean(share)) for share in (hit, hit & correct, correct)))


def threshold_curve(
    heatmaps: np.ndarray, true_boxes: np.ndarray, correct: np.ndarray, thresholds: Sequence[float] = THRESHOLDS
) -> list[LocalizationScores]:
    """Return the scores at every threshold, by default 0 to 0.95 in steps of 0.05."""
    return [localization_scores(boxes_of(heatmaps, t), true_boxes, correct) for t in thresholds]


def _unit_range(image: np.ndarray) -> np.ndarray:
    low, high = image.min(), image.max()
    return (image - low) / (high - low) if high > low else np.zeros_like(image)
