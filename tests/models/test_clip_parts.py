"""The parts of CLIP: activations, layer norm, prompts, similarity, and how the parameters start."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jrobust.errors import InputError
from jrobust.models.clip import CLIP, Prompts, Sizes, similarity
from jrobust.models.clip.blocks import LayerNorm, gelu, quick_gelu
from jrobust.models.clip.clip import STD
from jrobust.models.clip.modified_resnet import AttentionPool, Bottleneck
from jrobust.models.clip.prompts import Border, border
from jrobust.models.clip.similarity import clamp
from jrobust.models.tree import flatten

VIT = Sizes(4, 16, 64, 1, 8, text_width=64, text_layers=1, vocabulary=20, context=6)


def test_activations():
    x = jnp.array([-1.0, 0.0, 1.0])
    np.testing.assert_allclose(quick_gelu(x), [-0.15420424, 0.0, 0.84579576], atol=1e-6)
    np.testing.assert_allclose(gelu(x), [-0.15865525, 0.0, 0.84134475], atol=1e-6)


def test_layer_norm_has_its_eps_and_keeps_what_a_large_mean_hides():
    variables = {"params": {"scale": jnp.array([1.0, 2.0]), "bias": jnp.array([0.0, 1.0])}}
    x = jnp.array([[-1e-3, 1e-3], [4095.0, 4097.0]])
    small = 1e-3 / math.sqrt(1e-6 + 1e-5)
    expected = [[-small, 2 * small + 1], [-1.0, 3.0]]
    np.testing.assert_allclose(LayerNorm("float32").apply(variables, x), expected, rtol=1e-4)


def test_prompts():
    clip = CLIP(VIT)
    params = jax.tree.map(
        lambda leaf: 0.4 * np.sin(np.arange(leaf.size) ** 1.3, dtype=np.float32).reshape(leaf.shape),
        jax.eval_shape(clip.init, jax.random.key(0)),
    )
    draw = lambda *shape: np.random.default_rng(1).uniform(size=shape).astype(np.float32)
    images, frame, tokens = draw(2, 16, 16, 3), draw(16, 16, 3), draw(3, 64)
    run = jax.jit(lambda x, pixels, tokens: clip.image_features(params, x, prompts=Prompts(pixels, tokens)))
    both = run(images, frame, tokens)
    assert np.abs(both - run(images, 0 * frame, tokens)).max() > 1e-2
    assert np.abs(both - run(images, frame, 0 * tokens)).max() > 1e-2
    # Pixels are added after normalisation; tokens have no position.
    np.testing.assert_allclose(run(images + frame * np.float32(STD), 0 * frame, tokens), both, atol=2e-4)
    np.testing.assert_allclose(run(images, frame, tokens[::-1]), both, atol=2e-4)


def test_a_border():
    parts = ((2, 10, 3), (2, 10, 3), (6, 2, 3), (6, 2, 3))
    assert tuple(part.shape for part in jax.eval_shape(lambda: border(jax.random.key(0), 10, 2))) == parts
    frame = Border(*(np.full(shape, i, np.float32) for i, shape in enumerate(parts, start=1)))
    expected = np.zeros((10, 10))
    expected[:, :2], expected[:, -2:], expected[:2], expected[-2:] = 3, 4, 1, 2
    np.testing.assert_array_equal(Prompts(frame).image()[:, :, 0], expected)
    assert Prompts().image() is None and Prompts(frame.up).image() is frame.up
    values = np.concatenate([np.ravel(part) for part in border(jax.random.key(0), 224)])
    assert values.size == 69_840
    assert abs(values.mean()) < 0.02 and values.std() == pytest.approx(1, abs=0.02)
    with pytest.raises(InputError, match="a border of 5 pixels on 10"):
        border(jax.random.key(0), 10, 5)


def test_similarity():
    images, texts = jnp.array([[3.0, 4.0], [0.0, 2.0]]), jnp.array([[1.0, 0.0], [0.0, 7.0], [-5.0, 0.0]])
    cosines = [[0.6, 0.8, -0.6], [0.0, 1.0, 0.0]]
    np.testing.assert_allclose(similarity(images, texts), cosines, atol=1e-6)
    np.testing.assert_allclose(similarity(images, texts, math.log(100)), 100 * np.array(cosines), atol=1e-4)
    np.testing.assert_allclose(clamp(jnp.array([4.0, 5.0])), [4.0, math.log(100)], atol=1e-6)


def test_the_start_of_the_parameters():
    sizes = dataclasses.replace(VIT, image_layers=1, vocabulary=200)
    d = 64**-0.5
    normals = {
        "text/token_embedding/embedding": 0.02,
        "text/pos_embedding": 0.01,
        "text/blocks_0/attn/value/kernel": d,
        "text/blocks_0/attn/out/kernel": d * 0.5**0.5,
        "text/blocks_0/mlp/fc2/kernel": d * 0.5**0.5,
        "text/blocks_0/mlp/fc1/kernel": 128**-0.5,
        "text/proj/kernel": d,
        "image/class_embedding": d,
        "image/pos_embedding": d,
        "image/proj/kernel": d,
    }
    uniforms = {  # their bounds
        "image/patch_embed/kernel": 192**-0.5,
        "image/blocks_0/attn/query/kernel": math.sqrt(6 / 256),
        "image/blocks_0/attn/out/kernel": d,
        "image/blocks_0/mlp/fc1/kernel": d,
        "image/blocks_0/mlp/fc2/kernel": 256**-0.5,
        "image/blocks_0/mlp/fc1/bias": d,
        "text/blocks_0/mlp/fc2/bias": 256**-0.5,
    }
    clip = CLIP(sizes)
    biases = [f"{tower}/blocks_0/attn/{name}/bias" for tower in ("image", "text") for name in ("query", "out")]
    wanted = [*normals, *uniforms, *biases, "logit_scale"]
    draw = jax.jit(lambda key: {path: leaf for path, leaf in flatten(clip.init(key)).items() if path in wanted})
    leaves = draw(jax.random.key(0, impl="rbg"))  # of which only these are compiled
    for path, std in normals.items():
        tolerance = 4 / math.sqrt(2 * leaves[path].size)
        assert np.std(leaves[path]) == pytest.approx(std, rel=tolerance), path
    for path, bound in uniforms.items():
        assert 0.9 * bound < np.abs(leaves[path]).max() <= bound * (1 + 1e-6), path
    assert leaves["logit_scale"] == pytest.approx(2.6593, abs=1e-4)
    assert not any(np.any(leaves[path]) for path in biases)


def test_the_start_of_a_resnet():
    key = jax.random.key(0, impl="rbg")
    block = flatten(jax.jit(Bottleneck(4, 2, "float32").init)(key, jnp.zeros((1, 2, 2, 8)))["params"])
    scales = {path: float(leaf.mean()) for path, leaf in block.items() if path.endswith("scale")}
    assert scales == {"bn1/scale": 1, "bn2/scale": 1, "bn3/scale": 0, "down_bn/scale": 1}
    pool = flatten(jax.jit(AttentionPool(2, 4, "float32").init)(key, jnp.zeros((1, 1, 1, 128)))["params"])
    for name in ("query", "key", "value", "out"):
        assert np.std(pool[f"{name}/kernel"]) == pytest.approx(128**-0.5, rel=0.15)
        assert 0 < np.abs(pool[f"{name}/bias"]).max() <= 128**-0.5
