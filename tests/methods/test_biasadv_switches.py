"""The attack of BiasAdv on small networks: what always holds, the presets, every switch, and which norms it sees."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import biasadv as presets
from jrobust import methods
from jrobust.errors import InputError
from jrobust.methods.biasadv import BiasAdv
from jrobust.methods.erm import ERM
from tests.methods.attack import LABELS, SHAPE, SIGNS, B, attack, binary, direction, flat, images_
from tests.methods.networks import BatchNormed, Toy, mlp, mlp_params

INDEX = np.arange(B)


@pytest.fixture(autouse=True)
def x64(rolled_loops):
    with jax.enable_x64(True):
        yield


# What T6 holds for: the presets and their relatives.
BALLS = {
    "pixel": {"eps": 0.3, "step_size": 0.04},
    "normalized": {"eps": 0.4, "space": "normalized"},
    "l2": {"eps": 0.5, "norm": "l2", "step_ratio": 2.5},
    "random start": {"eps": 0.3, "random_start": True, "step_size": 0.01},
    "random": {"eps": 0.3, "objective": "random", "step_size": 0.02},
    "advprop": {"eps": 0.1, "objective": "advprop"},
}
STD = (0.5, 0.25, 0.1)


def smooth(params, z, beta):
    """Two layers of softplus."""
    return mlp(params, z, 3.0)


@functools.cache
def nets():
    """phi and theta of two layers."""
    with jax.enable_x64(True):
        return tuple(mlp_params(jax.random.key(seed), (12, 8, 2)) for seed in (1, 2))


def two_layers(images, labels=LABELS, **fields):
    return attack(*nets(), images, forward=smooth, std=STD, labels=labels, debiased_weight=0.5, **fields)


@pytest.mark.parametrize("ball", BALLS)
def test_what_always_holds(ball):
    """T6: the ball, the box; nothing at radius or steps of zero; neighbours and order in the batch do not matter."""
    fields, x = BALLS[ball], images_(0, 1)
    adv = two_layers(x, **fields)
    delta = flat(adv - x)
    unit = np.tile(STD, 4) if ball == "normalized" else 1.0
    size = np.linalg.norm(delta, axis=1) if ball == "l2" else np.abs(delta / unit).max(1)
    assert (size <= fields["eps"] * (1 + 1e-12)).all() and (size > 0).all()
    assert (adv >= 0).all() and (adv <= 1).all()
    np.testing.assert_array_equal(two_layers(x, **fields | {"eps": 0.0}), x)
    order, others = np.array([3, 1, 5, 0, 2, 4]), jnp.concatenate([x[:2], images_(0, 1, seed=9)[2:]])
    moved = two_layers(x[order], LABELS[order], index=order, **fields)
    np.testing.assert_allclose(moved, adv[order], rtol=0, atol=1e-13)
    np.testing.assert_allclose(two_layers(others, **fields)[:2], adv[:2], rtol=0, atol=1e-13)
    if ball == "pixel":
        np.testing.assert_array_equal(two_layers(x, **fields | {"num_steps": 0}), x)


@pytest.mark.parametrize("ball", ["random start", "random"])
def test_draws_belong_to_the_key_and_the_image(ball):
    x, fields = images_(0.4, 0.6), BALLS[ball]
    adv = two_layers(x, **fields)
    np.testing.assert_array_equal(two_layers(x, **fields), adv)
    order = np.array([3, 1, 5, 0, 2, 4])
    np.testing.assert_array_equal(two_layers(x[order], LABELS[order], index=order, **fields), adv[order])
    assert (two_layers(x, key=jax.random.key(1), **fields) != adv).any()


def test_small_steps_raise_the_objective():
    """T6: J(x_adv) >= J(x), and with lambda the loss of theta is lower than without."""
    x = images_(0.2, 0.8)
    network = Toy(smooth, mean=0.5, std=STD)

    def loss_of(params, images):
        log_p = jax.nn.log_softmax(network.apply(params, 0, images).logits)
        return -np.take_along_axis(np.asarray(log_p), LABELS[:, None], 1)[:, 0]

    total = lambda images: loss_of(nets()[0], images) - 0.5 * loss_of(nets()[1], images)
    assert (total(two_layers(x, eps=0.05, step_size=0.005)) > total(x)).all()
    against_theta = two_layers(x, eps=0.05, objective="advprop")
    assert (loss_of(nets()[1], against_theta) > loss_of(nets()[1], x)).all()


def test_random_images_are_uniform_where_the_steps_reach():
    x = jnp.full((B, *SHAPE), 0.5)
    many = lambda **fields: flat(two_layers(x, objective="random", **fields) - x) / 0.08
    assert np.abs(many(eps=0.5, step_size=0.02)).max() < 1 and np.abs(many(eps=0.04, step_size=0.02)).max() < 0.5
    draws = np.concatenate([many(eps=0.5, step_size=0.02), many(eps=0.08, step_size=0.9)]).ravel()
    assert abs(draws.mean()) < 0.2 and abs(draws.std() - 3**-0.5) < 0.1


def test_advprop_does_not_look_at_phi():
    x, theta = images_(), direction(2)
    adv = attack(binary(direction(1)), binary(theta), x, debiased_weight=0.9, objective="advprop", eps=0.1)
    np.testing.assert_allclose(flat(adv - x), -0.1 * SIGNS * np.sign(theta), rtol=0, atol=1e-15)


@functools.partial(jax.jit, static_argnums=3)
def normalized_walk(x, eps, step, steps):
    """Sign ascent written in the space of the network's input: (x - mean) / std, its box mapped there too."""
    std, (phi, theta) = np.asarray(STD), nets()
    mapped = lambda images: (images - 0.5) / std

    def objective(z):
        of = lambda params: jax.nn.log_softmax(smooth(params, z.reshape(len(z), -1), None))[jnp.arange(B), LABELS]
        return (-of(phi) + 0.5 * of(theta)).sum()

    z = start = mapped(x)
    for _ in range(steps):
        z = start + jnp.clip(z + step * jnp.sign(jax.grad(objective)(z)) - start, -eps, eps)
        z = jnp.clip(z, mapped(np.zeros(3)), mapped(np.ones(3)))
    return z * std + 0.5


