"""Averages of parameters, by hand."""

import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jrobust.errors import InputError
from jrobust.replicated import Replicated
from jrobust.weights.averaging import Tried, greedy, interpolate, uniform


def tree(*numbers):
    return {"a": {"kernel": np.float32([numbers[:2]])}, "b": np.float32(numbers[2:])}


def same(ours, theirs):
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


def test_a_quarter_of_the_way():
    same(interpolate(tree(0, 8, -4), tree(4, 0, 4), 0.25), tree(1, 6, -2))


@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16])
def test_the_ends_are_the_models_to_the_bit(dtype):
    rng = np.random.default_rng(0)
    first, second = ({"w": (rng.normal(size=999) * 10.0 ** rng.integers(-9, 9, 999)).astype(dtype)} for _ in "12")
    same(interpolate(first, second, 0.0), first)
    same(interpolate(first, second, 1.0), second)
    same(interpolate(first, first, 0.3), first)
    same(uniform([first] * 7), first)


def test_device_arrays_in_any_tree():
    first, second = ({"text": Replicated(jnp.full(3, x)), "more": (jnp.ones(2), None)} for x in (1.0, 2.0))
    mixed = interpolate(first, second, 0.5)
    assert isinstance(mixed["text"], Replicated) and isinstance(mixed["text"].value, jax.Array)
    same(mixed, {"text": Replicated(jnp.full(3, 1.5)), "more": (jnp.ones(2), None)})


def test_the_mean_of_many():
    same(uniform([tree(1, 0, 3), tree(2, 0, 3), tree(6, 3, 0)]), tree(3, 1, 2))
    rng = np.random.default_rng(1)
    many = rng.normal(size=(40, 100)).astype(np.float32)
    found = uniform({"w": row} for row in many)["w"]
    np.testing.assert_allclose(found, many.mean(0, dtype=np.float64), atol=2e-7)


def test_small_types_are_summed_in_float32():
    """In bfloat16 the mean of 256 numbers near 1 stays at 1."""
    numbers = np.concatenate([np.ones(128), np.full(128, 1 + 2**-6)])
    found = uniform({"w": jnp.asarray([x], jnp.bfloat16)} for x in numbers)["w"]
    assert found.dtype == jnp.bfloat16 and float(found[0]) == 1 + 2**-7


def test_an_ingredient_is_gone_before_the_next_is_made():
    given = []

    def ingredients():
        for number in range(4):
            assert all(reference() is None for reference in given)
            yield made(number)

    def made(number):
        leaf = np.full(10, number, np.float32)
        given.append(weakref.ref(leaf))
        return {"w": leaf}

    assert uniform(ingredients())["w"][0] == 1.5 and len(given) == 4


def of(*numbers):
    return [lambda number=number: {"w": np.float32([number])} for number in numbers]


def test_greedy_takes_in_order_of_accuracy_what_helps():
    """The mean with 2 is as good as 5 alone, which is not enough; that with 7 is better, then that with -9."""
    table = {7: 0.6, -9: 0.2, 5: 0.9, 2: 0.8} | {3.5: 0.9, 6: 0.95, 1: 0.96}
    asked = []

    def accuracy(tree):
        asked.append(float(tree["w"][0]))
        return table[asked[-1]]

    soup = greedy(of(7, -9, 5, 2), accuracy)
    assert asked == [7, -9, 5, 2, 3.5, 6, 1]
    assert soup.tried == (
        Tried(2, 0.9, 0.9, True),
        Tried(3, 0.8, 0.9, False),
        Tried(0, 0.6, 0.95, True),
        Tried(1, 0.2, 0.96, True),
    )
    assert soup.accuracy == 0.96 and soup.tree["w"] == 1 and soup.tree["w"].dtype == np.float32


def test_greedy_weighs_all_taken_alike_and_keeps_the_order_of_equal_ones():
    soup = greedy(of(0, 6, 0, 2), lambda tree: {0.0: 0.5, 6.0: 0.6, 2.0: 0.5, 3.0: 0.7}.get(float(tree["w"][0]), 0.1))
    assert [tried.position for tried in soup.tried] == [1, 0, 2, 3]
    assert [tried.taken for tried in soup.tried] == [True, True, False, False]
    assert soup.tree["w"] == 3


def test_what_cannot_be_averaged():
    whole = {"w": np.float32([1]), "count": np.int32(3)}
    same(uniform([whole, {"w": np.float32([2]), "count": np.int32(3)}]), {"w": np.float32([1.5]), "count": np.int32(3)})
    with pytest.raises(InputError, match="count is no floating-point number and not the same in all models"):
        uniform([whole, whole | {"count": np.int32(4)}])
    with pytest.raises(InputError, match="ingredient 3 is of another model: one has b, the other has not"):
        uniform([tree(1, 2, 3), tree(1, 2, 3), {"a": tree(1, 2)["a"]}])
    with pytest.raises(InputError, match=r"of another model: b has the shape \(2,\), not \(1,\)"):
        interpolate(tree(1, 2, 3), tree(1, 2, 3, 4), 1.0)
    with pytest.raises(InputError, match=r"the share is 1\.5: expected a number from 0"):
        interpolate(whole, whole, 1.5)
    for nothing in (lambda: uniform([]), lambda: greedy([], len)):
        with pytest.raises(InputError, match="nothing to average"):
            nothing()
