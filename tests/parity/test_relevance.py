"""The relevance of patches against PyTorch: probabilities kept, their gradients, the recursion over whole matrices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch.nn import functional  # noqa: E402

from jrobust.attributions.gradients import logit_score  # noqa: E402
from jrobust.attributions.relevance import attention_relevance  # noqa: E402
from jrobust.models.clip import CLIP, Sizes  # noqa: E402
from tests.parity.clip_networks import TorchCLIP, our_tree  # noqa: E402

SIZES = Sizes(8, 16, 64, 3, 4, 64, 1, 20, 6, image_heads=4)
LABELS = [2, 0, 4]


def attend(attention, x):
    """Multi-head self-attention over tokens [T, B, D] written out; the probabilities [B, heads, T, T] too."""
    tokens, batch, width = x.shape
    heads = attention.num_heads
    joint = functional.linear(x, attention.in_proj_weight, attention.in_proj_bias)
    q, k, v = (part.reshape(tokens, batch, heads, -1).permute(1, 2, 0, 3) for part in joint.chunk(3, dim=-1))
    probabilities = (q @ k.transpose(-1, -2) / (width // heads) ** 0.5).softmax(-1)
    mixed = (probabilities @ v).permute(2, 0, 1, 3).reshape(tokens, batch, width)
    return attention.out_proj(mixed), probabilities


def relevance(visual, images, weights, bias):
    """Features and the map of every image, through the matrix recursion."""
    x = visual.conv1(images).flatten(2).permute(2, 0, 1)
    x = torch.cat([visual.class_embedding.expand(1, x.shape[1], -1), x]) + visual.positional_embedding[:, None]
    x, kept = visual.ln_pre(x), []
    for block in visual.transformer.resblocks:
        change, probabilities = attend(block.attn, block.ln_1(x))
        x = x + change
        x = x + block.mlp(block.ln_2(x))
        kept.append(probabilities)
    features = visual.ln_post(x[0]) @ visual.proj
    logits = functional.normalize(features, dim=-1) @ weights.T + bias
    gradients = torch.autograd.grad(logits[range(len(LABELS)), LABELS].sum(), kept)
    matrix = torch.eye(kept[0].shape[-1], dtype=images.dtype).expand(len(images), -1, -1)
    for probabilities, gradient in zip(kept, gradients, strict=True):
        matrix = matrix + (gradient * probabilities).clamp(min=0).mean(1) @ matrix
    cam = matrix[:, 0, 1:]
    return features.detach().numpy(), (cam / (cam.amax(1, keepdim=True) + 1e-8)).detach().numpy().reshape(-1, 4, 4)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-9), ("float32", 1e-4)])
def test_maps(dtype, tolerance):
    torch.manual_seed(0)
    network = TorchCLIP(SIZES).double().eval()
    with torch.no_grad():  # sharper attention than at the start, where all patches are nearly alike
        for name, value in network.visual.named_parameters():
            value.add_(0.3 * torch.randn_like(value)).mul_(3 if "in_proj" in name else 1)
    rng = np.random.default_rng(0)
    images = rng.uniform(size=(3, 16, 16, 3))
    weights, bias = 100 * rng.normal(size=(5, 8)), rng.normal(size=5)
    theirs = (torch.from_numpy(a).to(getattr(torch, dtype)) for a in (images.transpose(0, 3, 1, 2), weights, bias))
    expected_features, expected = relevance(network.visual.to(getattr(torch, dtype)), *theirs)
    clip = CLIP(SIZES, dtype=dtype, mean=(0, 0, 0), std=(1, 1, 1))
    with jax.enable_x64(dtype == "float64"):
        params, x, w, b = jax.tree.map(
            lambda a: jnp.asarray(a, dtype), (our_tree(network, SIZES), images, weights, bias)
        )

        @jax.jit
        def run(params, x):
            score = logit_score(lambda f: f / jnp.linalg.norm(f, axis=-1, keepdims=True) @ w.T + b, jnp.asarray(LABELS))
            network = lambda factors: clip.image_features(params, x, factors=factors)
            return attention_relevance(network, clip.no_factors(3), score, clip.patches())

        features, cam = run(params, x)
    assert cam.dtype == dtype and expected.min(axis=(1, 2)).max() < 0.9
    np.testing.assert_allclose(cam, expected, atol=tolerance)
    np.testing.assert_allclose(features, expected_features, atol=tolerance * np.abs(expected_features).max())
