"""BiasAdv's attack on networks of flat weights, in float64."""

import functools
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from jrobust.attacks import cross_entropy
from jrobust.methods import biasadv
from jrobust.methods.biasadv import BiasAdv
from jrobust.methods.erm import ERM
from tests.methods.networks import Toy, linear

SHAPE = (2, 2, 3)  # 12 pixels
B = 6
LABELS = np.arange(B) % 2
SIGNS = 2 * LABELS[:, None] - 1  # y of the margin: +1 for class 1


def images_(low=0.45, high=0.55, seed=0):
    return jnp.asarray(np.random.default_rng(seed).uniform(low, high, (B, *SHAPE)))


def binary(direction):
    """Weights of two classes whose difference of logits is direction . x: margin m = y (w . x)."""
    return jnp.stack([jnp.zeros(12), jnp.asarray(direction, float)])


def direction(seed, only=slice(None)):
    """Twelve weights, those outside `only` zero and none of the others small."""
    rng = np.random.default_rng(seed)
    w = rng.choice([-1, 1], 12) * rng.uniform(0.2, 1.5, 12)
    return np.where(np.isin(np.arange(12), np.arange(12)[only]), w, 0.0)


# Numbers that need no compilation of their own.
TRACED = ("debiased_weight", "eps", "step_size")


def attack(
    phi, theta, images, *, labels=LABELS, index=None, key=None, forward=linear, std=1.0, loss=cross_entropy, **fields
):
    """Return what BiasAdv makes of the images with phi and theta of these weights."""
    fields = {"debiased_weight": 0.0, "eps": 0.1, "num_steps": 4} | fields
    traced = {name: fields.pop(name) for name in TRACED if fields.get(name) is not None}
    key = jax.random.key(0) if key is None else key
    index = jnp.arange(len(images)) if index is None else index
    return _attack(phi, theta, images, labels, index, key, traced, (forward, std, loss), tuple(fields.items()))


@functools.partial(jax.jit, static_argnums=(7, 8))
def _attack(phi, theta, images, labels, index, key, traced, parts, fields):
    forward, std, loss = parts
    network = Toy(forward, mean=0.5, std=std)
    method = BiasAdv(network, ERM(network), adv_weight=1.0, auxiliary_norm=False, **traced, **dict(fields))
    params, state = {"debiased": theta, "biased": phi}, {"debiased": 0.0, "biased": 0.0}
    with mock.patch.object(biasadv, "cross_entropy", loss):
        return method.perturb(params, state, images, labels, index, key)


def flat(images):
    return np.asarray(images).reshape(len(images), -1)
