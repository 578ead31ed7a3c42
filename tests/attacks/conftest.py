"""A small network, a batch of images and its maps, for the attacks on attributions."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jrobust.attributions import integrated

POINTS = 4


class Net(NamedTuple):
    w1: jax.Array
    b1: jax.Array
    w2: jax.Array

    def logits(self, images, beta=None):
        hidden = images.reshape(images.shape[0], -1) @ self.w1 + self.b1
        return (jax.nn.relu(hidden) if beta is None else jax.nn.softplus(beta * hidden) / beta) @ self.w2


class Problem(NamedTuple):
    net: Net
    images: jax.Array
    labels: jax.Array
    points: int = POINTS

    @staticmethod
    def maps_of(net, labels, detach_factor):
        """The judge, and the differentiable direction, as jitted functions of images."""
        judge = integrated.ig_logit(net.logits, labels, num_points=POINTS, unroll=False)
        direction = integrated.ig_logit(
            lambda x: net.logits(x, 20.0),
            labels,
            num_points=POINTS,
            chunk=2,
            detach_factor=detach_factor,
            unroll=False,
        )
        return jax.jit(judge), jax.jit(direction)


@pytest.fixture(scope="session")
def problem():
    rng = np.random.default_rng(0)
    net = Net(
        *(
            jnp.asarray(v, jnp.float32)
            for v in (rng.normal(size=(50, 24)) / 3, rng.normal(size=24), rng.normal(size=(24, 3)))
        )
    )
    images = jnp.asarray(rng.uniform(size=(6, 5, 5, 2)), jnp.float32)
    return Problem(net, images, jnp.argmax(net.logits(images), -1))
