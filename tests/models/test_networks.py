"""What every network must satisfy, and the numbers of each."""

import dataclasses

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest

from jrobust.models import zoo
from jrobust.models.classifier import Classifier
from jrobust.models.resnet import ResNet
from jrobust.models.wide_resnet import WideResNet

COUNTS = [
    ("wide_resnet", {"depth": 28, "width": 10}, 10, 32, 36_479_194),
    ("wide_resnet", {"depth": 28, "width": 10}, 43, 32, 36_500_347),
    ("wide_resnet", {"depth": 28, "width": 10}, 17, 128, 36_483_681),
    ("wide_resnet", {"depth": 40, "width": 2}, 10, 32, 2_243_546),
    ("resnet50", {}, 1000, 224, 25_557_032),
    ("resnet18", {"last_stride": 1}, 1000, 224, 11_689_512),
    ("resnet18_cifar", {}, 10, 32, 11_173_962),
    ("resnet20_cifar", {}, 10, 32, 269_722),
    ("resnet56_cifar", {}, 10, 32, 853_018),
    ("wide_resnet", {"depth": 34, "width": 10}, 10, 32, 46_160_474),
    ("vgg16_cifar", {}, 10, 32, 15_253_578),
    ("vgg16", {}, 1000, 224, 138_357_544),
]
MACS = [
    ("wide_resnet", {"depth": 28, "width": 10}, 10, 32, 5.243e9),
    ("wide_resnet", {"depth": 40, "width": 2}, 10, 32, 0.328e9),
    ("wide_resnet", {"depth": 28, "width": 10}, 17, 128, 83.893e9),
    ("resnet50", {}, 1000, 224, 4.089e9),
    ("vgg16", {}, 1000, 224, 15.470e9),
    ("resnet18_cifar", {}, 10, 32, 555.4e6),
    ("resnet18_cifar", {"fsr": {"tau": 0.1}}, 10, 32, 555.4e6 + 20.07e6),
    ("vgg16_cifar", {"fsr": {"tau": 0.1}}, 10, 32, 313.7e6 + 20.07e6),
    ("wide_resnet", {"depth": 34, "width": 10, "fsr": {"tau": 0.1}}, 10, 32, 6658.9e6 + 99.1e6),
]
SMALL = [
    ("wide_resnet", {"depth": 10, "width": 1, "dropout": 0.2}),
    ("resnet18", {"last_stride": 1}),
    ("resnet18_cifar", {}),
    ("resnet20_cifar", {}),
    ("small_cnn", {"dropout": 0.2}),
    ("mlp", {"dropout": 0.2}),
    ("vgg16_cifar", {}),
    ("vgg16", {}),
    ("vgg16_cifar", {"fsr": {"hidden": 8}}),
    ("wide_resnet", {"depth": 10, "width": 1, "dropout": 0.2, "fsr": {"positions": ("block1", "block3")}}),
    ("resnet18_cifar", {"fsr": {"separation": "greedy"}}),
    ("small_cnn", {"fsr": {"mask": "binary", "positions": ("block1", "block2", "block3")}}),
]


def shapes(classifier, batch=2, **settings):
    """The shapes of the variables and of a prediction, without computing."""
    variables = jax.eval_shape(classifier.init, jax.random.key(0))
    images = jax.ShapeDtypeStruct((batch, *classifier.input_shape), jnp.float32)
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), batch))
    run = lambda p, s, x, k: classifier.apply(p, s, x, keys=k, intermediates=True, **{"mask_mode": "sample"} | settings)
    return variables, jax.eval_shape(run, *variables, images, keys)


@pytest.mark.parametrize(("name", "fields", "classes", "size", "parameters"), COUNTS)
def test_parameter_count(build, name, fields, classes, size, parameters):
    params, _ = jax.eval_shape(build(name, num_classes=classes, size=size, **fields).init, jax.random.key(0))
    assert zoo.count(params) == parameters


