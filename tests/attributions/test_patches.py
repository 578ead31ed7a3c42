import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jrobust import keys
from jrobust.attributions.patches import (
    as_patches,
    context_mask,
    kept,
    multi_fill,
    object_mask,
    random_mask,
    random_places,
    refill,
    single_fill,
)
from jrobust.errors import InputError


@functools.partial(jax.jit, static_argnums=0)
def draws(count, seed=0):
    return keys.per_example(jax.random.key(seed), jnp.arange(count))


def numbered(batch, height=4, width=6, dtype=np.uint8):
    """Images that tell their number and the place of each pixel: no two pixels of the batch are equal in all three."""
    rows, columns = np.indices((height, width))
    return jnp.asarray(np.stack([np.stack([np.full_like(rows, i), rows, columns], -1) for i in range(batch)]), dtype)


def test_masks_of_a_map():
    maps = jnp.asarray([[[0.1, 0.3], [0.31, 1.0]], [[0.0, 0.0], [0.0, 0.0]]])
    expected = np.array([[[False, False], [True, True]], [[False, False], [False, False]]])
    np.testing.assert_array_equal(object_mask(maps, 0.3), expected)
    np.testing.assert_array_equal(context_mask(maps, 0.3), ~expected)
    np.testing.assert_array_equal(kept(jnp.asarray(expected)), [[True, True, False, False], [True] * 4])


def test_random_masks_have_their_rate_and_belong_to_the_image():
    run = jax.jit(lambda k, rate: random_mask(k, 7, rate))
    masks = run(draws(200), 0.3)
    assert masks.shape == (200, 7, 7) and masks.dtype == bool
    assert float(masks.mean()) == pytest.approx(0.3, abs=0.02)  # five standard deviations
    assert np.abs(masks.mean(0) - 0.3).max() < 0.17 and 2.6 < masks.sum((1, 2)).std() < 3.9  # sqrt(49 0.3 0.7) = 3.2
    np.testing.assert_array_equal(run(draws(200)[::-1], 0.3), masks[::-1])
    assert run(draws(200), 1.0).all() and not run(draws(200), 0.0).any()


def test_random_places():
    places = jax.jit(lambda k: random_places(k, 49, 0.75))(draws(200))
    assert places.shape == (200, 12) and places.dtype == jnp.int32
    assert all(len(set(row)) == 12 for row in places.tolist())
    counts = np.bincount(places.reshape(-1), minlength=49)
    assert len(counts) == 49 and np.abs(counts / 200 - 12 / 49).max() < 0.12
    for rate, count in ((1.0, 0), (0.0, 49), (0.1, 44)):
        assert jax.eval_shape(lambda k, rate=rate: random_places(k, 49, rate), draws(200)).shape == (200, count)
    with pytest.raises(InputError, match=r"masking rate is 75: expected a number in \[0, 1\]"):
        random_places(draws(200), 49, 75)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_refilling_by_hand(dtype):
    """Two by three patches of two by two pixels: the place stays, the image is the donor."""
    images = numbered(3, dtype=dtype)
    mask = np.zeros((3, 2, 3), bool)
    mask[0, 0, 2], mask[2, 1, 0] = True, True
    found = refill(images, jnp.asarray(mask), jnp.asarray([1, 2, 0]))
    expected = np.array(images)
    expected[0, :2, 4:, 0], expected[2, 2:, :2, 0] = 1, 0
    np.testing.assert_array_equal(found, expected)
    assert found.dtype == dtype
    donors = np.zeros((3, 2, 3), int)
    donors[0, 0, 2], donors[2, 1, 0] = 2, 1
    expected[0, :2, 4:, 0], expected[2, 2:, :2, 0] = 2, 1
    np.testing.assert_array_equal(refill(images, jnp.asarray(mask), jnp.asarray(donors)), expected)


def test_refilling_where_nothing_or_everything_is_masked():
    images, donors = numbered(4), jnp.asarray([3, 1, 0, 2])
    everything = jnp.ones((4, 2, 2), bool)
    np.testing.assert_array_equal(refill(images, everything, donors), images[donors])
    np.testing.assert_array_equal(refill(images, everything, jnp.arange(4)), images)
    np.testing.assert_array_equal(refill(images, ~everything, donors), images)


def sources(images, grid):
    """The image that each patch comes from, the place of every pixel having been checked."""
    np.testing.assert_array_equal(images[..., 1:], numbered(len(images))[..., 1:])
    cells = np.asarray(as_patches(images, (grid, grid)))[..., 0]
    np.testing.assert_array_equal(cells.min((3, 4)), cells.max((3, 4)))
    return cells[..., 0, 0]


GROUPS = np.arange(40).reshape(4, 10, 1, 1)


def test_single_fill_is_one_permutation_a_group():
    images, everything = numbered(40), jnp.ones((40, 2, 2), bool)
    run = jax.jit(lambda key: single_fill(key, images, everything, groups=4))
    first, second = (sources(run(jax.random.key(seed)), 2) for seed in (1, 2))
    np.testing.assert_array_equal(first, np.broadcast_to(first[:, :1, :1], first.shape))
    donors = first[:, 0, 0].reshape(4, 10)
    np.testing.assert_array_equal(np.sort(donors), GROUPS[..., 0, 0])
    assert len({tuple(row) for row in donors % 10}) == 4  # each group its own
    assert (donors.reshape(-1) != np.arange(40)).sum() > 25 and (second != first).mean() > 0.6


def test_multi_fill_draws_a_donor_for_each_patch_and_never_the_image_itself():
    images, everything = numbered(40), jnp.ones((40, 2, 2), bool)
    run = jax.jit(lambda keys: multi_fill(keys, images, everything, groups=4))
    found = np.stack([sources(run(draws(40, seed)), 2) for seed in range(12)])
    donors = found.reshape(12, 4, 10, 2, 2)
    np.testing.assert_array_equal(donors // 10, np.broadcast_to(GROUPS // 10, donors.shape))
    shifts = np.bincount(((donors - GROUPS) % 10).reshape(-1), minlength=10) / donors.size
    assert shifts[0] == 0 and np.abs(shifts[1:] - 1 / 9).max() < 0.04
    assert (found[:, :, 0, 0] != found[:, :, 0, 1]).mean() > 0.8  # patches of an image draw by themselves
    with pytest.raises(InputError, match="expected at least 2, found 1"):
        multi_fill(draws(40), images, everything, groups=40)


def test_a_batch_is_one_group_unless_said_otherwise():
    everything = jax.ShapeDtypeStruct((7, 2, 2), bool)
    for fill, key in ((single_fill, jax.random.key(0)), (multi_fill, jax.random.split(jax.random.key(0), 7))):
        assert jax.eval_shape(fill, key, numbered(7), everything).shape == (7, 4, 6, 3)


def test_sizes_that_do_not_fit():
    with pytest.raises(InputError, match="images of 4x6 pixels have no 4x4 patches of whole pixels"):
        refill(numbered(2), jnp.ones((2, 4, 4), bool), jnp.arange(2))
    with pytest.raises(InputError, match="a batch of 5 images is not 2 equal groups"):
        single_fill(jax.random.key(0), numbered(5), jnp.ones((5, 2, 2), bool), groups=2)
