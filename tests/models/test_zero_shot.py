"""CLIP's image tower as a classifier: logits, texts of classes, what is a parameter and what is state, prompts."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jrobust.errors import InputError
from jrobust.models import zoo
from jrobust.models.clip import ARCHITECTURES, CLIP, Sizes, zero_shot
from jrobust.models.clip.clip import MEAN, STD
from jrobust.models.clip.prompts import Border
from jrobust.models.clip.sections import build, towers
from jrobust.models.clip.zero_shot import PromptSizes, ZeroShot, class_features
from jrobust.replicated import Replicated
from tests.methods.flat_clip import SIZES as FLAT_SIZES
from tests.methods.flat_clip import Flat

SIZES = Sizes(4, 16, 64, 1, 8, text_width=64, text_layers=1, vocabulary=20, context=6)
CLIP_16 = CLIP(SIZES)
SHAPE = (16, 16, 3)
# No row is of unit length.
TEXTS = np.array([[3.0, 0, 0, 0], [0, 0.5, 0, 0], [1, 1, 1, 1]], np.float32)


def images(count=2, side=16):
    return jnp.asarray(np.random.default_rng(0).uniform(size=(count, side, side, 3)), jnp.float32)


def unit(v):
    return np.asarray(v) / np.linalg.norm(v, axis=-1, keepdims=True)


@pytest.fixture(scope="module")
def whole():
    return CLIP_16.init(jax.random.key(1))


def test_logits_are_the_scaled_cosines_of_features_and_texts(whole):
    model = ZeroShot(CLIP_16, 3, SHAPE)
    given = whole | {"logit_scale": jnp.log(100.0)}
    params, state = model.pretrained(None, given, jnp.asarray(TEXTS))
    out = jax.jit(lambda *arguments: model.apply(*arguments, intermediates=True))(params, state, images())
    features = np.asarray(jax.jit(CLIP_16.image_features)(whole, images()))
    np.testing.assert_allclose(out.intermediates["features"], features, rtol=1e-5, atol=1e-5)
    assert out.logits.dtype == jnp.float32 and np.abs(np.linalg.norm(features, axis=1) - 1).min() > 0.1
    cosines = unit(features) @ unit(TEXTS).T
    np.testing.assert_allclose(out.logits, 100 * cosines, rtol=0, atol=1e-3)
    plain = dataclasses.replace(model, scaled=False)
    np.testing.assert_allclose(plain.logits(state, features), cosines, rtol=0, atol=1e-5)
    assert jax.tree.structure(out.batch_stats) == jax.tree.structure(state)
    jax.tree.map(np.testing.assert_array_equal, out.batch_stats, state)

    # What is trained is the image tower, all of it: neither texts nor the scale are among the parameters.
    assert params is given["image"] and set(state) == {"text", "logit_scale"}
    assert all(isinstance(leaf, Replicated) for leaf in state.values())
    assert state["logit_scale"].value is given["logit_scale"]


def test_in_train_mode_nothing_changes(whole):
    model = ZeroShot(CLIP_16, 3, SHAPE)
    params, state = model.pretrained(None, whole, jnp.asarray(TEXTS))
    keys = jax.random.split(jax.random.key(0), 2)
    plain = jax.make_jaxpr(lambda p, x: model.apply(p, state, x).logits)(params, images())
    train = lambda p, x: model.apply(p, state, x, train=True, keys=keys, mask_mode="sample").logits
    assert str(jax.make_jaxpr(train)(params, images())) == str(plain)
    prediction = jax.eval_shape(lambda: model.apply(params, state, images()))
    assert prediction.intermediates == {}
    for extra in ({"beta": 50.0}, {"perturbation": 0.0}):
        with pytest.raises(InputError, match="neither ReLU to soften nor a last feature map: choose another model"):
            model.apply(params, state, images(), **extra)


def test_images_of_other_sizes_are_resized_inside(whole):
    """As `CLIP` does, whose tests have the numbers."""
    model = ZeroShot(CLIP_16, 3, (8, 8, 3))
    params, state = model.pretrained(None, whole, jnp.asarray(TEXTS))
    ours = jax.make_jaxpr(lambda x: model.features(params, state, x))(images(side=8))
    assert str(ours) == str(jax.make_jaxpr(lambda x: CLIP_16.image_features(whole, x))(images(side=8)))
    for shape in ((2, 8, 8, 3), (1, 16, 16, 3), (3, 20, 12, 3)):
        x = jax.ShapeDtypeStruct(shape, jnp.float32)
        assert jax.eval_shape(lambda x: model.apply(params, state, x).logits, x).shape == (shape[0], 3)
    assert model.resize_to == 16 and model.input_shape == (8, 8, 3) and not model.has_map
    with pytest.raises(InputError, match="images have shape 2x16x16x1"):
        model.apply(params, state, images()[..., :1])


def test_fresh_variables():
    model = ZeroShot(CLIP_16, 5, SHAPE)
    params, state = model.init(jax.random.key(0))
    assert jax.tree.structure(params) == jax.tree.structure(jax.eval_shape(CLIP_16.init, jax.random.key(0))["image"])
    text = state["text"].value
    assert text.shape == (5, 4) and text.dtype == jnp.float32 and set(state) == {"text", "logit_scale"}
    np.testing.assert_allclose(np.linalg.norm(text, axis=1), 1, rtol=1e-6)
    assert float(jnp.exp(state["logit_scale"].value)) == pytest.approx(1 / 0.07)
    other = model.with_axis("data")
    assert other.axis_name == "data" and model.axis_name is None and hash(other) != hash(model)
    jax.tree.map(np.testing.assert_array_equal, other.init(jax.random.key(0))[0], params)
    with pytest.raises(AssertionError):
        np.testing.assert_array_equal(model.init(jax.random.key(1))[1]["text"].value, text)


def test_prompts_are_the_parameters_and_the_tower_is_state():
    clip = Flat(FLAT_SIZES)
    whole = clip.init(jax.random.key(1))
    model = ZeroShot(clip, 3, (2, 2, 3), prompts=PromptSizes("full", tokens=3), scaled=False)
    fresh, first = model.init(jax.random.key(0))
    assert set(first) == {"text", "logit_scale", "tower"}
    params, state = model.pretrained(fresh, whole, jnp.asarray(TEXTS))
    assert params is fresh and state["tower"].value is whole["image"]
    x = images(side=2)
    kernel = np.asarray(whole["image"]["kernel"])
    prompted = (x + fresh.pixels).reshape(2, -1) @ kernel + fresh.tokens.sum(0)
    logits, gradient = jax.value_and_grad(lambda p: model.apply(p, state, x).logits.sum())(params)
    assert float(logits) == pytest.approx(float((unit(prompted) @ unit(TEXTS).T).sum()), rel=1e-4)
    assert jax.tree.structure(gradient) == jax.tree.structure(fresh)
    assert all(np.abs(leaf).min() > 0 for leaf in jax.tree.leaves(gradient))
    # The original is asked with the prompts it is given, and none by itself.
    np.testing.assert_allclose(model.original_features(state, x), x.reshape(2, -1) @ kernel, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(model.original_features(state, x, fresh), prompted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("sizes", "pixels", "tokens"),
    [
        (PromptSizes(), (30, 224), 100),
        (PromptSizes("border", 3, 0), (3, 16), None),
        (PromptSizes("full", tokens=7), (16, 16, 3), 7),
        (PromptSizes("", tokens=2), None, 2),
    ],
)
def test_shapes_of_prompts(sizes, pixels, tokens):
    tower = ARCHITECTURES["ViT-B/32"] if sizes == PromptSizes() else SIZES
    prompts = jax.eval_shape(lambda key: sizes.init(key, tower), jax.random.key(0))
    assert (prompts.tokens is None) if tokens is None else (prompts.tokens.shape == (tokens, tower.image_width))
    if pixels is None or len(pixels) == 3:
        assert (prompts.pixels is None) if pixels is None else (prompts.pixels.shape == pixels)
        return
    width, side = pixels
    frame, sides = (width, side, 3), (side - 2 * width, width, 3)
    assert Border(*(part.shape for part in prompts.pixels)) == (frame, frame, sides, sides)


def test_prompts_are_standard_normal():
    prompts = PromptSizes("full", tokens=20).init(jax.random.key(0), SIZES)
    for part in (prompts.pixels, prompts.tokens):
        assert abs(float(part.mean())) < 0.1 and float(part.std()) == pytest.approx(1, abs=0.1)
    assert np.abs(prompts.pixels.ravel()[:700] - prompts.tokens.ravel()[:700]).min() > 0  # draws of their own


def test_a_resnet_keeps_its_statistics_in_state():
    model = ZeroShot(CLIP(Sizes(4, 32, 2, (1, 1, 1, 1), None, text_width=64, text_layers=1)), 3, (32, 32, 3))
    params, state = jax.eval_shape(model.init, jax.random.key(0))
    assert set(state) == {"text", "logit_scale", "batch_stats"} and set(params) >= {"stem", "attnpool"}
    x = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
    out = jax.eval_shape(lambda *arguments: model.apply(*arguments, train=True), params, state, x)
    assert out.logits.shape == (2, 3) and jax.tree.structure(out.batch_stats) == jax.tree.structure(state)


def test_features_of_classes_are_means_of_unit_features():
    clip = Flat(FLAT_SIZES)
    params = clip.init(jax.random.key(0))
    tokens = np.random.default_rng(0).integers(0, 9, (5, 3, 3))
    rows = unit(np.asarray(params["text"]["rows"])[tokens].sum(2))
    expected = unit(rows.mean(1))
    assert np.abs(expected - unit(np.asarray(params["text"]["rows"])[tokens].sum((1, 2)))).max() > 1e-2
    for chunk in (256, 15, 4, 1):  # the last of four is filled up with one row that is not used
        found = class_features(clip, {"text": params["text"]}, tokens, chunk=chunk)
        assert found.dtype == jnp.float32
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    np.testing.assert_allclose(class_features(clip, params, tokens[:, :1], chunk=4), rows[:, 0], rtol=0, atol=1e-5)


def test_texts_are_encoded_a_chunk_at_a_time(monkeypatch):
    seen = []
    monkeypatch.setattr(zero_shot, "_text_features", lambda clip, text, rows: seen.append(rows) or rows.astype(float))
    tokens = jnp.arange(1, 31).reshape(5, 2, 3)
    expected = class_features(CLIP_16, {"text": None}, tokens)
    assert [len(rows) for rows in seen] == [10]
    np.testing.assert_array_equal(class_features(CLIP_16, {"text": None}, tokens, chunk=4), expected)
    assert [len(rows) for rows in seen[1:]] == [4, 4, 4]
    np.testing.assert_array_equal(np.concatenate(seen[1:]), [*tokens.reshape(10, 3), tokens[4, 1], tokens[4, 1]])


SECTION = {"name": "clip", "architecture": "ViT-B/32"}


def test_a_config_section():
    model = build(SECTION, num_classes=200, input_shape=[64, 64, 3])
    assert model == ZeroShot(CLIP(ARCHITECTURES["ViT-B/32"]), 200, (64, 64, 3), scaled=True, prompts=None)
    assert (model.mean, model.std, model.resize_to) == (MEAN, STD, 224)
    fields = {"scaled": False, "prompts": {"pixels": "full"}, "dtype": "bfloat16", "mean": [0.1, 0.2, 0.3]}
    fields |= {
        "std": [0.4, 0.5, 0.6],
        "weights": "a.pt",
        "vocabulary": "bpe.gz",
        "template": "{}",
        "activation": "gelu",
    }
    model = build(SECTION | fields, num_classes=2, input_shape=(96, 96, 3))
    clip = CLIP(ARCHITECTURES["ViT-B/32"], "bfloat16", "gelu", (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert model == ZeroShot(clip, 2, (96, 96, 3), scaled=False, prompts=PromptSizes("full", 30, 100))
    own = {"name": "clip", "architecture": "", "sizes": dataclasses.asdict(SIZES), "interpolation": "bicubic_antialias"}
    assert towers(own) == CLIP(SIZES, interpolation="bicubic_antialias")


def test_the_zoo_builds_it():
    given = {"num_classes": 10, "input_shape": (32, 32, 3)}
    assert zoo.build(SECTION, **given) == build(SECTION, **given)
    stats = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
    assert zoo.build(SECTION, **given, **stats) == build(SECTION | stats, **given) != build(SECTION, **given)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"architecture": "ViT-B-32"}, "unknown model.architecture 'ViT-B-32'.*did you mean 'ViT-B/32'"),
        ({"architecture": ""}, "unknown model.architecture ''.*or give model.sizes"),
        ({"depth": 12}, "unknown field of model 'clip' 'depth'"),
        ({"scale": True}, "unknown field of model 'clip' 'scale'.*did you mean 'scaled'"),
        ({"sizes": {"embed": 4}}, "unknown field of model.sizes 'embed'.*did you mean 'embed_dim'"),
        ({"prompts": {"size": 30}}, "unknown field of model.prompts 'size'"),
        ({"prompts": {"pixels": "frame"}}, "unknown model.prompts.pixels 'frame'"),
        ({"prompts": {"pixels": "", "tokens": 0}}, "model.prompts has pixels '' and 0 tokens: expected one or the"),
        ({"prompts": {"tokens": -1}}, "model.prompts has pixels 'border' and -1 tokens"),
        ({"dtype": "float16"}, "unknown dtype 'float16'"),
        ({"mean": (0.5,)}, r"mean is \(0.5,\): expected three numbers"),
    ],
)
def test_what_a_config_may_not_say(fields, message):
    with pytest.raises(InputError, match=message) as error:
        zoo.build(SECTION | fields, num_classes=10, input_shape=(32, 32, 3))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("shape", [(28, 28, 1), (28, 28)])
def test_images_that_are_not_of_three_channels(shape):
    with pytest.raises(InputError, match=r"images have the shape \(28, 28.*: CLIP expects three channels"):
        build(SECTION, num_classes=10, input_shape=shape)