def multiplications(jaxpr):
    """Multiply-adds of convolutions and matrix products by their definition; XLA leaves out those with padding."""
    total = 0
    for equation in jaxpr.eqns:
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            total += multiplications(inner)
        if equation.primitive.name == "conv_general_dilated":
            kernel = equation.invars[1].aval.shape  # HWIO
            total += equation.outvars[0].aval.size * kernel[0] * kernel[1] * kernel[2]
        if equation.primitive.name == "dot_general":
            total += equation.outvars[0].aval.size * equation.invars[0].aval.shape[-1]
    return total


@pytest.mark.parametrize(("name", "fields", "classes", "size", "macs"), MACS)
def test_multiplications_of_a_forward_pass(build, name, fields, classes, size, macs):
    classifier = build(name, num_classes=classes, size=size, **fields)
    variables = jax.eval_shape(classifier.init, jax.random.key(0))
    images = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    jaxpr = jax.make_jaxpr(lambda p, s, x: classifier.apply(p, s, x, mask_mode="mean").logits)(*variables, images)
    assert multiplications(jaxpr.jaxpr) == pytest.approx(macs, rel=2e-3)


@pytest.mark.parametrize(("name", "fields"), SMALL)
def test_both_paths_and_both_modes_have_the_same_trees(build, name, fields):
    classifier = build(name, num_classes=7, **fields)
    (params, stats), usual = shapes(classifier)
    assert usual.logits.shape == (2, 7)
    for settings in ({"beta": 50.0}, {"train": True}, {"train": True, "beta": 50.0}):
        (other_params, other_stats), prediction = shapes(classifier, **settings)
        assert (other_params, other_stats) == (params, stats)
        assert prediction.batch_stats == stats
        assert prediction.intermediates == usual.intermediates
    assert usual.intermediates["features"].shape == (2, params["fc"]["kernel"].shape[0])  # what the head sees


@pytest.mark.parametrize(("name", "fields"), SMALL)
def test_a_bfloat16_body_keeps_float32_parameters_statistics_and_logits(build, name, fields):
    (params, stats), prediction = shapes(build(name, dtype="bfloat16", **fields), train=True)
    leaves = jax.tree.leaves((params, stats, prediction.batch_stats, prediction.logits))
    assert {leaf.dtype for leaf in leaves} == {jnp.dtype("float32")}
    assert prediction.intermediates["layer1"].dtype == jnp.bfloat16


@pytest.mark.parametrize(("stride", "side"), [(1, 14), (2, 7)])
def test_last_stride_sets_the_last_map(build, stride, side):
    _, prediction = shapes(build("resnet50", size=224, num_classes=200, last_stride=stride))
    assert prediction.intermediates["layer4"].shape == (2, side, side, 2048)
    assert prediction.intermediates["stem"].shape == (2, 56, 56, 64)


def test_dropout_of_a_vgg_belongs_to_the_example_and_the_layer(build, keys):
    """Of three linear layers, the last one the sum of the 500 units it sees: its logits count what dropout keeps."""
    classifier = build("vgg16", width=1, hidden=500, num_classes=1)
    params, _ = jax.eval_shape(classifier.init, jax.random.key(0))
    params = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), params)
    params["fc1"]["bias"] += 1.0
    params["fc2"]["kernel"] = jnp.eye(500)
    params["fc"]["kernel"] += 1.0
    images = jnp.zeros((8, 32, 32, 3))
    run = jax.jit(lambda x, k, train: classifier.apply(params, {}, x, keys=k, train=train).logits, static_argnums=2)
    np.testing.assert_array_equal(run(images, None, False), np.full((8, 1), 500))
    kept = run(images, keys, True)
    assert float(kept.mean()) == pytest.approx(500, rel=0.1)  # a quarter of the units, each four times as large
    assert (kept % 4 == 0).all() and len(set(np.asarray(kept[:, 0]))) > 4
    order = jnp.array([3, 0, 7])
    np.testing.assert_array_equal(run(images[:3], keys[order], True), kept[order])
    with pytest.raises(ValueError, match="keys"):
        run(images, None, True)


def test_parameter_names_are_torchvisions(build):
    params, _ = jax.eval_shape(build("resnet50", size=224).init, jax.random.key(0))
    assert set(params) == {"conv1", "bn1", "layer1", "layer2", "layer3", "layer4", "fc"}
    assert set(params["layer4"]["0"]) == {"conv1", "bn1", "conv2", "bn2", "conv3", "bn3", "downsample"}
    assert set(params["layer4"]["0"]["downsample"]) == {"0", "1"}


