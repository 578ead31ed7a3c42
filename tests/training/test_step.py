import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jrobust import loops
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


def quadratic_step(method=None, **options):
    method = method or Quadratic()
    tx = optax.sgd(0.5)

    def prepare(batch, resident, key):
        return {"image": resident[batch["index"]], "draw": jax.random.uniform(key)}

    state = train_states.create(method.init(None, None), tx)
    return make_train_step(method, tx, prepare, **options), state, jnp.arange(10.0)


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


class Order(Quadratic):
    """The state writes down its parts: a digit a part, the sum of its images."""

    def loss(self, params, state, batch, key):
        assert batch["image"].shape == (2,)  # nothing else is prepared
        loss, (_, metrics) = super().loss(params, state, batch, key)
        return loss, ({"count": state["count"] * 100 + batch["image"].sum().astype(jnp.int32)}, metrics)


@pytest.mark.parametrize("rolled", [False, True])
def test_microbatches_by_hand(rolled, monkeypatch):
    monkeypatch.setattr(loops, "unrolled", lambda unroll=None: not rolled)
    step, state, resident = quadratic_step(Order(), microbatches=3)
    batch = {"index": jnp.array([1, 2, 3, 4, 5, 9])}
    state, metrics = jax.jit(step)(state, batch, resident, jax.random.key(0))
    # Parts (1, 4), (2, 5), (3, 9), in this order; theta is 3 for all of them: gradients 0.5, -0.5, -3 have the mean -1.
    assert int(state.state["count"]) == 5_07_12 and int(state.step) == 1
    assert float(state.params["theta"]) == pytest.approx(3.5)
    assert float(metrics["loss"]) == pytest.approx((4 + 1 + 0 + 1 + 4 + 36) / 6 / 2)
    assert float(metrics["gradient_norm"]) == pytest.approx(1.0)
    assert all(value.dtype == jnp.float32 and value.shape == () for value in metrics.values())


def test_microbatches_draw_what_the_whole_batch_draws():
    found = []
    for count in (1, 2):
        step, state, resident = quadratic_step(microbatches=count)
        _, metrics = step(state, {"index": jnp.array([3, 1])}, resident, jax.random.key(0))
        found.append([float(metrics[name]) for name in ("draw", "augment")])
    assert found[1] == pytest.approx(found[0])


def test_sums_of_small_types_are_float32():
    """In bfloat16 256 + 1 is 256: the mean of 300 gradients would stop growing."""

    class Narrow(Quadratic):
        def init(self, key, batch):
            return Variables({"theta": jnp.bfloat16(0)}, {})

        def loss(self, params, state, batch, key):
            return (params["theta"] * batch["image"]).mean(), (state, {})

    step, state, _ = quadratic_step(Narrow(), microbatches=300)
    _, metrics = jax.jit(step)(state, {"index": jnp.zeros(300, jnp.int32)}, jnp.ones(1), jax.random.key(0))
    assert float(metrics["gradient_norm"]) == 1


def test_norm_is_over_all_leaves_in_float32():
    tree = {"a": jnp.full((2, 2), 3.0, jnp.bfloat16), "b": jnp.array([8.0])}
    assert norm(tree).dtype == jnp.float32
    np.testing.assert_allclose(norm(tree), 10.0)
