"""Toy subjects and sources whose numbers are known in closed form."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jrobust.data.source import from_arrays
from jrobust.evaluation import Subject


def images(pixels, labels, **fields):
    return from_arrays(pixels, labels, name="toy", split="test", **fields)


def threshold_logits(weights, images, *, beta=None):
    """Two classes, z = (-s, s) with s = sum of pixels - bias: a linear classifier whose margin is in pixel units."""
    score = images.reshape(images.shape[0], -1).sum(1) - weights["bias"]
    return jnp.stack([-score, score], axis=1) * weights["scale"]


def network_logits(weights, images, *, beta=None):
    """A small smooth network of three classes."""
    activation = jax.nn.relu if beta is None else (lambda t: jax.nn.softplus(beta * t) / beta)
    hidden = activation((images - 0.5).reshape(images.shape[0], -1) @ weights["first"] + weights["bias"])
    return hidden @ weights["second"]


@pytest.fixture
def linear():
    """Pixels are (m, ..., m): the image is right at Linf radius r iff its mean is further than r from 0.5."""
    return Subject(
        "linear", ["dark", "bright"], threshold_logits, {"bias": jnp.float32(2.0), "scale": jnp.float32(1.0)}
    )


@pytest.fixture
def greys():
    """Eleven images of 2 x 2 x 1 pixels, about 0.5 + d; class 1 for d > 0. One of them (d = -0.2) is mislabelled."""
    distances = np.array([-0.31, -0.21, -0.11, -0.06, -0.01, 0.01, 0.06, 0.11, 0.21, 0.31, -0.2])
    labels = (distances > 0).astype(int)
    labels[10] = 1
    pixels = np.rint((0.5 + distances) * 255).astype(np.uint8)
    return images(np.tile(pixels[:, None, None, None], (1, 2, 2, 1)), labels)


@pytest.fixture
def network():
    keys = jax.random.split(jax.random.key(3), 3)
    weights = {
        "first": jax.random.normal(keys[0], (6 * 6 * 3, 16)) / 4,
        "bias": jax.random.normal(keys[1], (16,)) / 4,
        "second": jax.random.normal(keys[2], (16, 3)),
    }
    return Subject("network", ["a", "b", "c"], network_logits, weights)


@pytest.fixture
def photos(network):
    """Twenty-two uint8 images of 6 x 6 x 3, labelled by the network itself except for every fifth."""
    pixels = np.random.default_rng(0).integers(0, 256, (22, 6, 6, 3)).astype(np.uint8)
    labels = np.array(network.logits(network.variables, pixels.astype(np.float32) / 255).argmax(1))
    labels[::5] = (labels[::5] + 1) % 3
    return images(pixels, labels, class_names=network.class_names)


@pytest.fixture
def make_images():
    return images
