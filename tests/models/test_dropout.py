import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jrobust.models.dropout import dropout

SHAPE = (8, 5, 5, 3)


def test_kept_values_are_scaled_so_that_the_mean_stays(keys):
    out = np.asarray(dropout(jnp.ones((8, 100, 101)), 0.3, keys, 0))
    values, counts = np.unique(out, return_counts=True)
    np.testing.assert_allclose(values, [0, 1 / 0.7], rtol=1e-4)
    assert counts[0] / out.size == pytest.approx(0.3, abs=0.005)


def test_a_mask_belongs_to_its_example(keys):
    x = jnp.ones(SHAPE)
    whole = dropout(x, 0.5, keys, 2)
    order = np.array([5, 0, 3])
    np.testing.assert_array_equal(dropout(x[:3], 0.5, keys[order], 2), whole[order])
    np.testing.assert_array_equal(jax.jit(lambda x, k: dropout(x, 0.5, k, 2))(x, keys), whole)
    mapped = jax.pmap(lambda x, k: dropout(x, 0.5, k, 2))(x.reshape(4, 2, *SHAPE[1:]), keys.reshape(4, 2))
    np.testing.assert_array_equal(mapped.reshape(SHAPE), whole)


def test_sharding_does_not_change_the_draws(keys):
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    place = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    x = jnp.ones(SHAPE)
    sharded = jax.jit(lambda x, k: dropout(x, 0.5, k, 2))(jax.device_put(x, place), jax.device_put(keys, place))
    np.testing.assert_array_equal(sharded, dropout(x, 0.5, keys, 2))


def test_layers_and_examples_have_different_masks(keys):
    x = jnp.ones(SHAPE)
    first = dropout(x, 0.5, keys, 0)
    assert not np.array_equal(first, dropout(x, 0.5, keys, 1))
    assert len(np.unique(np.asarray(first).reshape(8, -1), axis=0)) == 8


def test_neighbouring_draws_are_independent(keys):
    dropped = np.asarray(dropout(jnp.ones((8, 20000)), 0.5, keys, 0)) == 0
    assert np.mean(dropped[:, ::2] & dropped[:, 1::2]) == pytest.approx(0.25, abs=0.01)  # the halves of a word


@pytest.mark.parametrize("bad", [None, "one", "raw"])
def test_wrong_keys_are_an_error(bad, keys):
    given = {None: None, "one": keys[0], "raw": jax.random.key_data(keys)}[bad]
    with pytest.raises(ValueError, match="key"):
        dropout(jnp.ones(SHAPE), 0.5, given, 0)
