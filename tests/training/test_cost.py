import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jrobust import loops
from jrobust.training import cost, parallel


def shape(*sizes):
    return jax.ShapeDtypeStruct(sizes, jnp.float32)


def test_a_matrix_product_in_closed_form():
    found = cost.of(jnp.matmul, shape(30, 50), shape(50, 70))
    size = 4 * (30 * 50 + 50 * 70 + 30 * 70)
    assert found.flops == 2 * 30 * 50 * 70
    assert found.bytes == size  # each array is read or written once
    assert found.memory == cost.Memory(4 * (30 * 50 + 50 * 70), 4 * 30 * 70, 0, 0)
    assert found.memory.peak == size


def test_a_convolution_in_closed_form_without_the_zeros_of_its_padding():
    def convolve(images, kernel):
        return jax.lax.conv_general_dilated(
            images, kernel, (1, 1), ((1, 1), (0, 0)), dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    images, kernel = shape(2, 8, 6, 5), shape(3, 3, 5, 7)
    rows = 6 * 3 + 2 * 2  # in a column: six windows of three rows, and one at each end of two
    found = cost.of(convolve, images, kernel)
    assert found.flops == cost.flops(convolve, images, kernel) == 2 * 2 * rows * (4 * 3) * 5 * 7
    assert found.memory.outputs == 4 * 2 * 8 * 4 * 7


def power(x, y):
    return loops.fori_loop(0, 5, lambda i, y: y @ x, y, unroll=False)


@pytest.mark.parametrize("function", [power, jax.jit(power)], ids=["plain", "jitted"])
def test_every_trip_of_a_rolled_loop_is_counted(function):
    x = shape(64, 64)
    assert jax.jit(function).lower(x, x).cost_analysis()["flops"] < 2 * 2 * 64**3  # what would be counted otherwise
    for _ in range(2):  # what has been traced once is in the cache
        found = cost.of(function, x, x)
        assert found.flops == pytest.approx(5 * 2 * 64**3, rel=0.01)
        assert found.bytes == pytest.approx(5 * 3 * 4 * 64**2, rel=0.01)
    assert loops.unrolled(False) is False  # undone


def test_what_is_donated_is_planned_once():
    step = jax.jit(lambda state, x: (state + x, x.sum()), donate_argnums=0)
    plan = cost.of(step, shape(100), shape(100)).memory
    assert (plan.arguments, plan.aliased) == (800, 400)
    assert 404 <= plan.outputs <= 404 + 16  # two pointers
    assert plan.peak == 800 + plan.outputs - 400 + plan.temporaries


def test_many_devices_are_counted_together_and_planned_for_one():
    mesh = parallel.make_mesh(4)
    whole, part = (jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*p)) for p in ((), (parallel.AXIS,)))
    function = jax.jit(jnp.matmul, in_shardings=(part, whole), out_shardings=part)
    found = cost.of(function, shape(40, 50), shape(50, 70))
    assert found.flops == 2 * 40 * 50 * 70
    assert found.bytes == 4 * (40 * 50 + 4 * 50 * 70 + 40 * 70)
    assert found.memory.arguments == 4 * (10 * 50 + 50 * 70)


def test_seconds_are_the_larger_of_the_two_sides():
    rates, both = cost.Rates(100.0, 10.0), cost.Cost(400.0, 20.0, None)
    assert rates.seconds(both) == 4.0
    assert rates.seconds(both, devices=2) == 2.0
    assert rates.seconds(cost.Cost(400.0, 80.0, None)) == 8.0
    assert rates.seconds(cost.Cost(None, None, None)) == 0.0


def test_programs_whose_rates_are_measured_do_what_they_say():
    product, flops = cost.matrix_product("bfloat16", least_seconds=0.0)
    result = product()
    assert flops == 2 * result.shape[0] ** 3 and result.dtype == jnp.bfloat16
    copy, moved = cost.copying(least_seconds=0.0)
    first, second = np.asarray(copy()[:2]), np.asarray(copy()[:2])
    np.testing.assert_array_equal(second, first + 1)
    assert moved == 2 * 2**28 == 2 * copy().nbytes


def test_measured_rates_are_those_of_a_computer():
    rates = cost.measure_rates("float32")
    assert 1e9 < rates.flops_per_second < 1e16
    assert 1e8 < rates.bytes_per_second < 1e14
