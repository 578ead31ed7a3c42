"""Linear probing: what is trained and what stays, on a CLIP with one matrix a patch."""

import jax
import numpy as np
import optax
import pytest

from jrobust import methods
from jrobust.errors import InputError
from jrobust.methods.linear_probe import LinearProbe
from jrobust.models.clip import CLIP
from jrobust.models.clip.zero_shot import ZeroShot
from jrobust.replicated import Replicated
from jrobust.training.method import Variables
from tests.methods.flat_clip import log_softmax, train, unit
from tests.methods.patched_clip import CLASSES, SHAPE, SIZES, batch, features, logits, model


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


def test_the_head_is_trained_and_the_tower_stays_to_the_bit():
    """Devices do not matter; the optimizer has moments of the head alone."""
    batches = [batch(8, seed) for seed in range(3)]
    states, metrics = train(LinearProbe(model()), batches, optax.adamw(1e-2))
    first, last = states[0], states[-1]
    np.testing.assert_array_equal(first.state["tower"].value["kernel"], last.state["tower"].value["kernel"])
    assert set(last.params) == {"head"} and np.abs(last.params["head"]["kernel"] - first.params["head"]["kernel"]).min()
    moments = {leaf.shape for leaf in jax.tree.leaves(last.opt_state) if leaf.ndim}
    assert moments == {leaf.shape for leaf in jax.tree.leaves(last.params)}
    (*_, other), _ = train(LinearProbe(model()), batches, optax.adamw(1e-2), "pmap", 4)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12), last.params, other.params)
    np.testing.assert_array_equal(first.state["tower"].value["kernel"], other.state["tower"].value["kernel"])
    assert all(found["train_accuracy"] <= 1 and found["cross_entropy"] == found["loss"] for found in metrics)


def test_loss_and_gradient_in_numpy():
    method, rows = LinearProbe(model()), batch(8)
    params, state = method.init(jax.random.key(0), {})
    params = {"head": {"kernel": params["head"]["kernel"] * 0.1, "bias": np.arange(CLASSES) * 0.1}}
    (loss, (_, metrics)), gradient = jax.value_and_grad(method.loss, has_aux=True)(
        params, state, rows, jax.random.key(1)
    )
    whole = {"image": state["tower"].value} | params
    scores, one_hot = log_softmax(logits(whole, rows["image"])), np.eye(CLASSES)[rows["label"]]
    assert float(loss) == pytest.approx(float(-(scores * one_hot).sum(1).mean()), rel=1e-10)
    slope = (np.exp(scores) - one_hot) / 8
    np.testing.assert_allclose(gradient["head"]["bias"], slope.sum(0), rtol=1e-8)
    np.testing.assert_allclose(
        gradient["head"]["kernel"], unit(features(whole, rows["image"])).T @ slope, rtol=1e-8, atol=1e-14
    )
    assert float(metrics["train_accuracy"]) == float((scores.argmax(1) == rows["label"]).mean())


def test_what_is_deployed_is_a_whole_network():
    method = LinearProbe(model())
    variables = method.init(jax.random.key(0), {})
    whole = Variables(*model().init(jax.random.key(0)))
    jax.tree.map(np.testing.assert_array_equal, method.deployed(variables), whole)
    np.testing.assert_allclose(
        method.logits(method.deployed(variables), batch()["image"]), logits(whole.params, batch()["image"]), rtol=1e-8
    )
    loaded = Variables(jax.tree.map(lambda leaf: leaf + 1, whole.params), {})
    start = method.start_from(variables, lambda network: loaded if set(network.params) == {"image", "head"} else None)
    assert start.params == {"head": loaded.params["head"]}
    assert start.state == {"tower": Replicated(loaded.params["image"])}


def test_a_config_section():
    assert methods.build({"name": "linear_probe"}, model()) == LinearProbe(model())
    with pytest.raises(InputError, match=r"method 'linear_probe' trains CLIP alone: .*model.head 'linear'"):
        methods.build({"name": "linear_probe"}, ZeroShot(CLIP(SIZES), CLASSES, SHAPE))
