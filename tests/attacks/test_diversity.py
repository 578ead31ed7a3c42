"""Input diversity: sizes and places, the matrices against plain resizing, and draws of single images."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jrobust import keys
from jrobust.attacks import Diversity
from jrobust.errors import InputError

SIDES = {"torchattacks": (28, 32, 32), "original": (32, 35, 35), "transferattack": (32, 35, 35)}


@pytest.mark.parametrize("variant", SIDES)
def test_sizes(variant):
    assert Diversity(variant).sizes(32) == SIDES[variant]
    assert Diversity("original").sizes(299) == (299, 330, 330)
    assert Diversity("torchattacks").sizes(224) == (201, 224, 224)
    assert Diversity("transferattack").sizes(224) == (224, 246, 246)


def axis(variant, image, size, place):
    """The image's rows resized, put among zeros and brought back: by indexing, and nothing of the library's."""
    side, canvas = len(image), SIDES[variant][2]

    def resize(rows, length):
        if variant == "original":
            return rows[np.arange(length) * len(rows) // length]
        at = np.clip((np.arange(length) + 0.5) * len(rows) / length - 0.5, 0, len(rows) - 1)
        low = np.floor(at).astype(int)
        high = np.minimum(low + 1, len(rows) - 1)
        share = (at - low)[:, None]
        return (1 - share) * rows[low] + share * rows[high]

    padded = np.zeros((canvas, image.shape[1]))
    padded[place : place + size] = resize(image, size)
    return padded if canvas == side else resize(padded, side)


@pytest.mark.parametrize("variant", SIDES)
def test_matrices_resize_and_shift(variant):
    least, end, canvas = SIDES[variant]
    pairs = [(size, place) for size in range(least, end) for place in range(canvas - size)]
    assert len(pairs) == {"torchattacks": 10}.get(variant, 6)
    image = np.random.default_rng(0).uniform(size=(32, 5))
    with jax.enable_x64(True):
        make = jax.jit(jax.vmap(lambda size, place: Diversity(variant).matrix(32, size, place, jnp.float64)))
        matrices = np.asarray(make(*jnp.array(pairs, jnp.int32).T))
    for (size, place), matrix in zip(pairs, matrices, strict=True):
        np.testing.assert_allclose(matrix @ image, axis(variant, image, size, place), rtol=0, atol=1e-12)


@functools.partial(jax.jit, static_argnums=2)
def transform(images, own, diversity):
    return diversity(images, own)


def test_every_image_draws_for_itself():
    images = jax.random.uniform(jax.random.key(0), (200, 32, 32, 1), minval=0.5)
    own = keys.per_example(jax.random.key(1), jnp.arange(200))
    half, always = transform(images, own, Diversity()), transform(images, own, Diversity(probability=1.0))
    same = np.asarray((half == images).all((1, 2, 3)))
    assert 70 < same.sum() < 130
    assert not (always == images).all((1, 2, 3)).any()
    np.testing.assert_allclose(always[~same], half[~same], atol=1e-6)
    chosen = jnp.array([7, 3])
    np.testing.assert_allclose(transform(images[chosen], own[chosen], Diversity()), half[chosen], atol=1e-6)

    # Sizes are drawn together, places independently, and all of them are met.
    ones = np.asarray(always)[..., 0] > 0.1
    rows, columns = ones.any(2), ones.any(1)
    sizes, tops, lefts = rows.sum(1), rows.argmax(1), columns.argmax(1)
    np.testing.assert_array_equal(sizes, columns.sum(1))
    assert set(sizes.tolist()) == {28, 29, 30, 31}
    smallest = sizes == 28
    assert set(tops[smallest]) == set(lefts[smallest]) == {0, 1, 2, 3}
    assert (tops != lefts)[smallest].mean() > 0.5


def test_probability_zero_changes_nothing():
    images, own = jnp.ones((3, 32, 32, 1)), jax.random.split(jax.random.key(0), 3)
    np.testing.assert_array_equal(transform(images, own, Diversity("original", 0.0)), images)


def test_refusals():
    with pytest.raises(InputError, match=r"unknown variant .*'torchattack'.*did you mean 'torchattacks'"):
        Diversity("torchattack")
    with pytest.raises(InputError, match=r"probability=1\.5"):
        Diversity(probability=1.5)
    with pytest.raises(InputError, match="images of side 8: too small for the input diversity of original"):
        Diversity("original")(jnp.zeros((1, 8, 8, 1)), jax.random.key(0)[None])
