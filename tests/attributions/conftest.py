"""A smooth two-layer net and double precision."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest


class Net(NamedTuple):
    """logits = W2 softplus_beta(W1 flat(x) + b1) + b2."""

    w1: jax.Array
    b1: jax.Array
    w2: jax.Array
    b2: jax.Array

    def logits(self, images, beta=5.0):
        hidden = images.reshape(images.shape[0], -1) @ self.w1 + self.b1
        return jax.nn.softplus(beta * hidden) / beta @ self.w2 + self.b2


def make_net(seed, inputs, hidden=16, classes=3):
    rng = np.random.default_rng(seed)
    scale = 2 / np.sqrt(inputs)
    return Net(
        jnp.asarray(rng.normal(size=(inputs, hidden)) * scale),
        jnp.asarray(rng.normal(size=hidden) * 0.3),
        jnp.asarray(rng.normal(size=(hidden, classes))),
        jnp.asarray(rng.normal(size=classes) * 0.1),
    )


@pytest.fixture
def net_of():
    return make_net


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield
