"""CLIP's image tower with a trained linear layer: how it begins, what is trained, and what a config may not say."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jrobust.errors import InputError
from jrobust.models import zoo
from jrobust.models.clip import ARCHITECTURES, CLIP, Sizes
from jrobust.models.clip.linear_head import LinearHead
from jrobust.models.clip.zero_shot import ZeroShot, class_features
from jrobust.replicated import Replicated
from tests.methods.flat_clip import SIZES, Flat, unit

CLASSES, SHAPE = 3, (2, 2, 3)
MODEL = LinearHead(Flat(SIZES), CLASSES, SHAPE)
IMAGES = np.random.default_rng(0).uniform(size=(4, *SHAPE)).astype(np.float32)


@pytest.fixture(scope="module")
def whole():
    """A CLIP whose scale is that of OpenAI's files."""
    return Flat(SIZES).init(jax.random.key(1)) | {"logit_scale": jnp.log(100.0)}


def features(params):
    return IMAGES.reshape(len(IMAGES), -1) @ np.asarray(params["image"]["kernel"])


def test_it_begins_as_100_times_the_cosine_to_the_mean_of_unit_features_of_templates(whole):
    tokens = np.random.default_rng(1).integers(0, 9, (CLASSES, 5, 3))
    params, state = MODEL.pretrained(None, whole, class_features(MODEL.clip, whole, tokens))
    each = unit(np.asarray(whole["text"]["rows"])[tokens].sum(2))
    expected = 100 * unit(features(whole)) @ unit(each.mean(1)).T
    out = MODEL.apply(params, state, IMAGES, intermediates=True)
    np.testing.assert_allclose(out.logits, expected, rtol=0, atol=2e-4)
    np.testing.assert_allclose(out.intermediates["features"], features(whole), rtol=1e-5, atol=1e-5)
    plain = 100 * unit(features(whole)) @ each.mean(1).T  # the mean is of unit length, too
    assert np.abs(expected - plain).max() > 1
    zero_shot = ZeroShot(MODEL.clip, CLASSES, SHAPE)
    same = zero_shot.pretrained(None, whole, class_features(MODEL.clip, whole, tokens))
    np.testing.assert_allclose(out.logits, zero_shot.apply(*same, IMAGES).logits, rtol=0, atol=2e-4)
    assert state == {} and params["image"] is whole["image"]
    assert params["head"]["kernel"].shape == (4, CLASSES) and (params["head"]["bias"] == 0).all()


def test_tower_head_and_bias_are_trained(whole):
    head = {"kernel": jnp.arange(12.0).reshape(4, 3), "bias": jnp.array([1.0, -2.0, 3.0])}
    params = {"image": whole["image"], "head": head}
    out = MODEL.apply(params, {}, IMAGES)
    expected = unit(features(whole)) @ np.arange(12.0).reshape(4, 3) + [1, -2, 3]
    np.testing.assert_allclose(out.logits, expected, rtol=0, atol=1e-4)
    assert out.logits.dtype == jnp.float32 and out.intermediates == {}
    gradient = jax.grad(lambda p: MODEL.apply(p, {}, IMAGES).logits[:, 0].sum())(params)
    np.testing.assert_allclose(gradient["head"]["bias"], [4, 0, 0])
    np.testing.assert_allclose(gradient["head"]["kernel"][:, 0], unit(features(whole)).sum(0), rtol=1e-4, atol=1e-5)
    assert np.abs(gradient["image"]["kernel"]).min() > 0


def test_fresh_variables():
    params, state = MODEL.init(jax.random.key(0))
    assert state == {} and set(params) == {"image", "head"}
    np.testing.assert_allclose(np.linalg.norm(params["head"]["kernel"], axis=0), 1 / 0.07, rtol=1e-5)
    other = MODEL.with_axis("data")
    assert other.axis_name == "data" and MODEL.axis_name is None and hash(other) != hash(MODEL)
    jax.tree.map(np.testing.assert_array_equal, other.init(jax.random.key(0))[0], params)
    with pytest.raises(AssertionError):
        np.testing.assert_array_equal(MODEL.init(jax.random.key(1))[0]["head"]["kernel"], params["head"]["kernel"])
    with pytest.raises(InputError, match="neither ReLU to soften"):
        MODEL.apply(params, state, IMAGES, beta=50.0)


def test_under_bfloat16_features_and_logits_are_float32():
    clip = CLIP(Sizes(4, 16, 64, 1, 8, text_width=64, text_layers=1, vocabulary=20, context=6), "bfloat16")
    model = LinearHead(clip, CLASSES, (16, 16, 3))
    params, state = jax.eval_shape(model.init, jax.random.key(0))
    x = jax.ShapeDtypeStruct((2, 16, 16, 3), jnp.float32)
    out = jax.eval_shape(lambda *arguments: model.apply(*arguments, intermediates=True), params, state, x)
    assert out.logits.dtype == out.intermediates["features"].dtype == jnp.float32
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(params))


def test_a_resnet_keeps_its_statistics_in_state():
    model = LinearHead(CLIP(Sizes(4, 32, 2, (1, 1, 1, 1), None, text_width=64, text_layers=1)), CLASSES, (32, 32, 3))
    params, state = jax.eval_shape(model.init, jax.random.key(0))
    assert set(state) == {"batch_stats"} and isinstance(state["batch_stats"], Replicated)
    x = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
    out = jax.eval_shape(lambda *arguments: model.apply(*arguments, train=True), params, state, x)
    assert out.logits.shape == (2, 3) and jax.tree.structure(out.batch_stats) == jax.tree.structure(state)


SECTION = {"name": "clip", "architecture": "ViT-B/32", "head": "linear"}
GIVEN = {"num_classes": 10, "input_shape": (32, 32, 3)}


def test_a_config_section():
    assert zoo.build(SECTION, **GIVEN) == LinearHead(CLIP(ARCHITECTURES["ViT-B/32"]), 10, (32, 32, 3))
    text = dataclasses.asdict(ZeroShot(CLIP(ARCHITECTURES["ViT-B/32"]), 10, (32, 32, 3)))
    assert dataclasses.asdict(zoo.build(SECTION | {"head": "text"}, **GIVEN)) == text


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"head": "lineal"}, "unknown model.head 'lineal'.*did you mean 'linear'"),
        ({"prompts": {"pixels": "full"}}, "model.prompts with model.head 'linear'"),
    ],
)
def test_what_a_config_may_not_say(fields, message):
    with pytest.raises(InputError, match=message) as error:
        zoo.build(SECTION | fields, **GIVEN)
    assert "\n" not in str(error.value)