def test_wide_resnet_starts_as_stated(wide):
    _, params, stats, _ = wide
    kernel = params["layer3"]["0"]["conv1"]["kernel"]  # 3x3, 32 -> 64: by the channels that come out
    assert float(kernel.std()) == pytest.approx((2 / (9 * 64)) ** 0.5, rel=0.03)
    shortcut = params["layer3"]["0"]["shortcut"]["kernel"]  # 1x1, 32 -> 64
    assert float(shortcut.std()) == pytest.approx((2 / 64) ** 0.5, rel=0.06)
    bound = 64**-0.5
    weight = np.asarray(params["fc"]["kernel"])
    assert 0.97 * bound < np.abs(weight).max() <= bound
    assert weight.std() == pytest.approx(bound / 3**0.5, rel=0.07)
    assert not params["fc"]["bias"].any()
    assert not stats["bn1"]["mean"].any() and (stats["bn1"]["var"] == 1).all()


def test_shortcut_sees_the_activated_tensor_where_the_width_changes(wide):
    classifier, params, stats, images = wide
    # bn1 of the first block of layer2 scaled to 0 with bias -1: the activation is 0, and so is the shortcut.
    block = params["layer2"]["0"] | {"bn1": {"scale": jnp.zeros(16), "bias": -jnp.ones(16)}}
    changed = params | {"layer2": {"0": block}}
    seen = classifier.apply(changed, stats, images, intermediates=True).intermediates
    assert not seen["layer2"].any()
    # In layer1 the width stays: the shortcut is the raw input.
    block = params["layer1"]["0"] | {"bn1": {"scale": jnp.zeros(16), "bias": -jnp.ones(16)}}
    seen = classifier.apply(params | {"layer1": {"0": block}}, stats, images, intermediates=True).intermediates
    np.testing.assert_array_equal(seen["layer1"], seen["stem"])


def test_softplus_path_tends_to_the_relu_path(wide, keys):
    classifier, params, stats, images = wide
    gaps = []
    relu = classifier.apply(params, stats, images, train=True, keys=keys).logits
    for beta in (50.0, 500.0, 1e4):
        smooth = classifier.apply(params, stats, images, train=True, keys=keys, beta=beta).logits
        gaps.append(float(jnp.abs(smooth - relu).max()))
    assert 1e-4 < gaps[0] < 5e-2
    assert gaps[1] < gaps[0] / 5
    assert gaps[2] < gaps[1] / 5


def test_only_the_softplus_path_has_second_derivatives(wide):
    classifier, params, stats, images = wide

    def curvature(beta):
        score = lambda x: classifier.apply(params, stats, x, beta=beta).logits[:, 0].sum()
        return jax.jvp(jax.grad(score), (images,), (jnp.ones_like(images),))[1]

    assert not jax.jit(curvature, static_argnums=0)(None).any()
    assert jnp.abs(jax.jit(curvature, static_argnums=0)(50.0)).max() > 1e-3


@pytest.mark.parametrize(
    "module", [WideResNet(3, depth=10, width=1, dropout=0.2), ResNet(3, stages=(1,), width=8, stem="cifar")]
)
def test_recomputing_blocks_changes_nothing(keys, module):
    images = jax.random.uniform(jax.random.key(0), (2, 8, 8, 3))
    usual = Classifier(module, (0.5,) * 3, (0.2,) * 3, 3, (8, 8, 3))
    frugal = dataclasses.replace(usual, module=module.clone(remat=True))
    params, stats = usual.init(jax.random.key(0, impl="rbg"))
    assert jax.eval_shape(frugal.init, jax.random.key(0)) == jax.eval_shape(usual.init, jax.random.key(0))

    def gradient(classifier):
        def loss(p):
            prediction = classifier.apply(p, stats, images, train=True, beta=50.0, keys=keys[:2])
            return jnp.sum(prediction.logits[:, 0]), prediction.batch_stats

        return jax.jit(jax.grad(loss, has_aux=True))(params)

    # Not to the bit: the compiler fuses the two programs differently.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-5), gradient(usual), gradient(frugal))
