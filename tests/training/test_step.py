import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jrobust.training import state as train_states
from jrobust.training.method import Variables
from jrobust.training.step import make_train_step, norm


class Quadratic:
    """L = mean over examples of (theta - x)^2 / 2 + u, with a random u: gradient theta - mean(x)."""

    def init(self, key, batch):
        return Variables({"theta": jnp.float32(3.0)}, {"count": jnp.int32(0)})

    def loss(self, params, state, batch, key):
        loss = jnp.mean((params["theta"] - batch["image"]) ** 2) / 2
        return loss, ({"count": state["count"] + 1}, {"draw": jax.random.uniform(key), "augment": batch["draw"]})


def quadratic_step(method=None):
    method = method or Quadratic()
    tx = optax.sgd(0.5)

    def prepare(batch, resident, key):
        return {"image": resident[batch["index"]], "draw": jax.random.uniform(key)}

    state = train_states.create(method.init(None, None), tx)
    return make_train_step(method, tx, prepare), state, jnp.arange(10.0)


def test_one_step_by_hand():
    step, state, resident = quadratic_step()
    state, metrics = step(state, {"index": jnp.array([1, 3])}, resident, jax.random.key(0))
    # theta 3, mean(x) 2: gradient 1, update -0.5, loss ((3-1)^2 + 0)/4.
    assert float(state.params["theta"]) == 2.5
    assert int(state.step) == 1 and int(state.state["count"]) == 1
    found = {name: float(metrics[name]) for name in ("loss", "gradient_norm", "parameter_norm", "update_norm")}
    assert found == {"loss": 1.0, "gradient_norm": 1.0, "parameter_norm": 2.5, "update_norm": 0.5}
    assert all(value.dtype == jnp.float32 and value.shape == () for value in metrics.values())


def test_no_draw_is_used_twice():
    step, state, resident = quadratic_step()
    draws = []
    for _ in range(4):
        state, metrics = step(state, {"index": jnp.array([0])}, resident, jax.random.key(0))
        draws += [float(metrics["draw"]), float(metrics["augment"])]
    draws.append(float(jax.random.uniform(jax.random.key(0))))
    assert len(set(draws)) == len(draws)


def test_draws_depend_on_the_step_and_not_on_the_past():
    step, state, resident = quadratic_step()
    late = train_states.TrainState(jnp.int32(5), state.params, state.state, state.opt_state)
    _, first = step(late, {"index": jnp.array([0])}, resident, jax.random.key(0))
    for _ in range(5):
        state, _ = step(state, {"index": jnp.array([1])}, resident, jax.random.key(0))
    _, second = step(state, {"index": jnp.array([0])}, resident, jax.random.key(0))
    assert float(first["draw"]) == float(second["draw"])


def test_a_method_may_not_shadow_the_trainers_metrics():
    class Shadow(Quadratic):
        def loss(self, params, state, batch, key):
            loss, (state, _) = super().loss(params, state, batch, key)
            return loss, (state, {"gradient_norm": loss})

    step, state, resident = quadratic_step(Shadow())
    with pytest.raises(ValueError, match="gradient_norm"):
        step(state, {"index": jnp.array([0])}, resident, jax.random.key(0))


def test_norm_is_over_all_leaves_in_float32():
    tree = {"a": jnp.full((2, 2), 3.0, jnp.bfloat16), "b": jnp.array([8.0])}
    assert norm(tree).dtype == jnp.float32
    np.testing.assert_allclose(norm(tree), 10.0)
