"""The FSR module: its mask, its definition, and every way to separate."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jrobust.models import fsr
from jrobust.models.fsr import FSR, ConvNet, Separation, gumbel_mask, gumbel_noise, logistic_noise
from jrobust.models.layers import he_fan_out

CALL = {"train": False, "mask_mode": "mean"}
SIZE = (2, 5, 6, 8)  # of a feature map: not square


@pytest.fixture(scope="module")
def feature_map():
    return jax.nn.relu(jax.random.normal(jax.random.key(0), SIZE) + 0.3)


def start(module, f):
    """Variables of a module: weights at random, statistics away from their start."""
    generator = np.random.default_rng(0)

    def fill(path, leaf):
        fan_in = np.prod(leaf.shape[:-1])
        kernel = generator.normal(size=leaf.shape) * (2 / fan_in) ** 0.5
        return np.float32(kernel if path[-1].key == "kernel" else generator.uniform(0.2, 1, leaf.shape))

    return jax.tree_util.tree_map_with_path(
        fill, jax.eval_shape(lambda key: module.init(key, f, **CALL), jax.random.key(0))
    )


@functools.partial(jax.jit, static_argnums=0, static_argnames=("train", "mask_mode", "mutable"))
def apply(module, variables, f, **call):
    return module.apply(variables, f, **CALL | call)


def keys_of(f, seed=1):
    return jax.random.split(jax.random.key(seed), len(f))


def test_mask_values():
    r = jnp.array([-5, -1, -0.5, -0.1, 0, 0.05, 0.1, 0.5, 1])
    expected = [1.92878e-22, 4.53979e-05, 6.69286e-03, 0.26894, 0.5, 0.62246, 0.73106, 0.99331, 0.99995]
    np.testing.assert_allclose(gumbel_mask(r, 0.1), expected, rtol=2e-5)
    assert gumbel_mask(jnp.float32(0.5), 1.0) == pytest.approx(0.622459, rel=1e-5)


def test_the_mask_saturates_without_nan():
    r = jnp.array([-1e4, -100, -18, 18, 100, 1e4])
    for noise in (gumbel_noise(jnp.float32(0), jnp.float32(1 - 2**-24)), 0.0, logistic_noise(jnp.float32(0))):
        value, gradient = jax.vmap(jax.value_and_grad(lambda r, noise=noise: gumbel_mask(r, 0.1, noise)))(r)
        assert np.isfinite(value).all() and np.isfinite(gradient).all()
    score = lambda r: 0.1 * jax.scipy.special.logit(gumbel_mask(jnp.float32(r), 0.1, -18.0))  # = l1 - l0 + noise
    assert score(17) == pytest.approx(17 - 18, abs=0.4)
    assert score(50) == pytest.approx(-np.log(1e-8) - 18, abs=1e-2)


def test_noise_has_the_laws_of_gumbel_and_logistic_variables():
    u = jax.random.uniform(jax.random.key(0), (3, 200_000))
    levels = np.array([0.01, 0.1, 0.5, 0.9, 0.99])
    expected = np.log(levels / (1 - levels))
    for noise in (gumbel_noise(u[0], u[1]), logistic_noise(u[2])):
        np.testing.assert_allclose(np.quantile(noise, levels), expected, atol=0.06)
        assert jnp.mean(gumbel_mask(0.0, 0.1, noise)) == pytest.approx(0.5, abs=0.01)
    assert gumbel_noise(0.9, 0.5) > 0 > gumbel_noise(0.1, 0.5)  # the first uniform keeps


@pytest.mark.parametrize("noise", ["two_gumbel", "logistic"])
def test_noise_belongs_to_the_example_and_the_module(noise, feature_map):
    module = FSR(3, Separation(hidden=4, noise=noise))
    variables = start(module, feature_map)
    f = jnp.broadcast_to(feature_map[:1], (6, *SIZE[1:]))
    keys = keys_of(f)
    run = lambda f, keys, number: apply(module, variables, f, mask_mode="sample", keys=keys, number=number)
    mask = run(f, keys, 7)[1].mask
    order = np.array([4, 1])
    np.testing.assert_allclose(run(f[:2], keys[order], 7)[1].mask, mask[order], atol=1e-5)
    assert len(np.unique(np.asarray(mask).reshape(6, -1), axis=0)) == 6
    assert not np.array_equal(run(f, keys, 8)[1].mask, mask)
    still = apply(module, variables, f, keys=keys)[1].mask
    np.testing.assert_array_equal(still, apply(module, variables, f)[1].mask)
    assert 0.1 < np.abs(mask - still).mean() < 0.6


def test_the_parts_are_those_of_the_definition(feature_map):
    f, module = feature_map, FSR(3, Separation(hidden=4))
    variables = start(module, f)
    params, stats = variables["params"], variables["batch_stats"]
    net = ConvNet(4, "float32", None, he_fan_out)

    @jax.jit
    def definition(f):
        run = lambda name, x: net.apply({"params": params[name], "batch_stats": stats[name]}, x, False, None)
        mask = gumbel_mask(run("sep", f), module.settings.tau)
        non_robust = (1 - mask) * f
        return mask, mask * f, non_robust, non_robust + (1 - mask) * run("rec", non_robust)

    mask, *parts = definition(f)
    assert 0.1 < mask.mean() < 0.9
    out, aux = apply(module, variables, f)
    np.testing.assert_allclose(aux.mask, mask, atol=1e-5)
    np.testing.assert_allclose(out, parts[0] + parts[2], atol=1e-5)
    for found, part in zip(aux, parts, strict=False):
        expected = np.mean(part, (1, 2)) @ params["aux"]["kernel"] + params["aux"]["bias"]
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_module_takes_maps_of_any_size(feature_map):
    module = FSR(3, Separation(hidden=4))
    variables = start(module, feature_map)
    larger = jax.random.uniform(jax.random.key(2), (3, 9, 4, 8))
    assert apply(module, variables, larger)[0].shape == larger.shape
    one = apply(module, variables, larger[1:2])[0]
    np.testing.assert_allclose(one, apply(module, variables, larger)[0][1:2], atol=1e-5)


def test_training_updates_both_nets_once_and_evaluation_none(feature_map):
    module = FSR(3, Separation(hidden=4))
    variables = start(module, feature_map)
    sample = {"mask_mode": "sample", "keys": keys_of(feature_map)}
    _, new = apply(module, variables, feature_map, train=True, **sample, mutable=("batch_stats",))
    for net in ("sep", "rec"):
        for old, updated in zip(*(jax.tree.leaves(tree["batch_stats"][net]) for tree in (variables, new)), strict=True):
            assert np.abs(updated - old).max() > 1e-4
    _, same = apply(module, variables, feature_map, **sample, mutable=("batch_stats",))
    jax.tree.map(np.testing.assert_array_equal, same["batch_stats"], variables["batch_stats"])


def test_a_bfloat16_body_keeps_a_wide_mask(feature_map):
    module = FSR(3, Separation(hidden=4), "bfloat16")
    variables = start(module, feature_map)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    out, aux = apply(module, variables, feature_map.astype("bfloat16"))
    assert out.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in aux} == {jnp.dtype("float32")}
    assert (aux.mask != aux.mask.astype(jnp.bfloat16)).mean() > 0.5
    np.testing.assert_allclose(out, apply(FSR(3, module.settings), variables, feature_map)[0], atol=0.3)


def test_unused_auxiliary_logits_are_dead_code(feature_map):
    module = FSR(3, Separation(hidden=4))
    variables = start(module, feature_map)

    def products(used):
        run = lambda v, f: used(module.apply(v, f, **CALL))
        score = lambda v, f: sum(jnp.sum(leaf) for leaf in jax.tree.leaves(run(v, f)))
        text = jax.jit(jax.grad(score, 1)).lower(variables, feature_map).compile().as_text()
        return text.count(" dot(") + text.count("dot_general")

    assert products(lambda result: result[0]) == 0
    assert products(lambda result: result) > 0


def test_the_softplus_path_runs_through_both_nets(feature_map):
    module = FSR(3, Separation(hidden=4))
    variables = start(module, feature_map)
    run = lambda beta, f=feature_map: apply(module, variables, f, beta=beta)[0]
    gaps = [float(jnp.abs(run(beta) - run(None)).max()) for beta in (20.0, 2000.0)]
    assert gaps[0] > 1e-4 and gaps[1] < gaps[0] / 10


def test_binary_masks(feature_map):
    variables = start(FSR(3, Separation(hidden=4)), feature_map)
    gradients = {}
    for through in (False, True):
        module = FSR(3, Separation(hidden=4, mask="binary", straight_through=through))
        scores = apply(FSR(3, Separation(hidden=4, tau=1.0)), variables, feature_map)[1].mask  # sigma(r)
        for mode in fsr.MASK_MODES:  # no noise, hence no keys, in either
            mask = apply(module, variables, feature_map, mask_mode=mode)[1].mask
            np.testing.assert_array_equal(mask, scores >= 0.5)
        score = lambda params, module=module: jnp.sum(
            apply(module, variables | {"params": params}, feature_map)[0] ** 2
        )
        gradients[through] = jax.jit(jax.grad(score))(variables["params"])
    assert not any(leaf.any() for leaf in jax.tree.leaves(gradients[False]["sep"]))
    assert all(leaf.any() for leaf in jax.tree.leaves(gradients[True]["sep"]))
    jax.tree.map(np.testing.assert_array_equal, gradients[False]["rec"], gradients[True]["rec"])


def fixed_masks(f, separation, **settings):
    module = FSR(3, Separation(hidden=4, separation=separation, **settings))
    variables = start(module, f)
    assert set(variables["params"]) == {"rec", "aux"}  # nothing separates, so nothing to learn
    return lambda mode="mean", f=f, **call: apply(module, variables, f, mask_mode=mode, **call)


def test_without_separation_everything_is_recalibrated(feature_map):
    out, aux = fixed_masks(feature_map, "none")()
    assert not aux.mask.any()
    assert np.ptp(aux.robust, axis=0).max() < 1e-6  # the head's bias alone
    assert np.abs(out - feature_map).max() > 1e-2


def test_greedy_takes_the_smallest_activations_of_each_example(feature_map):
    mask = np.asarray(fixed_masks(feature_map, "greedy", recalibrated_fraction=0.25)()[1].mask)
    for values, kept in zip(np.asarray(feature_map).reshape(2, -1), mask.reshape(2, -1), strict=True):
        assert (kept == 0).sum() == 60  # a quarter of 240, though more than a quarter are exactly 0
        assert values[kept == 0].max() <= values[kept == 1].min()
    run = fixed_masks(feature_map, "greedy")
    gradient = jax.jit(jax.grad(lambda f: jnp.sum(run(f=f)[1].mask)))(feature_map)
    assert not gradient.any()


def test_random_masks_are_fixed_in_mode_mean_and_fresh_in_mode_sample(feature_map):
    f = jnp.ones((6, 10, 10, 8))
    run = fixed_masks(f, "random", recalibrated_fraction=0.3)
    mean = run()[1].mask
    assert (mean == mean[:1]).all() and set(np.unique(mean)) == {0, 1}
    assert mean[0].mean() == pytest.approx(0.7, abs=0.06)
    assert not np.array_equal(run(number=3)[1].mask, mean)
    sample = run("sample", keys=keys_of(f))[1].mask
    assert len(np.unique(np.asarray(sample).reshape(6, -1), axis=0)) == 6
    assert sample.mean() == pytest.approx(0.7, abs=0.03)


def test_the_mode_has_no_default_and_noise_needs_keys(feature_map):
    module = FSR(3, Separation(hidden=4))
    variables = start(module, feature_map)
    for mode in (None, "eval"):
        with pytest.raises(ValueError, match="mask_mode is required: 'mean'"):
            apply(module, variables, feature_map, mask_mode=mode)
    for keys in (None, jax.random.key(0), jax.random.key_data(keys_of(feature_map))):
        with pytest.raises(ValueError, match="one typed PRNG key per example"):
            apply(module, variables, feature_map, mask_mode="sample", keys=keys)
