import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jrobust.errors import InputError
from jrobust.models import auxiliary, zoo
from jrobust.models.classifier import Classifier
from jrobust.models.small_cnn import MLP


def test_normalisation_is_inside(wide):
    classifier, params, stats, images = wide
    z = classifier.normalize(images)
    np.testing.assert_allclose(
        z[0, 0, 0], (images[0, 0, 0] - np.array(classifier.mean)) / np.array(classifier.std), 1e-6
    )
    logits, _ = classifier.module.apply({"params": params, "batch_stats": stats}, z)
    np.testing.assert_array_equal(classifier.apply(params, stats, images).logits, logits)


def test_sigma_is_the_chain_rule_from_network_input_to_pixels():
    classifier = Classifier(MLP(3, depth=1, width=4), (0.5, 0.2), (0.25, 2.0), 3, (2, 2, 2))
    params, stats = classifier.init(jax.random.key(0))
    x = jax.random.uniform(jax.random.key(1), (1, 2, 2, 2))
    by_pixel = jax.grad(lambda x: classifier.apply(params, stats, x).logits[0, 0])(x)
    inner = lambda z: classifier.module.apply({"params": params}, z)[0][0, 0]
    np.testing.assert_allclose(by_pixel, jax.grad(inner)(classifier.normalize(x)) / classifier.sigma, rtol=1e-5)


def test_it_is_a_static_argument(build):
    first, second = (build("wide_resnet", depth=10, width=1) for _ in range(2))
    assert first == second
    assert hash(first) == hash(second)
    assert first != build("wide_resnet", depth=10, width=2)
    assert first != first.with_axis("data")
    assert first.with_axis("data").with_axis(None) == first


def test_evaluation_gives_the_statistics_back(wide):
    classifier, params, stats, images = wide
    prediction = classifier.apply(params, stats, images)
    assert prediction.batch_stats is stats
    assert prediction.intermediates == {}
    alone = classifier.apply(params, stats, images[2:3]).logits
    np.testing.assert_allclose(prediction.logits[2:3], alone, atol=1e-5)


def test_training_updates_running_statistics_by_a_tenth(wide, keys):
    classifier, params, stats, images = wide
    prediction = classifier.apply(params, stats, images, train=True, keys=keys, intermediates=True)
    stem = np.asarray(prediction.intermediates["stem"])
    new = prediction.batch_stats["layer1"]["0"]["bn1"]
    np.testing.assert_allclose(new["mean"], 0.1 * stem.mean((0, 1, 2)), atol=1e-6)
    np.testing.assert_allclose(new["var"], 0.9 + 0.1 * stem.var((0, 1, 2)), rtol=1e-5)


def test_frozen_statistics_are_used_and_kept_in_training(build):
    classifier, frozen = (build("small_cnn", width=2, size=8, freeze_norm=freeze) for freeze in (False, True))
    params, batch_stats = classifier.init(jax.random.key(0))
    batch_stats = jax.tree.map(lambda leaf: leaf + 0.5, batch_stats)
    images = jax.random.uniform(jax.random.key(1), (4, 8, 8, 3))
    trained, evaluated = (frozen.apply(params, batch_stats, images, train=train) for train in (True, False))
    np.testing.assert_array_equal(trained.logits, evaluated.logits)
    assert trained.batch_stats is batch_stats
    assert abs(classifier.apply(params, batch_stats, images, train=True).logits - trained.logits).max() > 0.01
    with pytest.raises(InputError, match="freeze_norm would switch off dropout"):
        build("small_cnn", dropout=0.1, freeze_norm=True)


def test_statistics_of_devices_together_are_those_of_the_whole_batch(wide, keys):
    classifier, params, stats, images = wide
    whole = classifier.apply(params, stats, images, train=True, keys=keys)
    devices = 4
    split = lambda x: x.reshape(devices, 2, *x.shape[1:])

    def logits(model, x, k):
        return model.apply(params, stats, x, train=True, keys=k)[:2]

    def run(axis):
        model = classifier.with_axis(axis)
        return jax.pmap(lambda x, k: logits(model, x, k), axis_name="data")(split(images), split(keys))

    out, new = run("data")
    np.testing.assert_allclose(out.reshape(8, -1), whole.logits, atol=1e-5)
    for device in range(devices):
        own = jax.tree.map(lambda leaf, device=device: leaf[device], new)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), own, whole.batch_stats)
    alone, _ = run(None)
    assert np.abs(alone.reshape(8, -1) - whole.logits).max() > 1e-2  # statistics of a device alone are another model