@pytest.mark.parametrize("step_size", [None, 0.3])
def test_normalized_space_is_a_radius_for_each_channel(step_size):
    """T7: eps / S steps by default; here also steps that pass the radius."""
    x, eps, steps = images_(0, 1), 0.4, 4
    adv = two_layers(x, eps=eps, num_steps=steps, space="normalized", step_size=step_size)
    np.testing.assert_allclose(adv, normalized_walk(x, eps, step_size or eps / steps, steps), rtol=0, atol=1e-12)
    largest = np.abs(adv - x).max((0, 1, 2))
    np.testing.assert_allclose(largest, eps * np.asarray(STD), rtol=1e-9)


@pytest.mark.parametrize(
    "preset, expected, reach",
    [
        ("linf_pixel_fixed", {"norm": "linf", "space": "pixel", "step_size": 2 / 255}, 10 / 255),
        ("linf_norm", {"norm": "linf", "space": "normalized", "step_size": None, "step_ratio": 1.0}, 0.3 * 0.5),
        ("l2_pixel", {"norm": "l2", "space": "pixel", "step_size": None, "step_ratio": 2.5}, 0.3),
    ],
)
def test_presets_as_configs_write_them(preset, expected, reach):
    """From the words to the images: how far each reading goes for eps = 0.3, S = 5 and a std of 0.5."""
    words = {"method": "lff", "biasadv": True, "preset": preset, "ablation": "none", "numbers": "supplement"}
    section = presets.method(words, {"lambda": 0.5, "beta": 2.0, "eps": 0.3, "steps": 5})
    built = methods.build(section, BatchNormed(), num_examples=7)
    assert built.base.num_examples == 7 and built.base.q == 0.7 and built.classifier == built.base.classifier
    expected |= {"debiased_weight": 0.5, "adv_weight": 2.0, "eps": 0.3, "num_steps": 5, "objective": "biasadv"}
    expected |= {"auxiliary_norm": True, "attack_norm": "auxiliary", "batch_norm": "eval", "random_start": False}
    fields = {field.name: getattr(built, field.name) for field in dataclasses.fields(built)}
    assert expected.items() <= fields.items()

    own = ("classifier", "base", "adv_weight", "auxiliary_norm", "debiased_weight")
    w, x = direction(1), images_()
    adv = attack(binary(w), binary(w), x, std=0.5, **{name: fields[name] for name in fields if name not in own})
    delta = flat(adv - x)
    size = np.linalg.norm(delta, axis=1) if fields["norm"] == "l2" else np.abs(delta).max(1)
    np.testing.assert_allclose(size, reach, rtol=1e-9)
    assert (np.sign(delta) == -SIGNS * np.sign(w)).all()


