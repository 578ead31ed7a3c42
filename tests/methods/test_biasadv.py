"""The attack of BiasAdv: closed forms on linear networks, the three presets, every switch, and what never changes."""

import dataclasses
import functools
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import biasadv as presets
from jrobust import loops, methods
from jrobust.attacks import cross_entropy
from jrobust.errors import InputError
from jrobust.methods import biasadv
from jrobust.methods.biasadv import BiasAdv
from jrobust.methods.erm import ERM
from tests.methods.networks import BatchNormed, Toy, linear, mlp, mlp_params

SHAPE = (2, 2, 3)  # 12 pixels
B = 6
INDEX = jnp.arange(B)
LABELS = jnp.arange(B) % 2
SIGNS = 2 * LABELS[:, None] - 1  # y of the margin: +1 for class 1


@pytest.fixture(autouse=True)
def x64(monkeypatch):
    monkeypatch.setattr(loops, "unrolled", lambda unroll=None: False)  # such networks compile faster so
    with jax.enable_x64(True):
        yield


def images_(low=0.45, high=0.55, seed=0):
    return jnp.asarray(np.random.default_rng(seed).uniform(low, high, (B, *SHAPE)))


def binary(direction):
    """Weights of two classes whose difference of logits is direction . x: margin m = y (w . x)."""
    return jnp.stack([jnp.zeros(12), jnp.asarray(direction, float)])


def direction(seed, only=slice(None)):
    """Twelve weights, those outside `only` zero and none of the others small."""
    rng = np.random.default_rng(seed)
    w = rng.choice([-1, 1], 12) * rng.uniform(0.2, 1.5, 12)
    return np.where(np.isin(np.arange(12), np.arange(12)[only]), w, 0.0)


# Numbers that need no compilation of their own.
TRACED = ("debiased_weight", "eps", "step_size")


def attack(
    phi, theta, images, *, labels=LABELS, index=None, key=None, forward=linear, std=1.0, loss=cross_entropy, **fields
):
    """Return what BiasAdv makes of the images with phi and theta of these weights."""
    fields = {"debiased_weight": 0.0, "eps": 0.1, "num_steps": 4} | fields
    traced = {name: fields.pop(name) for name in TRACED if fields.get(name) is not None}
    key = jax.random.key(0) if key is None else key
    index = jnp.arange(len(images)) if index is None else index
    return _attack(phi, theta, images, labels, index, key, traced, (forward, std, loss), tuple(fields.items()))


@functools.partial(jax.jit, static_argnums=(7, 8))
def _attack(phi, theta, images, labels, index, key, traced, parts, fields):
    forward, std, loss = parts
    network = Toy(forward, mean=0.5, std=std)
    method = BiasAdv(network, ERM(network), adv_weight=1.0, auxiliary_norm=False, **traced, **dict(fields))
    params, state = {"debiased": theta, "biased": phi}, {"debiased": 0.0, "biased": 0.0}
    with mock.patch.object(biasadv, "cross_entropy", loss):
        return method.perturb(params, state, images, labels, index, key)


def flat(images):
    return np.asarray(images).reshape(len(images), -1)


def loss(weights, images):
    z = (flat(images) - 0.5) @ np.asarray(weights).T
    return np.log1p(np.exp(-np.asarray(SIGNS)[:, 0] * (z[:, 1] - z[:, 0])))


def test_linf_best_perturbation_of_one_linear_network():
    """T1: delta = -eps y sign(w), and the loss there log(1 + exp(-m + eps |w|_1))."""
    w, x = direction(1), images_()
    adv = attack(binary(w), binary(direction(2)), x, eps=0.1, num_steps=4, step_size=0.03)
    np.testing.assert_allclose(flat(adv - x), -0.1 * SIGNS * np.sign(w), rtol=0, atol=1e-15)
    margin = np.asarray(SIGNS)[:, 0] * ((flat(x) - 0.5) @ w)
    np.testing.assert_allclose(loss(binary(w), adv), np.log1p(np.exp(-margin + 0.1 * abs(w).sum())), rtol=1e-12)


