"""CLIP with towers of one matrix each, so that features, logits and losses can be written down in NumPy."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from jrobust.models.clip import CLIP, Sizes
from jrobust.models.clip.similarity import INITIAL_LOGIT_SCALE
from jrobust.models.clip.zero_shot import ZeroShot
from jrobust.training import parallel
from jrobust.training import state as train_states
from jrobust.training.program import step_over

E, SIDE, WORDS = 4, 2, 9
SHAPE = (SIDE, SIDE, 3)
PIXELS = SIDE * SIDE * 3
SCALE = 1 / 0.07  # before training
SIZES = Sizes(E, SIDE, E, 1, SIDE, E, text_layers=1, vocabulary=WORDS, context=3, image_heads=1, text_heads=1)


@dataclasses.dataclass(frozen=True)
class Flat(CLIP):
    """f(x) = flat(x + pixels) A + sum of the prompt's tokens; g(t) = sum of the words' rows of B."""

    def init(self, key):
        image, text = jax.random.split(key)
        dtype = jnp.promote_types(jnp.float32, self.dtype)
        return {
            "image": {"kernel": jax.random.normal(image, (PIXELS, self.sizes.embed_dim), dtype)},
            "text": {"rows": jax.random.normal(text, (WORDS, self.sizes.embed_dim), dtype)},
            "logit_scale": jnp.asarray(INITIAL_LOGIT_SCALE, dtype),
        }

    def image_features(self, params, images, *, prompts=None):
        pixels = None if prompts is None else prompts.image()
        x = images if pixels is None else images + pixels
        features = x.reshape(len(x), -1) @ params["image"]["kernel"]
        return features if prompts is None or prompts.tokens is None else features + prompts.tokens.sum(0)

    def text_features(self, params, tokens):
        return params["text"]["rows"][tokens].sum(1)


def model(classes=3, **fields):
    """The classifier, in float64."""
    return ZeroShot(Flat(SIZES, dtype="float64"), classes, SHAPE, **fields)


def batch(count=8, seed=0, classes=3):
    """Images with black and white pixels among them, as host arrays."""
    rng = np.random.default_rng(seed)
    images = np.clip(rng.uniform(-0.2, 1.2, (count, *SHAPE)), 0, 1)
    index = rng.permutation(50)[:count].astype(np.int32)
    return {"image": images, "label": rng.integers(0, classes, count).astype(np.int32), "index": index}


def unit(v):
    return v / np.linalg.norm(v, axis=-1, keepdims=True)


def log_softmax(z):
    return z - np.log(np.exp(z).sum(-1, keepdims=True))


def values(state):
    """The arrays of a state without their `Replicated`."""
    return {name: jax.tree.map(np.asarray, leaf.value) for name, leaf in state.items()}


def train(method, batches, tx, mode="jit", devices=1, microbatches=1):
    """Take a step of the trainer for every batch; return states on the host, the first included, and the metrics.

    On the way it is seen that all steps are one program, without transfers, and that each takes its state's memory.

    Args:
      method: for whole batches.
      batches: of host arrays.
      tx: the optimizer.
      mode, devices, microbatches: see `parallelize` and `make_train_step`.
    """
    mesh, traces = parallel.make_mesh(devices), []
    pure = step_over(mesh, mode, method, tx, lambda batch, resident, key: batch, microbatches=microbatches)

    def counted(*arguments):
        traces.append(1)
        return pure(*arguments)

    step = parallel.parallelize(counted, mesh, mode)
    state, key = map(step.replicate, (train_states.create(method.init(jax.random.key(0), {}), tx), jax.random.key(1)))
    copied = lambda state: jax.tree.map(jnp.copy, state)  # an array that the host has seen is not donated on CPU
    states, metrics = [copied(state)], []
    for rows in map(step.shard, batches):
        before = state
        with jax.transfer_guard("disallow"):
            state, found = step(state, rows, {}, key)
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves(before))
        states.append(copied(state))
        metrics.append({name: float(number) for name, number in found.items()})
    assert len(traces) == 1
    return jax.device_get(states), metrics
