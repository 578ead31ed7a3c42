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
    masks = jax.jit(lambda k: random_mask(k, 7, 0.3))(draws(200))
    assert masks.shape == (200, 7, 7) and masks.dtype == bool
    assert float(masks.mean()) == pytest.approx(0.3, abs=0.02)  # five standard deviations
    assert np.abs(masks.mean(0) - 0.3).max() < 0.17 and 2.6 < masks.sum((1, 2)).std() < 3.9  # sqrt(49 0.3 0.7) = 3.2
    np.testing.assert_array_equal(random_mask(draws(200)[3:5], 7, 0.3), masks[3:5])
    assert random_mask(draws(2), 7, 1.0).all() and not random_mask(draws(2), 7, 0.0).any()


def test_random_places():
    places = jax.jit(lambda k: random_places(k, 49, 0.75))(draws(300))
    assert places.shape == (300, 12) and places.dtype == jnp.int32
    assert all(len(set(row)) == 12 for row in places.tolist())
    counts = np.bincount(places.reshape(-1), minlength=49)
    assert len(counts) == 49 and np.abs(counts / 300 - 12 / 49).max() < 0.12
    assert random_places(draws(2), 49, 1.0).shape == (2, 0) and random_places(draws(2), 9, 0.0).shape == (2, 9)
    with pytest.raises(InputError, match=r"masking rate is 75: expected a number in \[0, 1\]"):
        random_places(draws(1), 49, 75)


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


def test_single_fill_is_one_permutation():
    images, everything = numbered(40), jnp.ones((40, 2, 2), bool)
    found = sources(jax.jit(single_fill)(jax.random.key(1), images, everything), 2)
    np.testing.assert_array_equal(found, np.broadcast_to(found[:, :1, :1], found.shape))
    assert sorted(found[:, 0, 0]) == list(range(40)) and (found[:, 0, 0] != np.arange(40)).sum() > 30
    other = sources(single_fill(jax.random.key(2), images, everything), 2)
    assert (other[:, 0, 0] != found[:, 0, 0]).sum() > 30
    np.testing.assert_array_equal(single_fill(jax.random.key(1), images[:1], everything[:1]), images[:1])


def test_multi_fill_draws_a_donor_for_each_patch_and_never_the_image_itself():
    images, everything = numbered(8), jnp.ones((8, 2, 2), bool)
    run = jax.jit(multi_fill)
    found = np.stack([sources(run(draws(8, seed), images, everything), 2) for seed in range(60)])
    own = np.arange(8)[:, None, None]
    assert (found != own).all()
    shifts = np.bincount(((found - own) % 8).reshape(-1), minlength=8) / found.size
    assert shifts[0] == 0 and np.abs(shifts[1:] - 1 / 7).max() < 0.04
    assert (found[:, :, 0, 0] != found[:, :, 0, 1]).mean() > 0.8  # patches of an image draw by themselves
    with pytest.raises(InputError, match="expected at least 2, found 1"):
        multi_fill(draws(1), images[:1], everything[:1])


@pytest.mark.parametrize("fill", ["single", "multi"])
def test_donors_come_from_the_group(fill):
    images, everything = numbered(20), jnp.ones((20, 2, 2), bool)
    key = jax.random.key(0) if fill == "single" else draws(20)
    found = sources({"single": single_fill, "multi": multi_fill}[fill](key, images, everything, groups=4), 2)
    np.testing.assert_array_equal(found // 5, np.arange(20)[:, None, None] // 5 * np.ones((1, 2, 2), int))
    if fill == "multi":
        assert (found != np.arange(20)[:, None, None]).all()
    else:
        assert len({tuple(found[5 * g : 5 * g + 5, 0, 0] % 5) for g in range(4)}) > 1  # each group its own permutation


def test_sizes_that_do_not_fit():
    with pytest.raises(InputError, match="images of 4x6 pixels have no 4x4 patches of whole pixels"):
        refill(numbered(2), jnp.ones((2, 4, 4), bool), jnp.arange(2))
    with pytest.raises(InputError, match="a batch of 5 images is not 2 equal groups"):
        single_fill(jax.random.key(0), numbered(5), jnp.ones((5, 2, 2), bool), groups=2)