def test_the_axis_plays_no_part_outside_training(wide):
    classifier, params, stats, images = wide
    model = classifier.with_axis("data")
    np.testing.assert_array_equal(
        model.apply(params, stats, images).logits, classifier.apply(params, stats, images).logits
    )
    jax.tree.map(np.testing.assert_array_equal, model.init(jax.random.key(0, impl="rbg")), (params, stats))


def test_dropout_only_in_training_and_only_with_keys(wide, keys):
    classifier, params, stats, images = wide
    run = lambda k: classifier.apply(params, stats, images, train=True, keys=k).logits
    np.testing.assert_array_equal(run(keys), run(keys))
    assert not np.array_equal(run(keys), run(jax.random.split(jax.random.key(4), 8)))
    with pytest.raises(ValueError, match="keys"):
        run(None)
    without_keys = classifier.apply(params, stats, images).logits
    np.testing.assert_array_equal(classifier.apply(params, stats, images, keys=keys).logits, without_keys)


def test_it_maps_over_single_images(wide):
    classifier, params, stats, images = wide
    one = lambda image: classifier.apply(params, stats, image[None]).logits[0]
    np.testing.assert_allclose(jax.vmap(one)(images), classifier.apply(params, stats, images).logits, atol=1e-5)


def test_resizing_is_inside():
    classifier = Classifier(MLP(2, depth=1, width=3), (0.0,), (1.0,), 2, (2, 2, 1), resize_to=4)
    params, stats = classifier.init(jax.random.key(0))
    assert params["fc1"]["kernel"].shape == (16, 3)
    images = jnp.array([[0.0, 1.0], [0.0, 1.0]])[None, :, :, None]
    # Half-pixel centres and edges held, as PyTorch: 0, 1/4, 3/4, 1.
    resized = jnp.broadcast_to(jnp.array([0, 0.25, 0.75, 1]), (4, 4))[None, :, :, None]
    np.testing.assert_allclose(classifier._resize(images), resized, atol=1e-6)
    large = Classifier(classifier.module, (0.0,), (1.0,), 2, (4, 4, 1))
    np.testing.assert_allclose(
        classifier.apply(params, stats, images).logits, large.apply(params, stats, resized).logits, atol=1e-6
    )


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((2, 16, 16, 1), np.float32), "2x16x16x1.*Bx16x16x3"),
        (np.zeros((16, 16, 3), np.float32), "16x16x3.*Bx16x16x3"),
        (np.zeros((2, 3, 16, 16), np.float32), "2x3x16x16.*Bx16x16x3"),
        (np.zeros((2, 16, 16, 3), np.uint8), "uint8.*divide by 255"),
    ],
)
def test_wrong_images_are_one_clear_line(wide, images, message):
    classifier, params, stats, _ = wide
    with pytest.raises(InputError, match=message) as error:
        classifier.apply(params, stats, images)
    assert "\n" not in str(error.value)


def test_preprocessing_must_fit_the_channels():
    with pytest.raises(InputError, match="one number for each of the 3 channels"):
        Classifier(MLP(2), (0.5,), (0.5, 0.5, 0.5), 2, (8, 8, 3))
    with pytest.raises(InputError, match="positive"):
        Classifier(MLP(2), (0.5,), (0.0,), 2, (8, 8, 1))
    with pytest.raises(InputError, match="height, width, channels"):
        Classifier(MLP(2), (0.5,), (0.5,), 2, (8, 8))


