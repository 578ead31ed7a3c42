import jax
import numpy as np
import pytest
import safetensors.numpy

from jrobust.errors import InputError
from jrobust.weights import arrays
from jrobust.weights.load import load
from jrobust.weights.torch_layouts import detect, layout_of, to_torch, write

CASES = [
    ("resnet50", {"size": 64, "last_stride": 1}, "torchvision", "layer4.0.downsample.1.running_var", "fc.weight"),
    ("resnet18", {"size": 64}, "torchvision", "layer2.0.downsample.0.weight", "fc.bias"),
    ("resnet20_cifar", {}, "cifar_resnet", "layer3.2.bn2.running_mean", "linear.weight"),
    ("resnet18_cifar", {}, "cifar_resnet", "layer2.0.shortcut.0.weight", "linear.bias"),
    ("wide_resnet", {"depth": 10, "width": 1}, "wide_resnet", "block2.layer.0.convShortcut.weight", "bn1.running_var"),
    ("vgg16_cifar", {}, "vgg", "block2.6.bias", "block4.7.running_mean"),
    ("vgg16", {"width": 2, "hidden": 6}, "torchvision_vgg", "features.28.bias", "classifier.6.weight"),
    (
        "resnet18_cifar",
        {"fsr": {"positions": ("block3", "block4")}},
        "cifar_resnet",
        "separation.sep_net.6.weight",
        "fsr_block3.recalibration.rec_net.4.running_var",
    ),
    ("vgg16_cifar", {"fsr": {"hidden": 8}}, "vgg", "aux.0.bias", "classifier.4.weight"),
    ("resnet18", {"size": 64, "fsr": {"hidden": 8}}, "torchvision", "recalibration.rec_net.1.bias", "fc.weight"),
    (
        "wide_resnet",
        {"depth": 10, "width": 1, "fsr": {"positions": ("block1", "block3")}},
        "wide_resnet",
        "recalibration.rec_net.3.weight",
        "fsr_block1.separation.sep_net.1.running_mean",
    ),
]


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)
    assert jax.tree.structure(a) == jax.tree.structure(b)


def blank(tree):
    return jax.tree.map(np.zeros_like, tree)


@pytest.mark.parametrize(("name", "fields", "layout", "one", "another"), CASES)
@pytest.mark.parametrize("ending", [".npz", ".safetensors"])
def test_round_trip(variables, tmp_path, name, fields, layout, one, another, ending):
    classifier, params, stats = variables(name, **fields)
    foreign = to_torch(params, stats, layout)
    assert {one, another} <= set(foreign)
    assert detect(list(foreign)).name == layout
    path = tmp_path / f"weights{ending}"
    np.savez(path, **foreign) if ending == ".npz" else safetensors.numpy.save_file(foreign, path)
    same(load(path, classifier, *blank((params, stats))), (params, stats))


def test_axes(variables):
    _, params, stats = variables("resnet20_cifar")
    foreign = to_torch(params, stats)
    kernel = np.asarray(params["layer2"]["0"]["conv1"]["kernel"])
    assert foreign["layer2.0.conv1.weight"].shape == (32, 16, 3, 3)
    assert foreign["layer2.0.conv1.weight"][5, 7, 0, 2] == kernel[0, 2, 7, 5]
    assert foreign["fc.weight"].shape == (10, 64)
    assert foreign["fc.weight"][3, 8] == params["fc"]["kernel"][8, 3]


def test_the_modules_have_exactly_the_names_of_the_released_code(variables):
    nets = [("separation", "sep_net"), ("recalibration", "rec_net")]
    leaves = ["0.weight", "3.weight", "6.weight"]
    leaves += [f"{i}.{leaf}" for i in (1, 4) for leaf in ("weight", "bias", "running_mean", "running_var")]
    expected = {f"{net}.{inner}.{leaf}" for net, inner in nets for leaf in leaves} | {"aux.0.weight", "aux.0.bias"}
    for name, fields in (("resnet18_cifar", {}), ("vgg16_cifar", {}), ("wide_resnet", {"depth": 10, "width": 1})):
        classifier, params, stats = variables(name, fsr={"hidden": 8}, **fields)
        _, plain, plain_stats = variables(name, **fields)
        layout = layout_of(classifier)
        assert set(to_torch(params, stats, layout)) - set(to_torch(plain, plain_stats, layout)) == expected
    foreign = to_torch(params, stats, layout)
    assert foreign["separation.sep_net.6.weight"].shape == (64, 8, 3, 3)


