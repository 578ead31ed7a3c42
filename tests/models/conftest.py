"""One small network, made once."""

import jax
import pytest

from jrobust.models import zoo

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)


def make(name, *, num_classes=10, size=32, **fields):
    return zoo.build({"name": name, **fields}, num_classes=num_classes, input_shape=(size, size, 3), mean=MEAN, std=STD)


@pytest.fixture(scope="session")
def build():
    return make


@pytest.fixture(scope="session")
def wide():
    """WRN-10-1 with dropout for 16x16 images, its variables, and eight images."""
    classifier = make("wide_resnet", depth=10, width=1, dropout=0.3, size=16)
    images = jax.random.uniform(jax.random.key(7), (8, 16, 16, 3))
    return classifier, *classifier.init(jax.random.key(0, impl="rbg")), images  # rbg: compiles four times faster


@pytest.fixture(scope="session")
def keys():
    return jax.random.split(jax.random.key(3), 8)
