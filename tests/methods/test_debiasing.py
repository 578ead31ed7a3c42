"""ERM, JTT and LfF with BiasAdv, whole steps: the trainer's one update against the printed algorithms' two."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jrobust.methods.biasadv import BiasAdv
from jrobust.methods.erm import ERM
from jrobust.methods.jtt import JTT
from jrobust.methods.lff import LfF
from jrobust.methods.standard import Standard
from jrobust.training import parallel
from jrobust.training import state as train_states
from jrobust.training.method import Variables
from jrobust.training.program import step_over
from tests.methods.algorithms import Algorithm
from tests.methods.networks import BatchNormed
from tests.training.toy import same

N, B, STEPS, RATE = 24, 8, 5, 0.2
NETWORK = BatchNormed()
ATTACK = {"S": 3, "a": 0.03, "eps": 0.07, "lambda": 0.6, "beta": 0.8}
NUMBERS = {"num_steps": 3, "step_size": 0.03, "eps": 0.07, "debiased_weight": 0.6, "adv_weight": 0.8}
BASES = {"erm": ERM, "jtt": JTT, "lff": functools.partial(LfF, num_examples=N)}


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


@functools.cache
def examples():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, NETWORK.classes, N).astype(np.int32)
    images = rng.uniform(0, 0.7, (N, *NETWORK.input_shape))
    images[..., 0] += 0.1 * labels[:, None, None]
    return images, labels


def batches(steps=STEPS):
    """Rows of whole epochs."""
    rng = np.random.default_rng(1)
    return [rows for _ in range(steps) for rows in rng.permutation(N).astype(np.int32).reshape(-1, B)][:steps]


def start(method):
    variables = method.init(jax.random.key(0), {})
    if "auxiliary" in variables.params:  # norms that tell the branches apart from the first step on
        variables.params["auxiliary"] = jax.tree.map(lambda leaf: leaf + 0.3, variables.params["auxiliary"])
        variables.state["auxiliary"] = jax.tree.map(lambda leaf: leaf + 0.2, variables.state["auxiliary"])
    return variables


def train(method, variables, tx=None, mode="jit", devices=1):
    """Return the variables after some steps of the trainer, and the metrics of the last."""
    tx = tx or optax.sgd(RATE)
    images, labels = examples()
    prepare = lambda batch, resident, key: {**batch, **{name: all[batch["index"]] for name, all in resident.items()}}
    mesh = parallel.make_mesh(devices)
    step = parallel.parallelize(step_over(mesh, mode, method, tx, prepare), mesh, mode)
    state, resident, key = (
        step.replicate(tree)
        for tree in (train_states.create(variables, tx), {"image": images, "label": labels}, jax.random.key(1))
    )
    for rows in batches():
        state, metrics = step(state, step.shard({"index": rows}), resident, key)
    return state.variables, metrics


def printed(base, variables, **settings):
    """Return the printed algorithm from the same start."""
    params, state = variables
    phi = (params["biased"], state["biased"]) if base != "jtt" else tuple(state["biased"].value)
    auxiliary = (params["auxiliary"], state["auxiliary"]) if "auxiliary" in params else None
    nets = (params["debiased"], state["debiased"]), phi, auxiliary
    return Algorithm(NETWORK, base, nets, examples()[1], ATTACK, rate=RATE, **settings)


def close(found, expected, tolerance=2e-6):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance), found, expected)


@pytest.mark.parametrize(
    "base, fields, biasadv",
    [("erm", {"gce_form": "value"}, {"auxiliary_norm": False}), ("jtt", {}, {}), ("lff", {}, {})],
    ids=["erm-one-norm", "jtt", "lff"],
)
def test_one_update_of_both_networks_is_the_printed_order(base, fields, biasadv):
    """Over two epochs: parameters, statistics and running losses of every part, hence weights and x_adv."""
    inner = BASES[base](NETWORK, **fields)
    method = BiasAdv(NETWORK, inner, **NUMBERS, **biasadv)
    variables = start(method)
    algorithm = printed(base, variables, gce=fields.get("gce_form", "lff"))
    images, labels = examples()
    for rows in batches():
        adv = algorithm.step(rows, images[rows], labels[rows])
        assert 0.02 < np.abs(adv - images[rows]).max() <= ATTACK["eps"] + 1e-12
    (params, state), _ = train(method, variables)
    close((params["debiased"], state["debiased"]), algorithm.theta)
    if biasadv:
        assert set(params) == {"debiased", "biased"}
    else:
        close((params["auxiliary"], state["auxiliary"]), algorithm.auxiliary)
    if base == "jtt":
        assert "biased" not in params
        assert same(state["biased"].value, variables.state["biased"].value)
    else:
        close((params["biased"], state["biased"]), algorithm.phi)
        assert not same(params["biased"], variables.params["biased"])
    if base == "lff":
        table = state["losses"].value
        close((table.debiased, table.biased), tuple(algorithm.running.losses))
        np.testing.assert_array_equal(table.label, np.where(algorithm.running.visited, labels, -1))
    else:
        assert "losses" not in state


@pytest.mark.parametrize("base", BASES)
def test_without_weight_the_images_change_nothing(base):
    """T13, beta = 0: theta goes the way of the method without BiasAdv to the bit."""
    inner = BASES[base](NETWORK)
    method = BiasAdv(NETWORK, inner, **NUMBERS | {"adv_weight": 0.0, "num_steps": 1}, auxiliary_norm=False)
    tx = optax.sgd(RATE, momentum=0.9)
    variables = start(method)
    with_images, _ = train(method, variables, tx=tx)
    if base == "lff":
        without, _ = train(inner, variables, tx=tx)
        assert same(with_images.params, without.params)
        assert same(with_images.state["losses"], without.state["losses"])
        assert same(with_images.state["biased"], without.state["biased"])
    else:  # the baselines of both are plain training: nothing asks for phi
        without, _ = train(Standard(NETWORK), inner.debiased(variables), tx=tx)
        assert same(with_images.params["debiased"], without.params)


@pytest.mark.parametrize("mode", parallel.MODES)
def test_eight_devices_take_the_same_steps(mode):
    """One image on each: synchronised statistics in both branches and in the attack, and the table to the bit."""
    method = BiasAdv(NETWORK, BASES["lff"](NETWORK), **NUMBERS | {"num_steps": 1}, batch_norm="train")
    found = [train(method, start(method)), train(method, start(method), mode=mode, devices=8)]
    close(*found, tolerance=1e-6)
    tables = [variables.state["losses"] for variables, _ in found]
    assert same(*tables)


def batch_of(rows):
    images, labels = examples()
    return {"image": images[rows], "label": labels[rows], "index": rows}


def gradients(method, variables):
    """The gradient of the first batch, with the next state and the metrics."""
    loss = lambda params: method.loss(params, variables.state, batch_of(batches(1)[0]), jax.random.key(1))
    return jax.jit(jax.grad(loss, has_aux=True))(variables.params)


def test_no_gradient_leaks():
    """phi learns from its own loss alone; theta from x_adv and weights that are numbers, whatever made them."""
    batch = batch_of(batches(1)[0])
    method = BiasAdv(NETWORK, BASES["lff"](NETWORK), **NUMBERS | {"num_steps": 1})
    variables = start(method)
    found, (_, metrics) = gradients(method, variables)

    @jax.jit
    def constants():
        base_key, attack_key, _ = jax.random.split(jax.random.key(1), 3)
        adv = method.perturb(*variables, batch["image"], batch["label"], batch["index"], attack_key)
        return adv, method.base.terms(*variables, batch, base_key).adv_weights

    adv, adv_weights = constants()
    assert adv_weights.max() - adv_weights.min() > 0.3
    assert metrics["weight"] == pytest.approx(1 - float(adv_weights.mean()))

    @jax.jit
    @jax.grad
    def slopes(params):
        def losses(network, stats, x):
            log_p = jax.nn.log_softmax(NETWORK.apply(network, stats, x, train=True).logits)
            return -jnp.take_along_axis(log_p, batch["label"][:, None], 1)[:, 0]

        clean = losses(params["debiased"], variables.state["debiased"], batch["image"])
        perturbed = losses(params["debiased"] | params["auxiliary"], variables.state["auxiliary"], adv)
        own = losses(params["biased"], variables.state["biased"], batch["image"])
        total = jnp.mean((1 - adv_weights) * clean) + 0.8 * jnp.mean(adv_weights * perturbed)
        return total + jnp.mean(1 - jnp.exp(-0.7 * own))  # GCE of the form "lff", by its gradient

    close(found, slopes(variables.params), 1e-7)


def test_main_statistics_know_nothing_of_the_adversarial_images():
    """Neither of x_adv, which theta trains on in norms of its own, nor of the passes of an attack in train mode."""
    method = BiasAdv(NETWORK, BASES["lff"](NETWORK), **NUMBERS | {"num_steps": 1})
    variables = start(method)
    far = dataclasses.replace(method, eps=0.9, step_size=0.5, batch_norm="train")
    (_, (after, _)), (_, (alone, _)) = gradients(far, variables), gradients(method.base, variables)
    for part in ("debiased", "biased", "losses"):
        assert same(after[part], alone[part]), part
    assert not same(after["auxiliary"], variables.state["auxiliary"])


@pytest.mark.parametrize("base", BASES)
def test_evaluation_takes_the_debiased_network_and_its_main_norms(base):
    method = BiasAdv(NETWORK, BASES[base](NETWORK), **NUMBERS)
    variables, (images, _) = start(method), examples()
    expected = NETWORK.apply(variables.params["debiased"], variables.state["debiased"], images).logits
    deployed = method.deployed(variables)
    np.testing.assert_array_equal(method.logits(deployed, images), expected)
    assert same(deployed, Variables(variables.params["debiased"], variables.state["debiased"]))
    assert same(method.base.deployed(variables), deployed)


@pytest.mark.parametrize("base", BASES)
def test_loaded_weights_reach_every_network(base):
    """Both networks and the copy of the norms; JTT's phi comes from its first stage and stays."""
    method = BiasAdv(NETWORK, BASES[base](NETWORK), **NUMBERS)
    fresh = method.init(jax.random.key(0), {})
    loaded = lambda tree: jax.tree.map(lambda leaf: 2 * leaf + 1, tree)
    params, state = method.start_from(fresh, loaded)
    for part in ("debiased", "biased", "auxiliary"):
        if part != "biased" or base != "jtt":
            assert same((params[part], state[part]), loaded((fresh.params[part], fresh.state[part]))), part
    if base == "jtt":
        assert same(state["biased"], fresh.state["biased"])
    if base == "lff":
        assert same(state["losses"], fresh.state["losses"])


def test_the_networks_start_apart_and_the_norms_together():
    params, state = BiasAdv(NETWORK, ERM(NETWORK), **NUMBERS).init(jax.random.key(0), {})
    assert not same(params["debiased"], params["biased"])
    assert same(params["auxiliary"], {"bn": params["debiased"]["bn"]})
    assert same(state["auxiliary"], state["debiased"])
