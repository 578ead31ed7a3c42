import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jrobust.models.activation import activation


def test_softplus_and_its_derivatives_at_zero():
    f = lambda t: activation(t, 50.0)
    zero = jnp.float32(0)
    assert f(zero) == pytest.approx(0.0138629, rel=1e-5)  # log 2 / 50
    assert jax.grad(f)(zero) == pytest.approx(0.5)
    assert jax.grad(jax.grad(f))(zero) == pytest.approx(12.5)  # 50 / 4


def test_softplus_has_the_derivatives_of_its_definition():
    x = jnp.linspace(-30, 30, 121)
    with jax.enable_x64(True):
        x = jnp.asarray(x, jnp.float64) / 50
        f, definition = lambda t: activation(t, 50.0), lambda t: jnp.log1p(jnp.exp(50 * t)) / 50
        for _ in range(3):
            np.testing.assert_allclose(jax.vmap(f)(x), jax.vmap(definition)(x), rtol=1e-9, atol=1e-9)
            f, definition = jax.grad(f), jax.grad(definition)


def test_relu_has_derivative_zero_at_zero():
    np.testing.assert_array_equal(jax.vmap(jax.grad(activation))(jnp.array([-1.0, 0.0, 1.0])), [0, 0, 1])


def test_softplus_tends_to_relu_and_stays_finite():
    x = jnp.linspace(-100, 100, 2001).at[1000].set(0)
    gaps = [float(jnp.max(jnp.abs(activation(x, beta) - activation(x)))) for beta in (5.0, 50.0, 500.0)]
    np.testing.assert_allclose(gaps, [np.log(2) / beta for beta in (5, 50, 500)], rtol=1e-3)
    for order in range(3):
        f = lambda t: activation(t, 50.0)
        for _ in range(order):
            f = jax.grad(f)
        assert np.isfinite(jax.vmap(f)(x)).all()


def test_bfloat16_keeps_its_dtype_and_is_computed_wide():
    x = jnp.linspace(-0.2, 0.2, 65).astype(jnp.bfloat16)
    out = activation(x, 50.0)
    assert out.dtype == jnp.bfloat16
    np.testing.assert_array_equal(out, activation(x.astype(jnp.float32), 50.0).astype(jnp.bfloat16))
