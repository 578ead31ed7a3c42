"""Small stand-ins for a Classifier whose input gradients are known or cheap, in any float type."""

import dataclasses

import jax
import jax.numpy as jnp

from jrobust.models.classifier import Prediction


@dataclasses.dataclass(frozen=True)
class Toy:
    """The interface of a Classifier around `forward(params, flat z, beta) -> logits`; counts its forward passes."""

    forward: object
    mean: float = 0.0
    std: float = 1.0

    @property
    def sigma(self):
        return jnp.asarray(self.std)

    def normalize(self, images):
        return (images - self.mean) / self.std

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
