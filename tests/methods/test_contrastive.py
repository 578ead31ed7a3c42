"""CLIP's contrastive training in closed form, on towers of one matrix each."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jrobust import methods
from jrobust.errors import InputError
from jrobust.methods.contrastive import Contrastive
from jrobust.models import zoo
from jrobust.training import parallel
from tests.methods.flat_clip import SCALE, WORDS, log_softmax, model, train, unit
from tests.methods.flat_clip import batch as images_and_labels

CLASS_TOKENS = (((1, 2, 0), (3, 4, 5)), ((6, 6, 1), (7, 8, 2)), ((0, 5, 8), (2, 2, 2)))
B = 8
KEY = jax.random.key(4)


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


def batch(captions=1, count=B, seed=0):
    tokens = np.random.default_rng(seed + 10).integers(0, WORDS, (count, captions, 3)).astype(np.int32)
    return images_and_labels(count, seed) | {"tokens": tokens}


def method_of():
    return Contrastive(model(), CLASS_TOKENS)


@functools.cache
def params():
    return method_of().init(jax.random.key(0), {}).params


run = jax.jit(lambda params, rows, key: method_of().loss(params, {}, rows, key))
slope = jax.jit(jax.grad(lambda *arguments: method_of().loss(*arguments)[0]))


def reference(params, rows, captions, scale=SCALE):
    """The loss with these captions, the shares of images and of texts that find their own, and the loss's halves."""
    v = unit(np.asarray(rows["image"]).reshape(len(rows["image"]), -1) @ np.asarray(params["image"]["kernel"]))
    t = unit(np.asarray(params["text"]["rows"])[captions].sum(1))
    z = scale * v @ t.T
    both = [-np.diag(log_softmax(logits)).mean() for logits in (z, z.T)]
    return sum(both) / 2, [(z.argmax(axis) == np.arange(len(v))).mean() for axis in (1, 0)], both


def test_the_loss_in_closed_form():
    rows = batch(seed=1)
    loss, (state, metrics) = run(params(), rows, KEY)
    expected, (matched, found), both = reference(params(), rows, rows["tokens"][:, 0])
    assert abs(both[0] - both[1]) > 1e-2 and 0 < matched != found  # the two directions are not the same
    assert float(loss) == pytest.approx(expected, rel=1e-12)
    assert state == {}
    assert jax.tree.map(float, metrics) == pytest.approx({"matched": matched, "logit_scale": SCALE})


def test_gradients_reach_both_towers_from_both_directions():
    rows = batch()
    gradient = jax.tree.leaves(slope(params(), {}, rows, KEY))
    leaves, structure = jax.tree.flatten(params())
    rng = np.random.default_rng(0)
    for i, leaf in enumerate(leaves):
        direction = rng.normal(size=leaf.shape)
        moved = [structure.unflatten([*leaves[:i], leaf + t * direction, *leaves[i + 1 :]]) for t in (1e-6, -1e-6)]
        ahead, behind = (reference(p, rows, rows["tokens"][:, 0], np.exp(p["logit_scale"]))[0] for p in moved)
        assert np.vdot(gradient[i], direction) == pytest.approx((ahead - behind) / 2e-6, rel=1e-6)


def test_the_scale_stops_at_100():
    rows = batch()
    for scale, used in ((20.0, 20.0), (99.0, 99.0), (101.0, 100.0), (1e4, 100.0)):
        scaled = params() | {"logit_scale": jnp.log(scale)}
        loss, (_, metrics) = run(scaled, rows, KEY)
        assert float(loss) == pytest.approx(reference(params(), rows, rows["tokens"][:, 0], used)[0], rel=1e-10)
        assert float(metrics["logit_scale"]) == pytest.approx(used)
        assert (float(slope(scaled, {}, rows, KEY)["logit_scale"]) == 0) == (scale > 100)


def test_each_step_draws_one_caption_an_image_by_its_index():
    rows = batch(captions=2, count=2)
    chosen = np.array([[rows["tokens"][0, i], rows["tokens"][1, j]] for i in (0, 1) for j in (0, 1)])
    possible = np.array([reference(params(), rows, captions)[0] for captions in chosen])
    losses = np.array(jax.vmap(lambda key: run(params(), rows, key)[0])(jax.random.split(KEY, 80)))
    distances = np.abs(losses[:, None] - possible)
    assert distances.min(1).max() < 1e-12
    assert (np.bincount(distances.argmin(1), minlength=4) > 8).all()  # 20 of each are expected

    rows = batch(captions=5)
    order = np.random.default_rng(0).permutation(B)
    shuffled = {name: field[order] for name, field in rows.items()}
    same, other = (run(params(), shuffled | {"index": index}, KEY)[0] for index in (rows["index"][order], order))
    assert float(same) == pytest.approx(float(run(params(), rows, KEY)[0]), rel=1e-12)
    assert abs(float(other - same)) > 1e-3


@functools.cache
def trained(mode, devices):
    tx = optax.sgd(1e-2, momentum=0.9)
    return train(method_of(), [batch(2, seed=seed) for seed in range(2)], tx, mode, devices)


@pytest.mark.parametrize("mode", parallel.MODES)
def test_four_devices_under_both_modes_equal_one(mode):
    """Every image meets the captions of all devices, and gradients come back from there."""
    (start, *_, single), losses = trained("jit", 1)
    (*_, state), metrics = trained(mode, 4)
    for one, other in zip(losses, metrics, strict=True):
        assert other == pytest.approx(one, rel=1e-6)
    for name, before in start.params.items():
        for a, b, first in zip(*map(jax.tree.leaves, (state.params[name], single.params[name], before)), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12)
            assert np.abs(b - first).max() > 1e-6


def test_deployed_are_the_image_tower_and_the_classes_in_its_own_words():
    method = method_of()
    deployed = method.deployed(method.init(jax.random.key(0), {}))
    features = unit(np.asarray(params()["text"]["rows"])[np.array(CLASS_TOKENS)].sum(2))
    texts = unit(features.mean(1))
    np.testing.assert_allclose(deployed.state["text"].value, texts, rtol=1e-12)
    assert set(deployed.state) == {"text", "logit_scale"} and set(deployed.params) == {"kernel"}
    images = images_and_labels()["image"]
    v = unit(images.reshape(len(images), -1) @ np.asarray(params()["image"]["kernel"]))
    np.testing.assert_allclose(method.logits(deployed, images), SCALE * v @ texts.T, rtol=1e-10)


def test_a_config_section():
    section = {"name": "contrastive"}
    assert methods.build(section, model(), class_tokens=CLASS_TOKENS) == method_of()
    with pytest.raises(InputError, match="unknown field of method 'contrastive' 'class_tokens'"):
        methods.build(section | {"class_tokens": ()}, model())
    network = zoo.build({"name": "mlp", "mean": (0.5,) * 3, "std": (1.0,) * 3}, num_classes=3, input_shape=(2, 2, 3))
    with pytest.raises(InputError, match="method 'contrastive' trains CLIP alone"):
        methods.build(section, network)