@pytest.mark.parametrize("attack_norm, batch_norm", [("auxiliary", "eval"), ("main", "train")])
def test_which_norms_the_attack_sees(attack_norm, batch_norm):
    """Running or batch statistics, in the chosen branch of theta and in the one branch of phi; one L2 step shows."""
    network = BatchNormed(classes=2, input_shape=SHAPE, std=STD)
    fields = {"attack_norm": attack_norm, "batch_norm": batch_norm, "norm": "l2", "num_steps": 1, "eps": 0.1}
    method = BiasAdv(network, ERM(network), debiased_weight=0.7, adv_weight=1.0, **fields)
    params, state = method.init(jax.random.key(0), {})
    params["auxiliary"] = jax.tree.map(lambda leaf: leaf + jnp.linspace(0, 2, 6), params["auxiliary"])
    state["auxiliary"] = jax.tree.map(lambda leaf: leaf + jnp.linspace(0, 2, 6), state["auxiliary"])
    x = images_(0.2, 0.8)
    found = jax.jit(method.perturb)(params, state, x, LABELS, INDEX, jax.random.key(0))

    own = params["debiased"] | params["auxiliary"], state["auxiliary"]
    theta = own if attack_norm == "auxiliary" else (params["debiased"], state["debiased"])

    def objective(images):
        of = lambda *net: network.apply(*net, images, train=batch_norm == "train").logits
        log_p = lambda *net: jax.nn.log_softmax(of(*net))[INDEX, LABELS]
        return jnp.sum(0.7 * log_p(*theta) - log_p(params["biased"], state["biased"]))

    gradient = flat(jax.jit(jax.grad(objective))(x))
    expected = 0.1 * gradient / np.linalg.norm(gradient, axis=1, keepdims=True)
    np.testing.assert_allclose(flat(found - x), expected, rtol=0, atol=1e-8)


def test_a_network_without_batch_norm_has_no_branch():
    network = Toy(mlp, mean=0.5)
    object.__setattr__(network, "init", lambda key: ({"w": jnp.ones(3)}, {}))
    params, state = BiasAdv(network, ERM(network), 1.0, 1.0, 0.1, 1).init(jax.random.key(0), {})
    assert params["auxiliary"] == {} and state["auxiliary"] == {}


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"norm": "l2", "space": "normalized"}, "defined for norm=linf alone"),
        ({"norm": "l2", "objective": "random"}, "draws from an Linf ball"),
    ],
)
def test_what_has_no_meaning(fields, message):
    with pytest.raises(InputError, match=message):
        BiasAdv(BatchNormed(), ERM(BatchNormed()), 1.0, 1.0, 0.1, 1, **fields)


@pytest.mark.parametrize(
    "fields, biasadv, message",
    [
        ({}, {"adv_weight": -1.0}, r"method.biasadv.adv_weight is -1.0: expected a number of at least 0"),
        ({}, {"num_steps": -1}, r"method.biasadv.num_steps is -1"),
        ({}, {"debiased_weight": float("nan")}, r"method.biasadv.debiased_weight is nan"),
        ({"q": 0.0}, {}, r"method.q is 0.0: expected a number above 0 and at most 1"),
        ({"alpha": 1.5}, {}, r"method.alpha is 1.5"),
        ({}, {"norm": "l3"}, r"unknown method.biasadv.norm 'l3'"),
        ({"name": "standard"}, {}, r"method 'standard' does not carry method.biasadv: expected erm, jtt or lff"),
    ],
)
def test_numbers_out_of_range(fields, biasadv, message):
    numbers = {"debiased_weight": 0.5, "adv_weight": 1.0, "eps": "0.3", "num_steps": 5} | biasadv
    with pytest.raises(InputError, match=message):
        methods.build({"name": "lff", "biasadv": numbers} | fields, BatchNormed(), num_examples=5)


@pytest.mark.parametrize("name", ["erm", "jtt"])
def test_a_base_that_is_nothing_without_biasadv(name):
    with pytest.raises(InputError, match=r"for method.biasadv alone: set it, or take 'standard'"):
        methods.build({"name": name}, BatchNormed(), num_examples=5)
