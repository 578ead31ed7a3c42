"""A method, batches and a config, as small as can be: a convolution, synchronised batch norm, noise of each example."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from jrobust.training.method import Variables

CLASSES = 3


@dataclasses.dataclass(frozen=True)
class ToyMethod:
    """Cross entropy on noisy images. `axis_name` synchronises the batch norm, as a network's does."""

    axis_name: str | None = None
    noise: float = 0.1
    width: int = 4
    dtype: Any = jnp.float32
    blow_up_at: int = -1  # the step whose loss is NaN

    def with_axis(self, axis_name):
        return dataclasses.replace(self, axis_name=axis_name)

    def init(self, key, batch):
        kernel, head = jax.random.split(key)
        channels = batch["image"].shape[-1]
        params = {
            "body": {"kernel": jax.random.normal(kernel, (3, 3, channels, self.width), self.dtype) / 5},
            "norm": {"scale": jnp.ones(self.width, self.dtype), "bias": jnp.zeros(self.width, self.dtype)},
            "head": {"kernel": jax.random.normal(head, (self.width, CLASSES), self.dtype)},
        }
        state = {
            "mean": jnp.zeros(self.width, self.dtype),
            "var": jnp.ones(self.width, self.dtype),
            "seen": jnp.int32(0),
            "key": jax.random.key(7),
        }
        return Variables(params, state)

    def _features(self, params, images):
        dimensions = ("NHWC", "HWIO", "NHWC")
        kernel = params["body"]["kernel"]
        return jax.lax.conv_general_dilated(images, kernel, (1, 1), "SAME", dimension_numbers=dimensions)

    def _head(self, params, features, mean, var):
        normal = (features - mean) / jnp.sqrt(var + 1e-5) * params["norm"]["scale"] + params["norm"]["bias"]
        return jax.nn.relu(normal).mean((1, 2)) @ params["head"]["kernel"]

    def loss(self, params, state, batch, key):
        def noise(index):
            return jax.random.normal(jax.random.fold_in(key, index), batch["image"].shape[1:], self.dtype)

        images = batch["image"].astype(self.dtype) + self.noise * jax.vmap(noise)(batch["index"])
        features = self._features(params, images)
        mean, square = features.mean((0, 1, 2)), (features**2).mean((0, 1, 2))
        if self.axis_name is not None:
            mean, square = jax.lax.pmean((mean, square), self.axis_name)
        var = square - mean**2
        logits = self._head(params, features, mean, var)
        log_probabilities = jax.nn.log_softmax(logits)
        loss = -jnp.take_along_axis(log_probabilities, batch["label"][:, None], axis=1).mean()
        loss = jnp.where(state["seen"] == self.blow_up_at, jnp.nan, loss)
        accuracy = (logits.argmax(-1) == batch["label"]).mean()
        state = {
            "mean": 0.9 * state["mean"] + 0.1 * mean,
            "var": 0.9 * state["var"] + 0.1 * var,
            "seen": state["seen"] + 1,
            "key": state["key"],
        }
        return loss, (state, {"accuracy": accuracy})

    def deployed(self, variables):
        return variables

    def logits(self, variables, images, *, beta=None):
        features = self._features(variables.params, images.astype(self.dtype))
        return self._head(variables.params, features, variables.state["mean"], variables.state["var"])


def data(size=64, side=6, seed=0):
    """Images whose mean colour is their class."""
    rng = np.random.default_rng(seed)
    label = rng.integers(0, CLASSES, size).astype(np.int32)
    image = rng.uniform(0, 0.6, (size, side, side, 3)) + 0.4 * np.eye(3)[label][:, None, None]
    return {"image": (image * 255).astype(np.uint8), "label": label}


class ToyBatches:
    """Shuffled epochs of positions; the position in the stream is one number."""

    def __init__(self, arrays, batch_size, seed=0):
        self.resident, self.batch_size, self.seed = arrays, batch_size, seed
        self.steps_per_epoch = len(arrays["label"]) // batch_size
        self.position = 0

    def __iter__(self):
        return self

    def __next__(self):
        epoch, place = divmod(self.position, self.steps_per_epoch)
        order = np.random.default_rng([self.seed, epoch]).permutation(len(self.resident["label"]))
        self.position += 1
        return {"index": order[place * self.batch_size :][: self.batch_size].astype(np.int32)}

    def get_state(self):
        return {"position": self.position}

    def set_state(self, state):
        self.position = state["position"]


def prepare(batch, resident, key):
    """Gather, and flip half of the images."""
    images = resident["image"][batch["index"]].astype(jnp.float32) / 255

    def flip(image, index):
        return jnp.where(jax.random.bernoulli(jax.random.fold_in(key, index)), image[:, ::-1], image)

    images = jax.vmap(flip)(images, batch["index"])
    return {"image": images, "label": resident["label"][batch["index"]], "index": batch["index"]}


def evaluation_batches(arrays, batch_size=24):
    """Batches padded to one size."""
    size = len(arrays["label"])
    for start in range(0, size, batch_size):
        index = np.arange(start, start + batch_size)
        inside = np.minimum(index, size - 1)
        image = arrays["image"][inside].astype(np.float32) / 255
        yield {"image": image, "label": arrays["label"][inside], "index": index, "valid": index < size}


def config(**train):
    """The sections that the trainer reads."""
    return ml_collections.ConfigDict(
        {
            "seed": 3,
            "data": {"dir": ""},
            "train": {
                "batch_size": 16,
                "steps": 12,
                "examples": 0,
                "epochs": 0.0,
                "microbatches": 1,
                "shard_state": "none",
                "parallelism": "jit",
                "log_every_steps": 5,
                "evaluate_every_epochs": 1.0,
            }
            | train,
            "checkpoint": {"every_epochs": 1.0, "every_steps": 3, "keep_latest": 2, "keep_best": 1},
            "optimizer": {
                "name": "sgd",
                "learning_rate": 0.1,
                "momentum": 0.9,
                "nesterov": True,
                "weight_decay": 1e-3,
                "drop_epochs": (2,),
                "drop_factors": (0.1,),
                "fast_layers": (),
                "fast_factor": 1.0,
            },
            "evaluation": {"batch_size": 24},
        }
    )


def train(workdir, settings, *, method=None, batches=None, mesh=None, **arguments):
    """Call the trainer on the toys."""
    from jrobust.training import loop, parallel

    arrays = data()
    method = method or ToyMethod()
    return loop.train(
        method,
        settings,
        workdir,
        batches=batches or ToyBatches(arrays, settings.train.batch_size, settings.seed),
        prepare=prepare,
        test_batches=functools.partial(evaluation_batches, data(50, seed=1)),
        mesh=mesh or parallel.make_mesh(1),
        **arguments,
    )


def same(left, right):
    """Whether two trees are equal to the bit."""

    def plain(leaf):
        return jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf

    return jax.tree.structure(left) == jax.tree.structure(right) and all(
        np.asarray(plain(a)).tobytes() == np.asarray(plain(b)).tobytes()
        for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True)
    )
