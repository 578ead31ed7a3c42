import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jrobust.attributions.masking import masking_scores
from jrobust.errors import InputError


def brute_force(mask, segmentation):
    """Pixel by pixel."""
    side = np.array(segmentation.shape) // np.array(mask.shape)
    masked = mask.repeat(side[0], 0).repeat(side[1], 1)
    both, either = (masked & segmentation).sum(), (masked | segmentation).sum()
    return masked.sum() / masked.size, both / segmentation.sum(), both / either


def test_by_hand():
    """An object of six pixels, four of them in one patch of four by four images' pixels, two in another."""
    segmentation = np.zeros((1, 4, 4), bool)
    segmentation[0, :2, :3] = True
    for masked, expected in (((0, 0), (1 / 4, 4 / 6, 4 / 6)), ((0, 1), (1 / 4, 2 / 6, 2 / 8)), ((1, 1), (1 / 4, 0, 0))):
        mask = np.zeros((1, 2, 2), bool)
        mask[0][masked] = True
        np.testing.assert_allclose(np.ravel(masking_scores(mask, segmentation)), expected, rtol=1e-6)


def test_against_pixels():
    rng = np.random.default_rng(0)
    segmentation = rng.random((6, 12, 15)) < 0.4
    masks = rng.random((3, 6, 4, 5)) < np.array([0.1, 0.5, 0.9])[:, None, None, None]
    found = jax.jit(masking_scores)(masks, segmentation)
    expected = np.array([[brute_force(m, s) for m, s in zip(mask, segmentation, strict=True)] for mask in masks])
    np.testing.assert_allclose(np.stack(found, -1), expected, rtol=1e-6)
    assert found.iou.shape == (3, 6) and found.iou.dtype == jnp.float32


def test_an_image_without_an_object_has_no_scores_and_a_mask_without_patches_has():
    segmentation = np.zeros((2, 4, 4), bool)
    segmentation[1, 0, 0] = True
    found = masking_scores(np.zeros((2, 2, 2), bool), segmentation)
    assert np.isnan(found).T.tolist() == [[True] * 3, [False] * 3]
    assert np.asarray(found)[:, 1].tolist() == [0, 0, 0]
    assert np.asarray(masking_scores(np.ones((2, 2, 2), bool), segmentation))[:, 1].tolist() == [1, 1, 1 / 16]


def test_sizes_that_do_not_fit():
    with pytest.raises(InputError, match="have no 3x3 patches of whole pixels"):
        masking_scores(np.ones((1, 3, 3), bool), np.ones((1, 4, 4), bool))