def test_every_name_of_the_released_vgg(variables):
    _, params, stats = variables("vgg16_cifar")
    norms = ("weight", "bias", "running_mean", "running_var")
    convs = {f"block{i}.{3 * j}.{leaf}" for i in range(5) for j in range(2 + (i > 1)) for leaf in ("weight", "bias")}
    bns = {f"block{i}.{3 * j + 1}.{leaf}" for i in range(5) for j in range(2 + (i > 1)) for leaf in norms}
    linear = {f"classifier.{i}.{leaf}" for i in (0, 2, 4) for leaf in ("weight", "bias")}
    foreign = to_torch(params, stats, "vgg")
    assert set(foreign) == convs | bns | linear
    assert foreign["block3.0.weight"].shape == (512, 256, 3, 3)
    np.testing.assert_array_equal(foreign["classifier.2.weight"], np.asarray(params["fc2"]["kernel"]).T)


def test_the_unused_group_of_wide_resnets_is_passed_over(variables, tmp_path):
    classifier, params, stats = variables("wide_resnet", depth=10, width=1, fsr={"hidden": 8})
    foreign = to_torch(params, stats, "wide_resnet")
    copies = {f"module.sub_{name}": array for name, array in foreign.items() if name.startswith("block1.")}
    assert len(copies) > 5
    path = tmp_path / "trades.npz"
    np.savez(path, **copies, **{f"module.{name}": array for name, array in foreign.items()})
    same(load(path, classifier, *blank((params, stats))), (params, stats))
    np.savez(path, **foreign, **{"sub_block2.layer.0.conv1.weight": np.zeros(3, np.float32)})
    with pytest.raises(InputError, match="surplus sub_block2"):
        load(path, classifier, params, stats)


def test_a_plain_file_does_not_fit_a_model_with_modules(variables, tmp_path):
    classifier, params, stats = variables("vgg16_cifar", fsr={"hidden": 8})
    _, plain, plain_stats = variables("vgg16_cifar")
    path = tmp_path / "vgg.npz"
    np.savez(path, **to_torch(plain, plain_stats, "vgg"))
    with pytest.raises(InputError, match=r"vgg layout\) lacks aux.0.bias"):
        load(path, classifier, params, stats)


def test_a_new_head_is_new_auxiliary_heads_too(variables, tmp_path):
    classifier, params, stats = variables("small_cnn", num_classes=4, width=4, fsr={"hidden": 3})
    _, others, other_stats = variables("small_cnn", num_classes=9, width=4, fsr={"hidden": 3})
    path = tmp_path / "nine.npz"
    np.savez(path, **to_torch(others, other_stats))
    with pytest.raises(InputError, match="new head"):
        load(path, classifier, params, stats)
    new, _ = load(path, classifier, params, stats, replace_head=True)
    same(new["fsr_block3"]["aux"], params["fsr_block3"]["aux"])
    same(new["fsr_block3"]["sep"], others["fsr_block3"]["sep"])


@pytest.mark.parametrize(
    ("name", "fields", "layout"),
    [
        ("resnet18_cifar", {}, "cifar_resnet"),
        ("resnet18", {"size": 64}, "torchvision"),
        ("vgg16_cifar", {}, "vgg"),
        ("vgg16", {"width": 2, "hidden": 6}, "torchvision_vgg"),
        ("wide_resnet", {"depth": 10, "width": 1}, "wide_resnet"),
        ("small_cnn", {"width": 4}, "torchvision"),
    ],
)
def test_a_network_is_written_as_its_originals(variables, tmp_path, name, fields, layout):
    classifier, params, stats = variables(name, **fields)
    path = tmp_path / "out.safetensors"
    assert write(path, classifier, params, stats).name == layout
    same(load(path, classifier, *blank((params, stats))), (params, stats))