def test_an_auxiliary_branch_replaces_the_batch_norms_alone(wide):
    classifier, params, stats, images = wide
    norms = auxiliary.split_norm(params, stats)
    assert zoo.count(norms) == 2 * (16 + 16 + 16 + 32 + 32 + 64 + 64)
    same = classifier.apply(auxiliary.with_norm(params, norms), stats, images).logits
    np.testing.assert_array_equal(same, classifier.apply(params, stats, images).logits)
    doubled = jax.tree.map(lambda leaf: 2 * leaf, norms)
    changed = auxiliary.with_norm(params, doubled)
    assert jax.tree.structure(changed) == jax.tree.structure(params)
    np.testing.assert_array_equal(changed["conv1"]["kernel"], params["conv1"]["kernel"])
    np.testing.assert_array_equal(changed["bn1"]["scale"], 2 * params["bn1"]["scale"])
    assert not np.allclose(classifier.apply(changed, stats, images).logits, same)


@pytest.mark.parametrize("name", ["small_cnn", "wide_resnet"])
def test_float64_is_float64_throughout(build, name):
    fields = {"depth": 10, "width": 1} if name == "wide_resnet" else {}
    with jax.enable_x64(True):
        classifier = build(name, dtype="float64", size=8, **fields)
        variables = jax.eval_shape(classifier.init, jax.random.key(0))
        images = jax.ShapeDtypeStruct((2, 8, 8, 3), jnp.float64)
        run = lambda p, s, x: classifier.apply(p, s, x, train=True)
        prediction = jax.eval_shape(run, *variables, images)
    assert {leaf.dtype for leaf in jax.tree.leaves((variables, prediction))} == {jnp.dtype("float64")}
    assert prediction.batch_stats == variables[1]


@pytest.mark.parametrize("name", ["small_cnn", "wide_resnet", "resnet20_cifar", "vgg16_cifar"])
def test_the_gradient_of_a_perturbation_is_that_of_the_feature_map(build, name):
    fields = {"depth": 10, "width": 1} if name == "wide_resnet" else {}
    classifier = build(name, **fields)
    variables = jax.eval_shape(classifier.init, jax.random.key(0))
    images = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
    seen = jax.eval_shape(lambda v, x: classifier.apply(*v, x, intermediates=True), variables, images).intermediates
    logits, perturbed = jax.eval_shape(classifier.logits_and_map, variables, images, 0.0)
    assert classifier.has_map and logits.shape == (2, 10)
    assert perturbed.shape == seen["feature_map"].shape and len(perturbed.shape) == 4
    plain = jax.make_jaxpr(lambda v, x: classifier.apply(*v, x).logits)(variables, images)
    added = jax.make_jaxpr(lambda v, x: classifier.logits_and_map(v, x, 0.0)[0])(variables, images)
    assert len(added.eqns) == len(plain.eqns) + 1


def test_a_perturbation_is_added_where_the_head_pools():
    classifier = zoo.build({"name": "small_cnn", "width": 2}, num_classes=3, input_shape=(6, 6, 1), mean=(0,), std=(1,))
    variables = classifier.init(jax.random.key(0, impl="rbg"))
    assert set(variables[0]) == {"conv1", "bn1", "conv2", "bn2", "conv3", "bn3", "fc"}
    images = jax.random.uniform(jax.random.key(1), (2, 6, 6, 1))
    plain = classifier.apply(*variables, images, intermediates=True)
    shift = jax.random.normal(jax.random.key(2), (2, 3, 3, 4))
    logits, moved = classifier.logits_and_map(variables, images, shift)
    np.testing.assert_allclose(moved, plain.intermediates["feature_map"] + shift, atol=1e-6)
    kernel, expected = variables[0]["fc"]["kernel"], plain.logits
    np.testing.assert_allclose(logits, expected + shift.mean((1, 2)) @ kernel, atol=1e-5)
    mlp = Classifier(MLP(2), (0.5,), (1.0,), 2, (2, 2, 1))
    assert not mlp.has_map
    with pytest.raises(InputError, match="MLP has no feature map"):
        mlp.apply(*mlp.init(jax.random.key(0)), jnp.zeros((1, 2, 2, 1)), perturbation=0.0)