def test_where_the_steps_do_not_reach_the_radius_they_set_the_strength():
    """T1 under the default preset: four steps of 2/255 in a ball of 0.5 go 8/255 far, whatever eps is."""
    w, x = direction(1), images_()
    found = [attack(binary(w), binary(w), x, eps=eps, num_steps=4, step_size=2 / 255) for eps in (0.5, 0.1)]
    np.testing.assert_allclose(flat(found[0] - x), -8 / 255 * SIGNS * np.sign(w), rtol=0, atol=1e-14)
    np.testing.assert_array_equal(*found)


def test_l2_best_perturbation_of_one_linear_network():
    """T1: delta = -eps y w / |w|_2 and the loss log(1 + exp(-m + eps |w|_2)); steps that reach half of eps go half."""
    w, x = direction(1), images_()
    adv = attack(binary(w), binary(w), x, norm="l2", eps=0.2, step_size=0.11)
    unit = -SIGNS * w / np.linalg.norm(w)
    np.testing.assert_allclose(flat(adv - x), 0.2 * unit, rtol=0, atol=1e-9)
    margin = np.asarray(SIGNS)[:, 0] * ((flat(x) - 0.5) @ w)
    np.testing.assert_allclose(loss(binary(w), adv), np.log1p(np.exp(-margin + 0.2 * np.linalg.norm(w))), rtol=1e-9)
    half = attack(binary(w), binary(w), x, norm="l2", eps=0.2, step_ratio=0.5)
    np.testing.assert_allclose(flat(half - x), 0.1 * unit, rtol=0, atol=1e-9)


@pytest.mark.parametrize("weight", [0.01, 1.0, 30.0])
def test_linf_with_disjoint_supports_fools_phi_and_helps_theta(weight):
    """T2: where phi looks the loss of phi rises, where theta looks that of theta falls, for every lambda > 0."""
    phi, theta, x = direction(1, slice(0, 5)), direction(2, slice(5, 12)), images_()
    adv = attack(binary(phi), binary(theta), x, debiased_weight=weight, eps=0.1)
    expected = -0.1 * SIGNS * np.sign(phi) + 0.1 * SIGNS * np.sign(theta)
    np.testing.assert_allclose(flat(adv - x), expected, rtol=0, atol=1e-15)
    assert (loss(binary(phi), adv) > loss(binary(phi), x)).all()
    assert (loss(binary(theta), adv) < loss(binary(theta), x)).all()
    free = attack(binary(phi), binary(theta), x, debiased_weight=0.0, eps=0.1)  # nothing to gain where theta looks
    np.testing.assert_array_equal(flat(free - x)[:, 5:], 0)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_best_perturbation_for_margin_losses(norm):
    """T3: with -y f for the cross-entropy delta follows -y (w_phi - lambda w_theta); with phi = theta nothing moves."""
    margin = lambda logits, labels: -(2 * labels - 1) * (logits[:, 1] - logits[:, 0])
    settings = {"eps": 0.1, "norm": norm, "loss": margin}
    phi, theta, x = direction(1), direction(2), images_()
    v = phi - 0.7 * theta
    along = np.sign(v) if norm == "linf" else v / np.linalg.norm(v)
    adv = attack(binary(phi), binary(theta), x, debiased_weight=0.7, **settings)
    np.testing.assert_allclose(flat(adv - x), -0.1 * SIGNS * along, rtol=0, atol=1e-9)
    same = attack(binary(phi), binary(phi), x, debiased_weight=1.0, **settings)
    np.testing.assert_array_equal(same, x)


