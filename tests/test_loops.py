import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jrobust import loops


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.int32])
def test_what_comes_after_is_what_it_was(dtype):
    """Bit for bit, whatever was computed before."""
    x = jnp.asarray([-0.0, 1.5, jnp.inf, jnp.nan, -3.0]).astype(dtype)
    later = jax.jit(lambda x, *done: loops.after(x, *done, unroll=True))
    for before in (0.0, -0.0, 1.0, -jnp.inf, jnp.inf, jnp.nan, -jnp.nan):
        found = later(x, jnp.float32(before), jnp.full((2, 1), before))
        assert found.dtype == dtype and found.shape == (2, 5)
        assert (np.asarray(found).view(np.uint8) == np.asarray(jnp.stack([x, x])).view(np.uint8)).all()
    assert loops.after(x, jnp.zeros(5), unroll=False) is x


def test_elements():
    tree = {"b": jnp.arange(6.0).reshape(2, 3) + 4, "a": jnp.float32(7)}
    assert [float(element) for element in loops.elements(tree)] == [7, 4]


def test_a_loop_of_one_trip_is_none_where_loops_are_unrolled():
    def scan(unroll):
        def run(start, xs):
            return loops.scan(lambda total, x: (total + x["x"], total * x["x"]), start, {"x": xs}, unroll=unroll)

        return jax.jit(run)

    start, xs = jnp.float32(2), jnp.asarray([[5.0, 7.0]])
    for unroll in (False, True):
        total, each = scan(unroll)(jnp.full(2, start), xs)
        np.testing.assert_array_equal(total, [7, 9])
        np.testing.assert_array_equal(each, [[10, 14]])
    text = scan(True).lower(jnp.full(2, start), xs).as_text()
    assert "while" not in text and "while" in scan(False).lower(jnp.full(2, start), xs).as_text()
