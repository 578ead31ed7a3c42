"""Models with distinct numbers in every leaf."""

import jax
import numpy as np
import pytest

from jrobust.models import zoo

DIGITS = {"name": "small_cnn", "width": 4, "dtype": "float32", "weights": "", "mean": (0.3,), "std": (0.4,)}


def _distinct(shapes):
    """Fill a tree of shapes with numbers of which no two leaves share any, so that a swap shows."""
    generator = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: generator.uniform(0.1, 1, leaf.shape).astype(leaf.dtype), shapes)


@pytest.fixture(scope="session")
def digits():
    """A small CNN for digits: config section, classifier, params, batch_stats."""
    classifier = zoo.build(DIGITS, num_classes=10, input_shape=(8, 8, 1))
    return DIGITS, classifier, *_distinct(jax.eval_shape(classifier.init, jax.random.key(0)))


@pytest.fixture(scope="session")
def variables():
    """A function that makes a network by name: classifier, params, batch_stats."""

    def make(name, num_classes=10, size=32, **fields):
        shape = (size, size, 3)
        section = {"name": name, "mean": (0.5,) * 3, "std": (0.2,) * 3, **fields}
        classifier = zoo.build(section, num_classes=num_classes, input_shape=shape)
        return classifier, *_distinct(jax.eval_shape(classifier.init, jax.random.key(0)))

    return make
