"""Whose examples batch norm sees where a batch is divided among devices."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jrobust.errors import InputError
from jrobust.methods.standard import Standard
from jrobust.models import zoo
from jrobust.training import parallel
from tests.methods import flat_clip

B, DEVICES = 16, 4
RATE = 0.1


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


def network(norm_over):
    section = {"name": "small_cnn", "width": 2, "dtype": "float64", "mean": (0.5,), "std": (0.25,)}
    return dataclasses.replace(zoo.build(section, num_classes=3, input_shape=(4, 4, 1)), norm_over=norm_over)


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, B).astype(np.int32)
    # The devices' images are unlike each other, so that their statistics are, too.
    images = rng.uniform(size=(B, 4, 4, 1)) * np.repeat(np.linspace(0.2, 1, DEVICES), B // DEVICES)[:, None, None, None]
    return {"image": images, "label": labels, "index": np.arange(B, dtype=np.int32)}


def after_a_step(norm_over, batch, mode):
    (_, state), _ = flat_clip.train(Standard(network(norm_over)), [batch], optax.sgd(RATE), mode, DEVICES)
    return state.params, state.state


def expected(batch, parts):
    """Mean gradients and mean running statistics of the parts of a batch, each by itself."""
    method = Standard(network("batch"))
    params, state = method.init(jax.random.key(0), {})
    gradient = jax.jit(jax.grad(method.loss, has_aux=True))
    found = []
    for i in range(parts):
        rows = jax.tree.map(lambda leaf, i=i: jnp.asarray(np.split(leaf, parts)[i]), batch)
        slopes, (stats, _) = gradient(params, state, rows, jax.random.key(1))
        found.append((jax.tree.map(lambda p, g: p - RATE * g, params, slopes), stats))
    return jax.tree.map(lambda *leaves: sum(leaves) / parts, *found)


def apart(one, other):
    return max(np.abs(a - b).max() for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True))


@pytest.mark.parametrize("mode", parallel.MODES)
def test_the_whole_batch_or_the_images_of_the_device(mode, batch):
    of_device, of_batch = expected(batch, DEVICES), expected(batch, 1)
    assert apart(after_a_step("device", batch, mode), of_device) < 1e-10
    assert apart(after_a_step("batch", batch, mode), of_batch) < 1e-10
    assert apart(of_device, of_batch) > 1e-3


def test_another_word():
    with pytest.raises(InputError, match=r"unknown train.norm_over 'devices'.*did you mean 'device'"):
        network("devices")
