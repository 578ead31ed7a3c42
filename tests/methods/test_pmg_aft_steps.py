"""PMG-AFT in the trainer: its attack, what moves and what stays, devices, and what a config may say."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jrobust import methods
from jrobust.errors import InputError
from jrobust.methods.pmg_aft import PMGAFT
from jrobust.models import zoo
from jrobust.models.clip.zero_shot import PromptSizes
from tests.methods.flat_clip import SCALE, batch, log_softmax, model, train, unit, values

EPS, STEP = 2 / 255, 1.5 / 255
ATTACK = {"eps": EPS, "step_size": STEP, "num_steps": 2}
B = 8


@pytest.fixture(autouse=True)
def x64(rolled_loops):
    with jax.enable_x64(True):
        yield


@functools.cache
def variables():
    return PMGAFT(model(), **ATTACK).init(jax.random.key(0), {})


def perturb(steps, rows):
    method, keys = PMGAFT(model(), **ATTACK | {"num_steps": steps}), jax.random.split(jax.random.key(2))
    arguments = (*variables(), rows["image"], rows["label"], rows["index"], *keys)
    return np.asarray(jax.jit(method.perturb)(*arguments))


def cross_entropy(x, rows, kernel, texts):
    """Return that of each image, flat, and its gradient in the image."""
    features = x @ kernel
    v, picked = unit(features), (np.arange(len(x)), rows["label"])
    z = log_softmax(SCALE * v @ texts.T)
    slope = np.exp(z)
    slope[picked] -= 1
    slope = SCALE * slope @ texts  # in v
    slope -= (slope * v).sum(1, keepdims=True) * v
    return -z[picked], slope / np.linalg.norm(features, axis=1, keepdims=True) @ kernel.T


def test_the_attack_is_that_of_the_specification():
    """Section 4 in NumPy from the same random start, black and white pixels among the images."""
    rows = batch(40)
    start, one, two = (perturb(steps, rows).reshape(40, -1) for steps in (0, 1, 2))
    x = rows["image"].reshape(40, -1)
    kernel, texts = np.asarray(variables().params["kernel"]), np.asarray(variables().state["text"].value)
    delta = start - x
    for found in (one, two):
        gradient = cross_entropy(x + delta, rows, kernel, texts)[1]
        assert np.abs(gradient).min() > 1e-9  # no sign is in doubt
        delta = np.clip(delta + STEP * np.sign(gradient), -EPS, EPS)
        delta = np.clip(delta, 0 - x, 1 - x)
        np.testing.assert_allclose(found - x, delta, rtol=0, atol=1e-15)
    for found in (start, one, two):
        assert np.abs(found - x).max() <= EPS + 1e-16 and found.min() >= 0 and found.max() <= 1
    losses = [cross_entropy(found, rows, kernel, texts)[0].mean() for found in (x, start, one, two)]
    assert losses[1] < losses[2] < losses[3] and abs(losses[1] - losses[0]) < losses[3] - losses[1]


def test_the_attack_starts_anywhere_in_the_ball():
    """Uniform(-eps, eps), cut with [0, 1] and not drawn again; an image's draw is its own."""
    rows = batch(40)
    start, x = perturb(0, rows), rows["image"]
    free = (x > EPS) & (x < 1 - EPS)
    share = (start - x)[free] / EPS
    assert abs(share.mean()) < 0.15 and share.std() == pytest.approx(3**-0.5, rel=0.1) and np.abs(share).max() > 0.95
    edge = (start - x)[x == 0]
    assert edge.min() == 0 and 0.3 < (edge == 0).mean() < 0.7
    order = np.random.default_rng(0).permutation(40)
    shuffled = perturb(0, {name: field[order] for name, field in rows.items()})
    np.testing.assert_array_equal(shuffled, start[order])


@functools.cache
def trained(mode="jit", devices=1, *, prompts=None, **fields):
    method = PMGAFT(model(prompts=prompts), **ATTACK, **fields)
    return train(method, [batch(B, seed) for seed in range(3)], optax.sgd(1e-2, momentum=0.9), mode, devices)


