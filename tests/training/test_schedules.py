import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jrobust.training import optimizers, schedules


def rates(total, **fields):
    section = {"learning_rate": 5e-5, **optimizers.ADDED} | fields
    return schedules.build(section, steps_per_epoch=1, total_steps=total)


def cosine(total, warmup, **fields):
    return rates(total, schedule="cosine", warmup_steps=warmup, **fields)


@pytest.mark.parametrize("total", [3900, 1950])
def test_a_warm_up_of_1000_steps_and_a_cosine(total):
    found = cosine(total, 1000)
    expected = {
        0: 5e-8,
        499: 2.5e-5,
        999: 5e-5,
        1000: 5e-5,
        (total + 1000) // 2: 2.5e-5,
        total - 1: 2.5e-5 * (1 - np.cos(np.pi / (total - 1000))),
        total: 0.0,
    }
    for step, rate in expected.items():
        assert found.host(step) == pytest.approx(rate, rel=1e-9, abs=1e-20)
    assert found.beta1 is None


def test_a_warm_up_of_500_steps_and_a_cosine():
    """The published recipe: 3e-5 over 24,820 steps."""
    found = cosine(24_820, 500, learning_rate=3e-5)
    middle, last = 15e-6 * (1 + np.cos(np.pi * 1 / 24_320)), 15e-6 * (1 + np.cos(np.pi * 24_319 / 24_320))
    for step, rate in {0: 6e-8, 499: 3e-5, 500: 3e-5, 501: middle, 24_819: last}.items():
        assert found.host(step) == pytest.approx(rate, rel=1e-6)


def test_without_warm_up_and_with_nothing_else():
    found = cosine(4, 0)
    np.testing.assert_allclose(
        [found.host(k) / 5e-5 for k in range(5)], [1, 0.5 + 0.5**1.5, 0.5, 0.5 - 0.5**1.5, 0], atol=1e-15
    )
    only = cosine(3, 1000)
    np.testing.assert_allclose([only.host(k) for k in range(3)], [5e-8, 1e-7, 1.5e-7])


def test_one_cycle_is_optaxs_and_ends_where_it_should():
    total = 24_820
    found, theirs = (
        rates(total, schedule="one_cycle", learning_rate=3e-5),
        optax.cosine_onecycle_schedule(total, 3e-5, 0.02, 25, 1e4),
    )
    steps = np.arange(0, total, 31)
    ours = np.array([found.host(step) for step in steps])
    np.testing.assert_allclose(ours, jax.vmap(theirs)(steps), atol=1e-7)  # whose phases are a step longer
    assert found.host(0) == pytest.approx(1.2e-6) and found.host(total - 1) == pytest.approx(1.2e-10)
    assert max(map(found.host, range(490, 500))) == pytest.approx(3e-5, rel=1e-5)
    betas = jax.vmap(found.beta1)(np.array([0, 495, total - 1]))
    np.testing.assert_allclose(betas, [0.95, 0.85, 0.95], atol=1e-5)
    assert rates(total, schedule="one_cycle", cycle_beta1=False).beta1 is None


@pytest.mark.parametrize("total", [1, 2, 20, 50, 51, 100, 101])
def test_short_runs_have_rates(total):
    """50 steps have their peak at step 0, where a rise has no length."""
    found = rates(total, schedule="one_cycle", learning_rate=1.0)
    values = [found.host(step) for step in range(total)]
    assert all(0 < value <= 1 for value in values)
    if total > 1:
        assert values[-1] == pytest.approx(4e-6, rel=1e-9)
    if total == 50:
        assert values[0] == 1


@pytest.mark.parametrize(
    "total, fields",
    [
        (3900, {"schedule": "cosine", "warmup_steps": 1000}),
        (24_820, {"schedule": "cosine", "warmup_steps": 500}),
        (2, {"schedule": "cosine", "warmup_steps": 5}),
        (24_820, {"schedule": "one_cycle"}),
        (50, {"schedule": "one_cycle"}),
        (9, {"schedule": "steps", "drop_epochs": (4,), "drop_factors": (0.1,)}),
    ],
)
def test_the_rate_in_the_log_is_that_of_the_update(total, fields):
    found = rates(total, **fields)
    steps = np.unique(np.linspace(0, total - 1, 50).astype(np.int32))
    host = [found.host(step) for step in steps.tolist()]
    np.testing.assert_allclose(jax.vmap(found.device)(steps), host, rtol=1e-5)


def test_the_first_update_has_the_first_rate_and_beta():
    """Steps begin at 0, and b1 of a step is in its own correction: a constant gradient is followed exactly."""
    section = {"name": "adamw", "learning_rate": 1.0, "weight_decay": 0.0, "betas": (0.0, 0.0), "epsilon": 1e-30}
    section |= {"fast_layers": (), "fast_factor": 1.0, "schedule": "one_cycle"}
    optimizer = optimizers.build(section, {"w": jnp.ones(1)}, steps_per_epoch=1, total_steps=200)
    params, state = {"w": jnp.ones(1)}, optimizer.tx.init({"w": jnp.ones(1)})
    betas = [0.95, 0.95 - 0.1 * np.sin(np.pi / 6) ** 2]  # 200 steps rise for 3
    moment = 0.0
    for step, (beta, gradient) in enumerate(zip(betas, (1.0, 3.0), strict=True)):
        updates, state = optimizer.tx.update({"w": jnp.array([gradient])}, state, params)
        moment = beta * moment + (1 - beta) * gradient
        expected = -optimizer.learning_rate(step) * moment / (1 - beta ** (step + 1)) / gradient
        np.testing.assert_allclose(updates["w"], expected, rtol=1e-5)