@pytest.fixture
def saved(variables, tmp_path):
    """Write the state_dict of a CIFAR ResNet-20 after a change; return a loader and the variables."""
    classifier, params, stats = variables("resnet20_cifar")
    path = tmp_path / "resnet20.npz"

    def run(change=lambda foreign: None, new=None, **settings):
        foreign = to_torch(params, stats, "cifar_resnet")
        foreign = change(foreign) or foreign
        np.savez(path, **foreign)
        return load(path, classifier, *(new or blank((params, stats))), **settings)

    return run, params, stats


def test_prefixes_and_counters_of_pytorch_are_passed_over(saved):
    run, params, stats = saved

    def wrap(foreign):
        counters = {"bn1.num_batches_tracked": np.array(3)}
        return {f"module.{name}": array for name, array in (foreign | counters).items()}

    same(run(wrap), (params, stats))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: {k: v for k, v in f.items() if k != "bn1.bias"}, r"lacks bn1.bias.*model.name, depth and width"),
        (lambda f: f | {"layer3.9.bn1.bias": f["bn1.bias"]}, "has the surplus layer3.9.bn1.bias"),
        (lambda f: f | {"bn1.bias": np.zeros(17, np.float32)}, r"bn1.bias has shape \(17,\), expected \(16,\)"),
        (lambda f: f | {"bn1.bias": np.zeros(16, np.int64)}, "int64.*floating point"),
        (lambda f: f | {"bn1.bias": np.full(16, np.nan, np.float32)}, "bn1.bias has numbers that are not finite"),
        (
            lambda f: {"weird": f["bn1.bias"]},
            "keys such as weird.*wide_resnet, torchvision_vgg, vgg, cifar_resnet, torchvision",
        ),
        (lambda f: {k: v for k, v in f.items() if not k.startswith("layer1")}, r"and \d+ more"),
    ],
)
def test_a_file_that_does_not_fit_is_one_clear_line(saved, change, message):
    with pytest.raises(InputError, match=message) as error:
        saved[0](change)
    assert "\n" not in str(error.value)


def test_a_new_head_only_when_asked(saved):
    run, params, stats = saved
    head = {"kernel": np.full((64, 200), 7, np.float32), "bias": np.zeros(200, np.float32)}
    other = (blank(params) | {"fc": head}, blank(stats))
    with pytest.raises(InputError, match=r"linear.weight has shape .*new head"):
        run(new=other)
    new, _ = run(new=other, replace_head=True)
    same(new["fc"], head)
    same(new["layer3"], params["layer3"])
    # A file without head serves as well, when a new one is asked for.
    new, _ = run(lambda f: {k: v for k, v in f.items() if k != "linear.bias"}, new=other, replace_head=True)
    same(new["fc"], head)


def test_half_precision_is_widened(saved):
    run, params, _ = saved
    new, _ = run(lambda f: {k: v.astype(np.float16) for k, v in f.items()})
    assert new["conv1"]["kernel"].dtype == np.float32
    np.testing.assert_allclose(new["conv1"]["kernel"], params["conv1"]["kernel"], atol=1e-3)


def test_arrays_of_objects_are_refused(tmp_path):
    path = tmp_path / "objects.npz"
    np.savez(path, x=np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(InputError, match="cannot be read"):
        arrays.read(path)


@pytest.mark.parametrize(
    ("name", "message"), [("none.npz", "there is no file"), ("none.pth", "there is no file"), ("x.h5", "ending '.h5'")]
)
def test_other_files_are_refused(tmp_path, name, message):
    with pytest.raises(InputError, match=message):
        arrays.read(tmp_path / name)


def test_a_truncated_npz_is_one_clear_line(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, x=np.zeros(1000))
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(InputError, match="cannot be read"):
        arrays.read(path)
