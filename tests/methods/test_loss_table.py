"""LfF's running losses: a table by hand, a plain NumPy reference, and the same bits on any number of devices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jrobust.methods.loss_table import LossTable, relative_difficulty
from jrobust.training import parallel
from tests.methods.algorithms import RunningLosses

N, K, ALPHA = 48, 5, 0.7


def epochs(count, batch, seed=0):
    """Rows, labels and losses of theta and phi of each step; the last batch of an epoch is partial, padded with N."""
    rng = np.random.default_rng(seed)
    classes = rng.integers(0, K, N).astype(np.int32)
    for _ in range(count):
        order = rng.permutation(N)
        for start in range(0, N, batch):
            rows = order[start : start + batch]
            yield classes, rows, rng.gamma(0.7, 1.0, (2, len(rows))).astype(np.float32)


def padded(classes, rows, losses, batch):
    """What a step of fixed shape gets: rows of padding have index N, and labels and losses that must not matter."""
    short = batch - len(rows)
    index = np.pad(rows, (0, short), constant_values=N).astype(np.int32)
    labels = np.pad(classes[rows], (0, short), constant_values=K - 1)
    return index, labels, *np.pad(losses, ((0, 0), (0, short)), constant_values=np.float32(1e9))


update = jax.jit(LossTable.update, static_argnums=5)
difficulty = jax.jit(LossTable.difficulty, static_argnums=3)


def test_two_steps_by_hand():
    table = LossTable.empty(4)
    # First visits store the losses: d = 2, 4 and b = 1, 8 in class 0. Over their maxima: d .5, 1 and b .125, 1.
    index, labels = jnp.array([0, 1]), jnp.array([0, 0])
    table = update(table, index, labels, jnp.array([2.0, 4.0]), jnp.array([1.0, 8.0]), ALPHA)
    np.testing.assert_allclose(difficulty(table, index, labels, 2), [0.125 / 0.625, 0.5], rtol=1e-6)
    # Image 0 again: d = .7 * 2 + .3 * 1 = 1.7, b = .7 * 1 + .3 * 10 = 3.7. Its class' maxima 4 and 8 are image 1's, who
    # is not in this batch: 3.7 / 8 = .4625 against 1.7 / 4 = .425. Image 2 is alone in its class: 1 against 1.
    index, labels = jnp.array([0, 2]), jnp.array([0, 1])
    table = update(table, index, labels, jnp.array([1.0, 0.5]), jnp.array([10.0, 90.0]), ALPHA)
    np.testing.assert_allclose(difficulty(table, index, labels, 2), [0.4625 / 0.8875, 0.5], rtol=1e-6)
    np.testing.assert_allclose(table.debiased, [1.7, 4, 0.5, 0], rtol=1e-6)
    np.testing.assert_allclose(table.biased, [3.7, 8, 90, 0], rtol=1e-6)
    assert table.label.tolist() == [0, 0, 1, -1]


def test_a_loss_of_zero_is_a_visit():
    one = jnp.array([0])
    table = update(LossTable.empty(1), one, one, jnp.zeros(1), jnp.ones(1), ALPHA)
    table = update(table, one, one, jnp.ones(1), jnp.zeros(1), ALPHA)
    np.testing.assert_allclose((table.debiased[0], table.biased[0]), (0.3, 0.7), rtol=1e-6)


@pytest.mark.parametrize("batch", [11, 48])
def test_five_epochs_are_the_references(batch):
    table, reference = LossTable.empty(N), None
    for classes, rows, losses in epochs(5, batch):
        reference = reference or RunningLosses(classes, ALPHA)
        expected = reference.weights(rows, losses)
        index, labels, debiased, biased = padded(classes, rows, losses, batch)
        table = update(table, index, labels, debiased, biased, ALPHA)
        weights = difficulty(table, index, labels, K)
        np.testing.assert_allclose(weights[: len(rows)], expected, rtol=0, atol=1e-6)
        assert (weights[len(rows) :] == 0).all()  # padding has no weight
        np.testing.assert_allclose(table.debiased, reference.losses[0], rtol=1e-6)
        np.testing.assert_allclose(table.biased, reference.losses[1], rtol=1e-6)
        np.testing.assert_array_equal(table.label, np.where(reference.visited, classes, -1))
    assert reference.visited.all()
    assert (table.debiased.dtype, table.biased.dtype, table.label.dtype) == (jnp.float32, jnp.float32, jnp.int32)


def test_extreme_losses_give_weights_between_0_and_1():
    index, labels = jnp.arange(4), jnp.array([0, 0, 1, 2])
    debiased, biased = jnp.array([0.0, 0.0, 1e30, 1e-37]), jnp.array([0.0, 5.0, 0.0, 1e30])
    table = update(LossTable.empty(4), index, labels, debiased, biased, ALPHA)
    weights = difficulty(table, index, labels, 3)
    np.testing.assert_allclose(weights, [0, 1, 0, 0.5], atol=1e-6)  # 0 of 0, 5 of 5, 0 of 0, 1 of 1 against 1 of 1


def test_relative_difficulty():
    """Equal losses weigh one half; where only the biased network fails the weight is 1, and 0 the other way round."""
    found = relative_difficulty(jnp.array([2.0, 7.0, 0.0, 3.0]), jnp.array([2.0, 0.0, 7.0, 1.0]))
    np.testing.assert_allclose(found, [0.5, 1.0, 0.0, 0.75], rtol=1e-6)
    assert relative_difficulty(jnp.zeros(1), jnp.zeros(1))[0] == 0  # not NaN


def table_on(mode, devices, batch=16):
    """Run five epochs on a mesh; return the table and all weights."""

    def step(table, index, labels, debiased, biased):
        rows = index, labels, debiased, biased
        if mode == "pmap":
            rows = jax.lax.all_gather(rows, parallel.AXIS, tiled=True)
        table = table.update(*rows, ALPHA)
        return table, table.difficulty(index, labels, K)

    mesh = parallel.make_mesh(devices)
    if mode == "jit":
        whole, split = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in ((), (parallel.AXIS,)))
        run = jax.jit(step, in_shardings=(whole, *[split] * 4), out_shardings=(whole, split))
    else:
        run = jax.pmap(
            step, parallel.AXIS, in_axes=(None, 0, 0, 0, 0), out_axes=(None, 0), devices=[*mesh.devices.flat]
        )
    table, weights = LossTable.empty(N), []
    for classes, rows, losses in epochs(5, batch):
        arrays = padded(classes, rows, losses, batch)
        if mode == "pmap":
            arrays = [array.reshape(devices, -1) for array in arrays]
        table, found = run(table, *arrays)
        weights.append(np.asarray(found).reshape(-1))
    return [np.asarray(leaf) for leaf in (table.debiased, table.biased, table.label, np.stack(weights))]


single = functools.cache(functools.partial(table_on, "jit", 1))


@pytest.mark.parametrize("mode", parallel.MODES)
def test_given_the_losses_eight_devices_keep_the_bits_of_one(mode):
    for left, right in zip(table_on(mode, 8), single(), strict=True):
        assert left.tobytes() == right.tobytes()
