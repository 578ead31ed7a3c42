"""Small CLIPs with distinct numbers in every leaf."""

from __future__ import annotations

import jax
import numpy as np

from jrobust.models.clip import CLIP, Sizes

VIT = CLIP(Sizes(6, 16, 128, 2, 8, 192, text_layers=3, vocabulary=11, context=5))
RESNET = CLIP(Sizes(6, 64, 4, (1, 2, 1, 1), None, 64, text_layers=1, vocabulary=11, context=5))


def random(clip):
    generator = np.random.default_rng(0)
    shapes = jax.eval_shape(clip.init, jax.random.key(0))
    return jax.tree.map(lambda leaf: generator.uniform(0.1, 1, leaf.shape).astype(leaf.dtype), shapes)


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)
    assert jax.tree.structure(a) == jax.tree.structure(b)
