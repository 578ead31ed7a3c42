"""LfF through the trainer: the running losses are the same bits on any devices and after any interruption.

The network computes in float64 and the table is float32, so that the order of a sum over devices, which moves the last
bits of a loss, does not move the table's.
"""

import functools
import io
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jrobust import methods
from jrobust.models import zoo
from jrobust.training import checkpoint, loop, parallel
from jrobust.training.progress import Progress
from tests.training import toy

N, BATCH, STEPS = 64, 16, 10  # two epochs and a half
QUIET = functools.partial(Progress, stream=io.StringIO())


@pytest.fixture(autouse=True, scope="module")
def x64():
    """For all threads, unlike `jax.enable_x64`: Orbax reads in its own."""
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


class Batches(toy.ToyBatches):
    """Those of the toys; sends this process a signal as a batch is asked for."""

    def __init__(self, interrupt_at=None):
        super().__init__(toy.data(N), BATCH, 3)
        self.interrupt_at = interrupt_at

    def __next__(self):
        if self.position == self.interrupt_at:
            os.kill(os.getpid(), signal.SIGTERM)
        return super().__next__()


def prepare(batch, resident, key):
    batch = toy.prepare(batch, resident, key)
    return batch | {"image": batch["image"].astype(jnp.float64)}


def train(workdir, mode="jit", devices=1, *, steps=STEPS, interrupt_at=None):
    """Train or go on; return the state on the host."""
    model = {"name": "small_cnn", "width": 2, "dtype": "float64"}
    classifier = zoo.build(model, num_classes=toy.CLASSES, input_shape=(6, 6, 3), mean=[0.5] * 3, std=[0.25] * 3)
    method = methods.build({"name": "lff"}, classifier, num_examples=N)
    settings = toy.config(parallelism=mode, steps=steps)
    settings.optimizer.update({"name": "adam", "betas": (0.9, 0.999), "epsilon": 1e-8, "learning_rate": 1e-2})
    arguments = {"batches": Batches(interrupt_at), "prepare": prepare, "mesh": parallel.make_mesh(devices)}
    summary = loop.train(method, settings, workdir, progress=QUIET, **arguments)
    return jax.device_get(summary.train_state)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The end of the run on one device that nothing interrupted."""
    state = train(tmp_path_factory.mktemp("whole"))
    table = state.state["losses"].value
    assert (table.label == toy.data(N)["label"]).all() and table.debiased.dtype == np.float32
    assert len({*table.biased.tolist(), *table.debiased.tolist()}) == 2 * N
    return state


@pytest.mark.parametrize("mode", parallel.MODES)
def test_eight_devices_keep_the_table_of_one(whole, tmp_path, mode):
    """And everything else up to the rounding of float64: gradients, moments, statistics."""
    state = train(tmp_path, mode, 8)
    assert toy.same(state.state["losses"], whole.state["losses"])
    for left, right in zip(jax.tree.leaves(state), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-6, atol=1e-6)


def test_an_interrupted_run_is_the_same_run(whole, tmp_path):
    """Stopped inside an epoch, between visits: every leaf has the same bits, the table and the moments among them."""
    assert train(tmp_path, interrupt_at=5).step == 6
    assert toy.same(train(tmp_path), whole)
    variables, _ = checkpoint.restore_variables(tmp_path)
    np.testing.assert_array_equal(variables.state["losses"]["value"]["biased"], whole.state["losses"].value.biased)
