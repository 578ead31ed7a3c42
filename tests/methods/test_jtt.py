"""JTT's bookkeeping: counts of the upsampled set, what the first stage remembers, and that its network is frozen."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jrobust.errors import InputError
from jrobust.methods.biasadv import BiasAdv
from jrobust.methods.jtt import JTT, Identification, upsampled
from jrobust.methods.standard import Standard
from jrobust.training import parallel
from jrobust.training import state as train_states
from jrobust.training.method import Variables
from jrobust.training.program import step_over
from tests.methods.networks import BatchNormed
from tests.training.toy import same

NETWORK = BatchNormed()
N = 24
KEY = jax.random.key(1)
TX = optax.chain(optax.add_decayed_weights(1e-2), optax.adam(3e-2))


@pytest.mark.parametrize("count, extra", [("total", 0), ("extra", 1)])
@pytest.mark.parametrize("wrong", ["some", "none", "all"])
@pytest.mark.parametrize("copies", [1, 4])
def test_one_epoch_holds_the_error_set_so_often(count, extra, wrong, copies):
    wrong = {"some": np.arange(7) % 3 == 1, "none": np.zeros(7, bool), "all": np.ones(7, bool)}[wrong]
    found = collections.Counter(upsampled(wrong, copies, count).tolist())
    assert found == {i: copies + extra if wrong[i] else 1 for i in range(7)}
    assert upsampled(wrong, copies, count).dtype.kind == "i"


def test_the_papers_count_is_the_default():
    assert len(upsampled(np.array([True, False]), 50)) == 51
    with pytest.raises(InputError, match=r"jtt.copies is 0: expected at least 1"):
        upsampled(np.array([True]), 0)


def data():
    rng = np.random.default_rng(0)
    images = rng.uniform(0, 1, (N, *NETWORK.input_shape)).astype(np.float32)
    return {"image": images, "label": rng.integers(0, NETWORK.classes, N).astype(np.int32)}


def gather(batch, resident, key):
    return {"index": batch["index"], **{name: array[batch["index"]] for name, array in resident.items()}}


def run(make, rows, *, mode="jit", devices=1, start=None):
    """Train with Adam and decay; return the variables before and after."""
    method, mesh = make(BatchNormed()), parallel.make_mesh(devices)
    step = parallel.parallelize(step_over(mesh, mode, method, TX, gather), mesh, mode)
    start = start or method.init(jax.random.key(0), {})
    state, resident, key = (step.replicate(tree) for tree in (train_states.create(start, TX), data(), KEY))
    for index in rows:
        state, _ = step(state, step.shard({"index": index}), resident, key)
    return start, state.variables


def test_the_first_stage_remembers_its_newest_train_mode_predictions():
    """Every image but the last eight often, so that some are learnt; a record of the steps' own predictions."""
    rows = np.random.default_rng(1).permutation(np.arange(16, dtype=np.int32)).reshape(2, 8)
    rows = [*rows] * 6
    make = lambda network: Identification(network, num_examples=N)
    before, (params, state) = run(make, rows)
    expected, ever, arrays = np.zeros(N, bool), np.zeros(N, bool), jax.tree.map(jnp.asarray, data())
    plain, stats, moments = before.params, before.state["network"], TX.init(before.params)

    @jax.jit
    def step(params, stats, moments, index):
        batch = gather({"index": index}, arrays, None)
        slopes, (new_stats, _) = jax.grad(Standard(NETWORK).loss, has_aux=True)(params, stats, batch, KEY)
        updates, moments = TX.update(slopes, moments, params)
        logits = NETWORK.apply(params, stats, batch["image"], train=True).logits
        return optax.apply_updates(params, updates), new_stats, moments, jnp.argmax(logits, 1) != batch["label"]

    for index in rows:
        plain, stats, moments, expected[index] = step(plain, stats, moments, index)
        ever |= expected
    np.testing.assert_array_equal(state["wrong"], expected)
    assert 0 < expected.sum() < ever.sum() and not ever[16:].any()
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), (params, state["network"]), (plain, stats))
    spread = run(make, rows, mode="pmap", devices=8)[1]
    assert same(spread.state["wrong"], state["wrong"])


def test_the_first_stage_deploys_the_network_alone():
    method = Identification(NETWORK, num_examples=N)
    variables = method.init(jax.random.key(0), {})
    assert same(method.deployed(variables), Variables(variables.params, variables.state["network"]))
    assert not variables.state["wrong"].any() and variables.state["wrong"].shape == (N,)
    loaded = method.start_from(variables, lambda network: jax.tree.map(jnp.ones_like, network))
    assert all((leaf == 1).all() for leaf in jax.tree.leaves(method.deployed(loaded)))
    assert same(loaded.state["wrong"], variables.state["wrong"])
    images = data()["image"]
    expected = NETWORK.apply(variables.params, variables.state["network"], images).logits
    np.testing.assert_array_equal(method.logits(method.deployed(variables), images), expected)


def second_stage(network):
    return BiasAdv(network, JTT(network), 0.5, 1.0, eps=0.1, num_steps=1)


def test_the_second_stage_keeps_the_first_ones_network():
    """phi is what was given, to the bit: no decay, and no mean over three devices, which would round."""
    first = Variables(*NETWORK.init(jax.random.key(7)))
    make = lambda network: BiasAdv(network, JTT(network), 0.5, 1.0, eps=0.1, num_steps=1)
    method = make(NETWORK)
    fresh = method.init(jax.random.key(0), {})
    start = method.base.with_biased(fresh, first)
    assert same(start.params, fresh.params) and set(start.params) == {"debiased", "auxiliary"}
    assert same({**start.state, "biased": fresh.state["biased"]}, fresh.state)
    _, (params, state) = run(make, np.arange(N, dtype=np.int32).reshape(2, 12), mode="pmap", devices=3, start=start)
    assert same(state["biased"].value, first)
    assert not same(params["debiased"], start.params["debiased"])
