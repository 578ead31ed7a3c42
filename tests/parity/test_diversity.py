"""The matrices of the input diversity against PyTorch's interpolation and padding, as the public packages use them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jrobust.attacks import Diversity

torch = pytest.importorskip("torch")
F = torch.nn.functional
MODES = {
    "torchattacks": {"mode": "bilinear", "align_corners": False},
    "transferattack": {"mode": "bilinear", "align_corners": False},
    "original": {"mode": "nearest"},
}


@pytest.mark.parametrize("variant", MODES)
def test_resize_pad_and_resize_back(variant):
    diversity = Diversity(variant)
    least, end, canvas = diversity.sizes(32)
    image = np.random.default_rng(0).uniform(size=(32, 32, 3))
    with jax.enable_x64(True):
        make = jax.jit(lambda size, place: diversity.matrix(32, size, place, jnp.float64))
        for size in range(least, end):
            for top in range(canvas - size):
                left = canvas - size - 1 - top
                height, width = (np.asarray(make(jnp.int32(size), jnp.int32(place))) for place in (top, left))
                x = torch.tensor(image.transpose(2, 0, 1)[None].copy())
                x = F.interpolate(x, size=(size, size), **MODES[variant])
                rest = canvas - size
                x = F.pad(x, (left, rest - left, top, rest - top))
                if canvas != 32:
                    x = F.interpolate(x, size=(32, 32), **MODES[variant])
                ours = np.einsum("ih,hwc,jw->ijc", height, image, width)
                np.testing.assert_allclose(ours, x[0].numpy().transpose(1, 2, 0), rtol=0, atol=1e-12)
