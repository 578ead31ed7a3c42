"""The FSR module inside the networks: where it stands, what it starts as, and what a config may say of it."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jrobust.errors import InputError
from jrobust.models import zoo
from jrobust.models.fsr import FSR, Separation
from jrobust.models.layers import he_fan_out, torch_default
from jrobust.models.vgg import VGG, linear_init

COUNTS = [
    ("resnet18_cifar", {}, "block4", 11_173_962, 1_259_018),
    ("vgg16_cifar", {}, "block4", 15_253_578, 1_259_018),
    ("wide_resnet", {"depth": 34, "width": 10}, "block3", 46_160_474, 1_555_210),
    ("resnet18_cifar", {}, "block1", 11_173_962, 2 * 110_848 + 65 * 10),
    ("resnet18_cifar", {}, "block2", 11_173_962, 2 * 184_576 + 129 * 10),
    ("resnet18_cifar", {}, "block3", 11_173_962, 2 * 332_032 + 257 * 10),
]


@pytest.mark.parametrize(("name", "fields", "block", "backbone", "module"), COUNTS)
def test_parameter_counts(build, name, fields, block, backbone, module):
    classifier = build(name, fsr={"positions": (block,)}, **fields)
    params, stats = jax.eval_shape(classifier.init, jax.random.key(0))
    assert zoo.count(params[f"fsr_{block}"]) == module
    assert zoo.count(params) - module == backbone
    assert f"fsr_{block}" in zoo.describe(classifier) and f"fsr_{block}" in stats
    assert jax.eval_shape(build(name, **fields).init, jax.random.key(0))[0] == {
        layer: shapes for layer, shapes in params.items() if not layer.startswith("fsr_")
    }


@pytest.mark.parametrize(
    ("name", "fields", "before", "after"),
    [
        ("small_cnn", {"width": 4}, "layer3", "feature_map"),
        ("wide_resnet", {"depth": 10, "width": 1}, None, "feature_map"),
        ("resnet20_cifar", {}, "layer3", "feature_map"),
    ],
)
def test_the_last_module_stands_before_the_mean(build, name, fields, before, after):
    classifier = build(name, size=16, fsr={"hidden": 3}, **fields)
    params, stats = classifier.init(jax.random.key(0, impl="rbg"))
    images = jax.random.uniform(jax.random.key(1), (2, 16, 16, 3))
    prediction = jax.jit(lambda x: classifier.apply(params, stats, x, mask_mode="mean", intermediates=True))(images)
    seen = prediction.intermediates
    assert seen["fsr_block3"].robust.shape == (2, 10)
    module = FSR(10, classifier.module.fsr)
    inner = {"params": params["fsr_block3"], "batch_stats": stats["fsr_block3"]}
    if before:
        f = seen[before]
    else:  # of the wide ResNet: the last batch norm and activation
        scale, bias = params["bn1"]["scale"], params["bn1"]["bias"]
        f = jax.nn.relu(seen["layer3"] * scale / jnp.sqrt(1 + 1e-5) + bias)
    out, aux = jax.jit(lambda f: module.apply(inner, f, train=False, mask_mode="mean"))(f)
    np.testing.assert_allclose(seen[after], out, atol=1e-5)
    np.testing.assert_allclose(seen["fsr_block3"].recalibrated, aux.recalibrated, atol=1e-4)
    assert np.abs(seen[after] - f).max() > 1e-3


def test_vgg_puts_its_module_before_the_pool():
    module = VGG(5, width=2, fsr=Separation(hidden=3))
    logits, seen = jax.eval_shape(
        lambda key, x: module.init_with_output(key, x, mask_mode="mean")[0],
        jax.random.key(0),
        jnp.zeros((2, 32, 32, 3)),
    )
    assert logits.shape == (2, 5)
    shapes = [seen[f"layer{i}"].shape for i in range(1, 6)]
    assert shapes == [(2, 32, 32, 2), (2, 16, 16, 4), (2, 8, 8, 8), (2, 4, 4, 16), (2, 2, 2, 16)]
    assert seen["fsr_block4"].mask.shape == (2, 4, 4, 16)
    assert seen["features"].shape == (2, 16)


def layers(network, *kinds):
    """The layers of some kinds that a network calls, without computing."""
    found = []

    def note(call, args, kwargs, context):
        if isinstance(context.module, kinds) and context.method_name == "__call__":
            found.append(context.module.copy(parent=None))
        return call(*args, **kwargs)

    with nn.intercept_methods(note):
        init = lambda key: network.init(key, jnp.zeros((1, 32, 32, 3)), mask_mode="mean")
        jax.eval_shape(init, jax.random.key(0))
    return found


def test_modules_start_as_the_network_around_them(build):
    for name, head_init in (
        ("resnet18_cifar", torch_default),
        ("wide_resnet", torch_default),
        ("vgg16_cifar", linear_init),
    ):
        network = build(name, fsr={"hidden": 8}).module
        (module,) = layers(network, FSR)
        convs, heads = layers(network, nn.Conv), layers(network, nn.Dense)
        kernel_init = torch_default if name == "resnet18_cifar" else he_fan_out
        assert {conv.kernel_init for conv in convs} == {kernel_init} == {module.kernel_init}
        assert {dense.kernel_init for dense in heads} == {head_init}
        for dense in heads:
            bias = dense.bias_init(jax.random.key(0), (512,), jnp.float32)
            assert float(np.abs(bias).max()) == pytest.approx(512**-0.5 if name == "resnet18_cifar" else 0, rel=0.02)
    kernel = linear_init(jax.random.key(0), (64, 64))
    assert float(kernel.std()) == pytest.approx(0.01, rel=0.05)


def test_several_modules_have_their_own_draws_and_logits(build):
    classifier = build("small_cnn", width=4, size=8, fsr={"positions": ["block2", "block3"], "hidden": 3})
    params, stats = classifier.init(jax.random.key(0, impl="rbg"))
    params["fsr_block3"] = params["fsr_block2"]  # both maps have 8 channels
    images = jax.random.uniform(jax.random.key(1), (2, 8, 8, 3))
    keys = jax.random.split(jax.random.key(2), 2)
    call = {"mask_mode": "sample", "keys": keys, "intermediates": True, "train": True}
    prediction = jax.jit(lambda x: classifier.apply(params, stats, x, **call))(images)
    masks = [prediction.intermediates[f"fsr_block{i}"].mask for i in (2, 3)]
    assert np.abs(masks[0] - masks[1]).mean() > 0.2
    assert jax.tree.structure(prediction.batch_stats) == jax.tree.structure(stats)
    assert np.abs(prediction.batch_stats["fsr_block3"]["rec"]["bn1"]["mean"]).max() > 0


def test_the_mode_is_required_of_a_network_with_modules_alone(build, wide):
    classifier = build("small_cnn", width=4, size=8, fsr={"hidden": 3})
    variables = jax.eval_shape(classifier.init, jax.random.key(0))
    images = jax.ShapeDtypeStruct((2, 8, 8, 3), jnp.float32)
    run = lambda **call: jax.eval_shape(lambda p, s, x: classifier.apply(p, s, x, **call).logits, *variables, images)
    with pytest.raises(ValueError, match="mask_mode is required"):
        run()
    with pytest.raises(ValueError, match="keys"):
        run(mask_mode="sample")
    assert run(mask_mode="mean").shape == (2, 10)
    plain, params, stats, images = wide
    with_mode = plain.apply(params, stats, images, mask_mode="mean").logits
    np.testing.assert_array_equal(with_mode, plain.apply(params, stats, images).logits)


def test_a_section_of_a_config_builds(build):
    assert build("resnet18_cifar", fsr={}).module.fsr is None
    assert build("mlp", fsr=None) == build("mlp")
    section = {"tau": 0.5, "mask": "binary", "straight_through": True, "positions": ["block3", "block4"]}
    classifier = build("resnet18_cifar", fsr=section)
    expected = Separation(("block3", "block4"), tau=0.5, mask="binary", straight_through=True)
    assert classifier.module.fsr == expected
    hash(classifier)
    # Without positions, the place of the released code.
    for name, block in (("resnet18_cifar", "block4"), ("vgg16_cifar", "block4"), ("wide_resnet", "block3")):
        assert build(name, fsr={"tau": 0.1}).module.fsr.positions == (block,)


@pytest.mark.parametrize(
    ("name", "section", "message"),
    [
        ("wide_resnet", {"positions": ("block4",)}, r"'block4': expected one of block1, block2, block3; did you mean"),
        ("resnet18_cifar", {"positions": "layer4"}, r"unknown position .*'layer4': expected one of block1, .*block4"),
        ("vgg16_cifar", {"position": ("block4",)}, "unknown field of model.fsr 'position'.*did you mean 'positions'"),
        ("resnet18_cifar", {"positions": ("block4", "block4")}, "each once"),
        ("resnet18_cifar", {"tau": 0.0}, "model.fsr.tau is 0.0: expected a positive"),
        ("resnet18_cifar", {"hidden": 0}, "model.fsr.hidden is 0"),
        ("resnet18_cifar", {"mask": "hard"}, "unknown model.fsr.mask 'hard'"),
        ("resnet18_cifar", {"separation": "lerned"}, "did you mean 'learned'"),
        ("resnet18_cifar", {"noise": "gumbel"}, "unknown model.fsr.noise"),
        ("resnet18_cifar", {"recalibrated_fraction": 1.5}, "a share between 0 and 1"),
        ("resnet18_cifar", {"straight_through": True}, "set model.fsr.mask to binary"),
        ("mlp", {"tau": 0.1}, "model 'mlp' has no feature map"),
    ],
)
def test_a_bad_section_is_one_clear_line(build, name, section, message):
    with pytest.raises(InputError, match=message) as error:
        build(name, fsr=section)
    assert "\n" not in str(error.value)


def test_a_network_built_by_hand_checks_its_positions():
    module = dataclasses.replace(VGG(5, width=2), fsr=Separation(("block9",)))
    with pytest.raises(InputError, match="block9"):
        jax.eval_shape(
            lambda key, x: module.init(key, x, mask_mode="mean"), jax.random.key(0), jnp.zeros((1, 32, 32, 3))
        )
