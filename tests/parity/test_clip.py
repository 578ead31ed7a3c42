"""Both kinds of CLIP and the bicubic resize against PyTorch, in float64 with the same numbers."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.nn import functional  # noqa: E402

from jrobust.models.bicubic import resize  # noqa: E402
from jrobust.models.clip import CLIP, Prompts, Sizes, similarity  # noqa: E402
from tests.parity.clip_networks import TorchCLIP, our_tree  # noqa: E402

TEXT = {"text_width": 64, "text_layers": 2, "vocabulary": 20, "context": 7}
CASES = {
    "vit": Sizes(8, 16, 128, 2, 8, **TEXT),  # two heads of 64
    "vit_narrow_heads": Sizes(8, 16, 64, 2, 8, **TEXT | {"text_layers": 1}, image_heads=4, text_heads=2),
    "resnet": Sizes(8, 64, 4, (1, 2, 1, 1), None, **TEXT | {"text_layers": 1}),
}


@dataclasses.dataclass
class Pair:
    """A model twice, with the same numbers; images smaller than the tower's and rows of tokens."""

    network: nn.Module
    clip: CLIP
    params: dict
    images: np.ndarray
    tokens: np.ndarray

    def features(self, dtype):
        clip = dataclasses.replace(self.clip, dtype=dtype)
        params, images = jax.tree.map(lambda a: jnp.asarray(a, dtype), (self.params, self.images))
        run = jax.jit(lambda p, x, t: (clip.image_features(p, x), clip.text_features(p, t)))
        return clip, params, images, run(params, images, jnp.asarray(self.tokens))


@pytest.fixture(params=list(CASES), scope="module")
def pair(request):
    s = CASES[request.param]
    torch.manual_seed(0)
    network = TorchCLIP(s).double().eval()
    with torch.no_grad():  # away from their start, so that a swap shows
        for name, value in [*network.named_parameters(), *network.named_buffers()]:
            if name.endswith("running_var"):
                value.uniform_(0.5, 1.5)
            elif value.ndim == 1 and value.is_floating_point():
                value.add_(0.3 * torch.randn_like(value))
    rng = np.random.default_rng(0)
    images = rng.uniform(size=(2, s.image_size // 2, s.image_size // 2 + 3, 3))
    tokens = np.zeros((3, 7), np.int32)
    for row, length in zip(tokens, (2, 5, 7), strict=True):
        row[:length] = [18, *rng.integers(1, 18, length - 2), 19]
    return Pair(network, CLIP(s), our_tree(network, s), images, tokens)


def relative(found, expected):
    found, expected = np.asarray(found), np.asarray(expected)
    assert found.shape == expected.shape
    return np.abs(found - expected).max() / np.abs(expected).max()


def test_features_gradients_and_logits(pair):
    x = torch.from_numpy(pair.images).requires_grad_()
    image = pair.network.encode_image(x, pair.clip.sizes.image_size)
    text = pair.network.encode_text(torch.from_numpy(pair.tokens).long())
    cosines = functional.normalize(image, dim=1) @ functional.normalize(text, dim=1).T
    (gradient,) = torch.autograd.grad(cosines[:, 0].sum(), x)
    image, text, cosines = (t.detach().numpy() for t in (image, text, cosines))
    with jax.enable_x64(True):
        clip, params, images, (ours, our_text) = pair.features("float64")
        assert ours.dtype == jnp.float64
        assert relative(ours, image) < 1e-9 and relative(our_text, text) < 1e-9
        assert relative(similarity(ours, our_text), cosines) < 1e-9
        assert relative(similarity(ours, our_text, params["logit_scale"]), 100 * cosines) < 1e-9
        score = lambda x: similarity(clip.image_features(params, x), our_text)[:, 0].sum()
        assert relative(jax.jit(jax.grad(score))(images), gradient) < 1e-9


def test_features_in_float32(pair):
    with torch.no_grad():
        image = pair.network.encode_image(torch.from_numpy(pair.images), pair.clip.sizes.image_size)
        text = pair.network.encode_text(torch.from_numpy(pair.tokens).long())
    _, _, _, (ours, our_text) = pair.features("float32")
    assert ours.dtype == our_text.dtype == jnp.float32
    assert relative(ours, image) < 1e-4 and relative(our_text, text) < 1e-4


@pytest.mark.parametrize("pair", ["vit"], indirect=True)
def test_visual_prompts(pair):
    rng = np.random.default_rng(1)
    prompts = Prompts(rng.normal(size=(16, 16, 3)), rng.normal(size=(5, pair.clip.sizes.image_width)))
    with torch.no_grad():
        x, theirs = torch.from_numpy(pair.images), Prompts(*map(torch.from_numpy, prompts))
        expected = pair.network.encode_image(x, 16, theirs).numpy()
    with jax.enable_x64(True):
        clip = dataclasses.replace(pair.clip, dtype="float64")
        params, images, prompts = jax.tree.map(jnp.asarray, (pair.params, pair.images, prompts))
        assert relative(jax.jit(clip.image_features)(params, images, prompts=prompts), expected) < 1e-9


def test_exact_gelu():
    s = CASES["vit_narrow_heads"]
    network = TorchCLIP(s, nn.GELU).double().eval()
    images = np.random.default_rng(2).uniform(size=(1, 16, 16, 3))
    with torch.no_grad():
        expected = network.encode_image(torch.from_numpy(images), 16).numpy()
    with jax.enable_x64(True):
        clip = CLIP(s, dtype="float64", activation="gelu")
        params = jax.tree.map(jnp.asarray, our_tree(network, s))
        assert relative(jax.jit(clip.image_features)(params, jnp.asarray(images)), expected) < 1e-9


@pytest.mark.parametrize(("height", "width", "size"), [(32, 32, 224), (5, 7, 16), (96, 64, 40), (16, 16, 16)])
@pytest.mark.parametrize(("form", "antialias"), [("bicubic", False), ("bicubic_antialias", True)])
def test_bicubic(height, width, size, form, antialias):
    images = np.random.default_rng(0).uniform(size=(1, height, width, 3))
    x = torch.from_numpy(images).permute(0, 3, 1, 2)
    expected = functional.interpolate(x, (size, size), mode="bicubic", align_corners=False, antialias=antialias)
    expected = expected.permute(0, 2, 3, 1).numpy()
    with jax.enable_x64(True):
        np.testing.assert_allclose(resize(jnp.asarray(images), size, form), expected, atol=1e-9)
    found = resize(jnp.asarray(images, jnp.float32), size, form)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, expected, atol=1e-5)
