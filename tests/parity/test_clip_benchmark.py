"""The CLIP that the benchmarks write in PyTorch is ours."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from benchmarks import torch_clip  # noqa: E402
from jrobust.models.clip import CLIP  # noqa: E402
from jrobust.models.clip.architectures import Sizes  # noqa: E402
from jrobust.models.clip.similarity import unit  # noqa: E402

SIZES = Sizes(6, 16, 24, 2, 8, 16, text_layers=2, vocabulary=11, context=5, image_heads=2, text_heads=2)
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)


@pytest.fixture
def both():
    clip = CLIP(SIZES, mean=MEAN, std=STD)
    params = clip.init(jax.random.key(0))
    draws = jax.tree.map(lambda leaf: leaf + 0.1 * np.random.default_rng(1).standard_normal(leaf.shape), params)
    params = jax.tree.map(jnp.float32, draws)
    return clip, params, torch_clip.port(jax.device_get(params), SIZES, MEAN, STD)


def test_cosines(both):
    clip, params, theirs = both
    rng = np.random.default_rng(2)
    images, tokens = rng.random((3, 16, 16, 3), np.float32), rng.integers(0, 10, (4, 5))
    tokens[:, 3] = 10
    ours = unit(clip.image_features(params, images)) @ unit(clip.text_features(params, jnp.asarray(tokens))).T
    found = theirs(torch.tensor(images.transpose(0, 3, 1, 2).copy()), torch.tensor(tokens)).detach().numpy()
    np.testing.assert_allclose(found, ours, rtol=0, atol=1e-5)
