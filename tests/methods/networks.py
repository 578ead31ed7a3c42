"""Small stand-ins for a Classifier whose input gradients are known or cheap, in any float type."""

import dataclasses

import jax
import jax.numpy as jnp

from jrobust.models.network import Prediction


@dataclasses.dataclass(frozen=True)
class Toy:
    """The interface of a Classifier around `forward(params, flat z, beta) -> logits`; counts its forward passes."""

    forward: object
    mean: float = 0.0
    std: float = 1.0
    num_classes: int = 2
    axis_name: str | None = None

    module = property(lambda self: self)

    @property
    def sigma(self):
        return jnp.asarray(self.std)

    def normalize(self, images):
        return (images - self.mean) / self.sigma

    def apply(self, params, batch_stats, images, *, train=False, beta=None, keys=None, **_):
        z = self.normalize(images).reshape(images.shape[0], -1)
        return Prediction(self.forward(params, z, beta), batch_stats + train, {})


def linear(weights, z, beta):
    """g^i = W_i."""
    return z @ weights.T


def mlp(params, z, beta):
    """Two layers; path R for beta None."""
    w1, b1, w2, b2 = params
    hidden = z @ w1 + b1
    hidden = jax.nn.relu(hidden) if beta is None else jax.nn.softplus(beta * hidden) / beta
    return hidden @ w2 + b2


def relu_mlp(params, z, beta):
    """Two layers of ReLUs on both paths."""
    return mlp(params, z, None)


def mlp_params(key, sizes=(12, 16, 4), dtype=jnp.float64):
    k1, k2, k3, k4 = jax.random.split(key, 4)
    a, b, c = sizes
    return (
        jax.random.normal(k1, (a, b), dtype) / a**0.5,
        0.1 * jax.random.normal(k2, (b,), dtype),
        jax.random.normal(k3, (b, c), dtype) / b**0.5,
        0.1 * jax.random.normal(k4, (c,), dtype),
    )


@dataclasses.dataclass(frozen=True)
class BatchNormed:
    """The interface of a Classifier around linear, batch norm, ReLU, linear: compiles in no time, in any float type."""

    classes: int = 3
    input_shape: tuple = (3, 3, 2)
    width: int = 6
    std: tuple = (0.5, 0.25)
    axis_name: str | None = None

    def with_axis(self, axis_name):
        return dataclasses.replace(self, axis_name=axis_name)

    module = property(lambda self: self)
    num_classes = property(lambda self: self.classes)
    sigma = property(lambda self: jnp.asarray(self.std))

    def init(self, key):
        body, head = jax.random.split(key)
        size = self.input_shape[0] * self.input_shape[1] * self.input_shape[2]
        dtype = jnp.asarray(0.0).dtype
        params = {
            "fc": {"kernel": jax.random.normal(body, (size, self.width), dtype)},
            "bn": {"scale": jnp.ones(self.width, dtype), "bias": jnp.zeros(self.width, dtype)},
            "head": {"kernel": jax.random.normal(head, (self.width, self.classes), dtype)},
        }
        return params, {"bn": {"mean": jnp.zeros(self.width, dtype), "var": jnp.ones(self.width, dtype)}}

    def apply(self, params, batch_stats, images, *, train=False, beta=None, keys=None, mask_mode=None):
        hidden = ((images - 0.5) / self.sigma).reshape(len(images), -1) @ params["fc"]["kernel"]
        stats = batch_stats["bn"]
        if train:
            moments = hidden.mean(0), (hidden**2).mean(0)
            mean, square = moments if self.axis_name is None else jax.lax.pmean(moments, self.axis_name)
            now = {"mean": mean, "var": square - mean**2}
            batch_stats = {"bn": {name: 0.9 * stats[name] + 0.1 * now[name] for name in stats}}
            stats = now
        norm = params["bn"]
        hidden = (hidden - stats["mean"]) / jnp.sqrt(stats["var"] + 1e-5) * norm["scale"] + norm["bias"]
        return Prediction(jax.nn.relu(hidden) @ params["head"]["kernel"], batch_stats, {})
