"""LfF by hand: losses that are chosen, so that every weight and the loss are known numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jrobust.errors import InputError
from jrobust.methods.lff import LfF
from tests.methods.networks import BatchNormed, Toy, linear
from tests.training.toy import same

# The lead of class 1 in theta is the first number of an image, in phi the second.
PARAMS = {"debiased": np.array([[0.0, 0.0], [1.0, 0.0]]), "biased": np.array([[0.0, 0.0], [0.0, 1.0]])}
STATE = {"debiased": 0, "biased": 0}
KEY = jax.random.key(0)


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


def batch(index, labels, debiased, biased):
    """Images whose cross-entropies are these: log(1 + exp(-m)) = loss for a margin m = -log(exp(loss) - 1)."""
    leads = -np.log(np.expm1(np.array([debiased, biased]))) * (2 * np.array(labels) - 1)
    return {"image": jnp.asarray(leads.T[:, None, None]), "label": jnp.array(labels), "index": jnp.array(index)}


def step(method, state, rows):
    return jax.jit(lambda state, rows: method.terms(PARAMS, state, rows, KEY))(state, rows)


def method_of(**fields):
    return LfF(Toy(linear), **{"num_examples": 4} | fields)


def fresh(method):
    losses = LfF(BatchNormed(), num_examples=4).init(KEY, {}).state["losses"]
    return STATE | ({"losses": losses} if method.weight == "ema_classmax" else {})


def test_two_steps_by_hand():
    method = method_of()
    terms = step(method, fresh(method), batch([0, 1], [0, 0], [2.0, 4.0], [1.0, 8.0]))
    # First visits: over the maxima of their class 1/2, 1 (theta) and 1/8, 1 (phi): W = 1/5, 1/2.
    np.testing.assert_allclose(terms.adv_weights, [0.8, 0.5], rtol=1e-6)
    biased = 0.7 * (np.exp(-0.7) * 1 + np.exp(-5.6) * 8) / 2
    np.testing.assert_allclose(terms.loss, (0.2 * 2 + 0.5 * 4) / 2 + biased, rtol=1e-6)
    found = {name: float(value) for name, value in terms.metrics.items()}
    expected = {"cross_entropy": 3.0, "biased_cross_entropy": 4.5, "weight": 0.35, "train_accuracy": 0.0}
    assert found == pytest.approx(expected, rel=1e-6)
    # Theta of image 0: .7 * 2 + .3 * 1 = 1.7 of 4, which is image 1's, not in this batch; phi: .7 * 1 + .3 * 10 of 8.
    terms = step(method, terms.state, batch([2, 0], [1, 0], [0.5, 1.0], [9.0, 10.0]))
    np.testing.assert_allclose(terms.adv_weights, [0.5, 0.425 / 0.8875], rtol=1e-6)
    table = terms.state["losses"].value
    np.testing.assert_allclose(table.debiased, [1.7, 4, 0.5, 0], rtol=1e-6)
    np.testing.assert_allclose(table.biased, [3.7, 8, 9, 0], rtol=1e-6)
    assert terms.state["debiased"] == terms.state["biased"] == 2  # train-mode passes: one of each network a step


def test_another_alpha():
    method = method_of(alpha=0.0)  # remembers nothing
    terms = step(method, fresh(method), batch([0, 1], [0, 0], [2.0, 4.0], [1.0, 8.0]))
    terms = step(method, terms.state, batch([0], [0], [6.0], [2.0]))
    np.testing.assert_allclose(terms.adv_weights, [1 - 0.25 / 1.25], rtol=1e-6)


def test_the_formula_in_print():
    method = method_of(weight="instant", num_examples=0, gce_form="value", q=0.5)
    terms = step(method, STATE, batch([0, 1], [0, 1], [2.0, 4.0], [1.0, 8.0]))
    np.testing.assert_allclose(terms.adv_weights, [2 / 3, 1 / 3], rtol=1e-6)
    biased = (2 * (1 - np.exp(-0.5)) + 2 * (1 - np.exp(-4.0))) / 2
    np.testing.assert_allclose(terms.loss, (2 / 3 + 8 / 3) / 2 + biased, rtol=1e-6)
    assert set(terms.state) == {"debiased", "biased"}


@pytest.mark.parametrize("weight", ["instant", "ema_classmax"])
def test_equal_losses_weigh_one_half_and_biased_ones_nothing(weight):
    """T12: w_adv is beta / 2 where both networks find an image equally hard, 0 where the biased one alone fails."""
    method, losses = method_of(weight=weight), [0.5, 3.0, 1.0, 0.2]
    rows = batch([0, 1, 2, 3], [0, 1, 0, 1], losses, losses)
    np.testing.assert_allclose(step(method, fresh(method), rows).adv_weights, 0.5, rtol=1e-6)
    rows = batch([0, 1, 2, 3], [0, 1, 0, 1], [1e-5, 1e-5, 9.0, 9.0], [9.0, 9.0, 1e-5, 1e-5])
    np.testing.assert_allclose(step(method, fresh(method), rows).adv_weights, [0, 0, 1, 1], atol=1e-5)


def test_the_table_starts_empty_and_only_where_it_is_used():
    network = BatchNormed()
    params, state = LfF(network, num_examples=5).init(KEY, {})
    assert set(params) == {"debiased", "biased"} and set(state) == {"debiased", "biased", "losses"}
    table = state["losses"].value
    assert table.debiased.shape == table.biased.shape == (5,) and (table.label == -1).all()
    assert table.debiased.dtype == table.biased.dtype == jnp.float32 and not np.any((table.debiased, table.biased))
    assert set(LfF(network, weight="instant").init(KEY, {}).state) == {"debiased", "biased"}
    assert not same(params["debiased"], params["biased"])
    with pytest.raises(InputError, match="their number is missing"):
        LfF(network)
