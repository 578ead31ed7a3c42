"""Real methods, a network with batch norm and dropout, augmentation: the modes take the same steps."""

import jax
import ml_collections
import numpy as np
import optax
import pytest

from configs import art
from jrobust import data, methods
from jrobust.models import zoo
from jrobust.training import parallel
from jrobust.training import state as train_states
from jrobust.training.step import make_train_step

NETWORK = {"name": "small_cnn", "width": 4, "dropout": 0.2, "dtype": "float64"}
SMALL = {"eps": "8/255", "step_size": "4/255", "num_steps": 1}
STEPS = 2


def run(variant, mode, devices):
    """Take some steps in float64; return the parameters, the batch statistics and the last metrics."""
    classifier = zoo.build(NETWORK, num_classes=3, input_shape=(8, 8, 3), mean=(0.5,) * 3, std=(0.25,) * 3)
    classifier = classifier.with_axis(parallel.axis_name(mode))
    section = art.method(variant, pgd=SMALL, art=SMALL | {"mask_size": 60})
    method = methods.build(ml_collections.ConfigDict(section), classifier)
    rng = np.random.default_rng(0)
    arrays = {
        "image": rng.integers(0, 256, (16, 8, 8, 3)).astype(np.uint8),
        "label": rng.integers(0, 3, 16).astype(np.int32),
    }
    tx = optax.sgd(0.1, momentum=0.9)
    prepare = data.make_prepare({"flip": True, "jitter": 0.2})
    step = parallel.parallelize(
        make_train_step(method, tx, prepare, parallel.axis_name(mode)), parallel.make_mesh(devices), mode
    )
    variables = jax.tree.map(lambda leaf: leaf.astype("float64"), method.init(jax.random.key(0), {}))
    state = step.replicate(train_states.create(variables, tx))
    resident, key = step.replicate(arrays), step.replicate(jax.random.key(1))
    for number in range(STEPS):
        state, metrics = step(state, step.shard({"index": np.arange(8, dtype=np.int32) + 4 * number}), resident, key)
    return jax.device_get((state.params, state.state, metrics))


@pytest.mark.parametrize("variant", ["pgd", "art"])
def test_pmap_on_two_devices_equals_jit_on_one(variant):
    with jax.enable_x64(True):
        one, two = run(variant, "jit", 1), run(variant, "pmap", 2)
        for left, right in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
            # Batch statistics, metrics and images are float32 by policy; a wrong mean is off by 1e-2.
            np.testing.assert_allclose(right, left, rtol=2e-5, atol=2e-5)