def test_one_l2_step_is_along_the_gradient_of_softmax_networks():
    """T4: grad J = W_phi^T (p_phi - e_y) - lambda W_theta^T (p_theta - e_y), to the scale."""
    rng = np.random.default_rng(3)
    phi, theta, labels = rng.normal(size=(5, 12)), rng.normal(size=(5, 12)), np.arange(B) % 5
    x = images_()
    step = {"norm": "l2", "num_steps": 1, "eps": 0.1, "std": 0.5, "labels": labels}
    adv = attack(jnp.asarray(phi), jnp.asarray(theta), x, debiased_weight=0.8, **step)
    softmax = lambda w: np.exp(z := ((flat(x) - 0.5) / 0.5) @ w.T) / np.exp(z).sum(1, keepdims=True)
    error = lambda w: (softmax(w) - np.eye(5)[labels]) @ w
    expected = error(phi) - 0.8 * error(theta)
    expected *= 0.1 / np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(flat(adv - x), expected, rtol=0, atol=1e-8)


def test_l2_with_disjoint_supports_finds_the_best_angle():
    """T5: delta = eps (cos t a + sin t b) for the two gradients' directions a, b; a grid over t is the reference."""
    phi, theta, x = 3 * direction(1, slice(0, 5)), 2 * direction(2, slice(5, 12)), images_()
    adv = attack(binary(phi), binary(theta), x, debiased_weight=0.9, norm="l2", eps=0.4, num_steps=100, step_ratio=3.0)
    total = lambda images: loss(binary(phi), images) - 0.9 * loss(binary(theta), images)
    away, towards = -SIGNS * phi / np.linalg.norm(phi), SIGNS * theta / np.linalg.norm(theta)
    angles = np.linspace(0, np.pi / 2, 2001)[:, None, None]
    grid = flat(x) + 0.4 * (np.cos(angles) * away + np.sin(angles) * towards)
    best = np.max([total(np.asarray(points)) for points in grid], axis=0)
    np.testing.assert_allclose(total(adv), best, rtol=0, atol=1e-3)
    assert (total(adv) <= best + 1e-6).all()


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
    if "random" not in ball:
        np.testing.assert_array_equal(two_layers(x, **fields | {"num_steps": 0}), x)
        order = np.array([3, 1, 5, 0, 2, 4])
        np.testing.assert_allclose(two_layers(x[order], LABELS[order], **fields), adv[order], rtol=0, atol=1e-13)
        np.testing.assert_allclose(two_layers(x[:2], LABELS[:2], **fields), adv[:2], rtol=0, atol=1e-13)


@pytest.mark.parametrize("ball", ["random start", "random"])
def test_draws_belong_to_the_key_and_the_image(ball):
    x, fields = images_(0.4, 0.6), BALLS[ball]
    adv = two_layers(x, **fields)
    np.testing.assert_array_equal(two_layers(x, **fields), adv)
    some = jnp.array([4, 1])
    np.testing.assert_array_equal(two_layers(x[some], LABELS[some], index=some, **fields), adv[some])
    assert (two_layers(x, key=jax.random.key(1), **fields) != adv).any()


def test_small_steps_raise_the_objective():
    """T6: J(x_adv) >= J(x), and with lambda the loss of theta is lower than without."""
    x = images_(0.2, 0.8)
    network = Toy(smooth, mean=0.5, std=STD)

    def loss_of(params, images):
        log_p = jax.nn.log_softmax(network.apply(params, 0, images).logits)
        return -np.take_along_axis(np.asarray(log_p), np.asarray(LABELS)[:, None], 1)[:, 0]

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


def normalized_walk(x, eps, step, steps):
    """Sign ascent written in the space of the network's input: (x - mean) / std, its box mapped there too."""
    std, (phi, theta) = np.asarray(STD), nets()
    mapped = lambda images: (images - 0.5) / std

    def objective(z):
        of = lambda params: jax.nn.log_softmax(smooth(params, z.reshape(len(z), -1), None))[jnp.arange(B), LABELS]
        return (-of(phi) + 0.5 * of(theta)).sum()

    gradient, start = jax.jit(jax.grad(objective)), mapped(x)
    z = start
    for _ in range(steps):
        z = start + jnp.clip(z + step * jnp.sign(gradient(z)) - start, -eps, eps)
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
    assert (np.sign(delta) == -np.asarray(SIGNS) * np.sign(w)).all()


@pytest.mark.parametrize("attack_norm", ["auxiliary", "main"])
@pytest.mark.parametrize("batch_norm", ["eval", "train"])
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