@pytest.mark.parametrize(
    ("mode", "reduction", "weight"), [("jit", "batchmean", B), ("pmap", "batchmean", B), ("pmap", "sum", 1)]
)
def test_four_devices_under_both_modes_equal_one(mode, reduction, weight):
    """A sum over the batch is B times the mean over it, whatever the devices."""
    (*_, single), losses = trained()
    fields = {"reduction": reduction, "general_weight": float(weight), "clean_weight": float(weight)}
    (*_, state), metrics = trained(mode, 4, **fields)
    for one, other in zip(losses, metrics, strict=True):
        assert other["loss"] == pytest.approx(one["loss"], rel=1e-6)
        for name in ("general", "regulariser"):
            assert other[name] * weight == pytest.approx(one[name], rel=1e-6, abs=1e-9)
    for a, b in zip(jax.tree.leaves(single), jax.tree.leaves(state), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12)


def test_texts_scale_and_original_stay_and_the_target_leaves():
    states, metrics = trained()
    first = values(states[0].state)
    np.testing.assert_array_equal(first["tower"]["kernel"], states[0].params["kernel"])
    for state in states:
        later = values(state.state)
        assert set(later) == {"text", "logit_scale", "tower"}
        jax.tree.map(np.testing.assert_array_equal, later, first)
    assert np.abs(states[-1].params["kernel"] - first["tower"]["kernel"]).min() > 1e-8
    assert metrics[0]["general"] < 1e-7 < 1e-5 < metrics[1]["general"]


def test_of_visual_prompts_only_the_prompts_move():
    states, _ = trained(prompts=PromptSizes("full", tokens=3))
    first = values(states[0].state)
    for state in states[1:]:
        jax.tree.map(np.testing.assert_array_equal, values(state.state), first)
        assert jax.tree.map(np.shape, (state.params.pixels, state.params.tokens)) == ((2, 2, 3), (3, 4))
        for now, before in zip(jax.tree.leaves(state.params), jax.tree.leaves(states[0].params), strict=True):
            assert np.abs(now - before).min() > 1e-9


SECTION = {"name": "pmg_aft", "eps": "1/255", "step_size": "1/255", "num_steps": 2}


def test_a_config_section():
    method = methods.build(SECTION, model())
    assert method == PMGAFT(model(), eps=1 / 255, step_size=1 / 255, num_steps=2)
    assert (method.general_weight, method.clean_weight, method.distance, method.kl_direction) == (1, 1, "kl", "ori_adv")
    assert (method.reduction, method.detach_clean, method.original_prompts) == ("sum", False, "pixels")
    fields = {"general_weight": 0.5, "distance": "feature_l2", "reduction": "batchmean", "original_prompts": "none"}
    other = methods.build(SECTION | fields, model())
    assert other == dataclasses.replace(method, **fields) != method


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"reduction": "mean"}, "unknown method.reduction 'mean'.*batchmean"),
        ({"distance": "feature_cos"}, "did you mean 'feature_cosine'"),
        ({"kl_direction": "adv"}, "unknown method.kl_direction 'adv'"),
        ({"original_prompts": "tokens"}, "unknown method.original_prompts 'tokens'"),
        ({"clean_weight": -1.0}, "method.clean_weight is -1.0: expected a number of at least 0"),
        ({"general_weight": -1.0}, "method.general_weight is -1.0: expected a number of at least 0"),
        ({"weight": 1.0}, "unknown field of method 'pmg_aft' 'weight'"),
        ({"name": "art"}, "method 'art' cannot train model 'clip': expected one of pmg_aft, contrastive"),
        ({"name": "lff"}, "method 'lff' cannot train model 'clip'"),
    ],
)
def test_what_a_config_may_not_say(fields, message):
    with pytest.raises(InputError, match=message):
        methods.build(SECTION | fields, model())


def test_other_networks_have_no_texts():
    network = zoo.build({"name": "mlp", "mean": (0.5,) * 3, "std": (1.0,) * 3}, num_classes=3, input_shape=(2, 2, 3))
    with pytest.raises(InputError, match="method 'pmg_aft' trains CLIP alone: expected model"):
        methods.build(SECTION, network)


@pytest.mark.parametrize("name", ["standard", "adversarial", "trades", "mart"])
def test_methods_of_other_networks_take_it(name):
    section = {"name": name} | ({} if name == "standard" else ATTACK)
    section |= {} if name in ("standard", "adversarial") else {"kl_weight": 6.0}
    method = methods.build(section, model())
    rows = jax.tree.map(jnp.asarray, batch(B))
    loss, (state, _) = jax.eval_shape(method.loss, *variables(), rows, jax.random.key(0))
    assert loss.shape == () and jax.tree.structure(state) == jax.tree.structure(variables().state)
