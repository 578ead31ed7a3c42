import jax
import numpy as np
import pytest
import safetensors.numpy

from jrobust.errors import InputError
from jrobust.weights import arrays
from jrobust.weights.load import load
from jrobust.weights.torch_layouts import detect, to_torch

CASES = [
    ("resnet50", {"size": 64, "last_stride": 1}, "torchvision", "layer4.0.downsample.1.running_var", "fc.weight"),
    ("resnet18", {"size": 64}, "torchvision", "layer2.0.downsample.0.weight", "fc.bias"),
    ("resnet20_cifar", {}, "cifar_resnet", "layer3.2.bn2.running_mean", "linear.weight"),
    ("resnet18_cifar", {}, "cifar_resnet", "layer2.0.shortcut.0.weight", "linear.bias"),
    ("wide_resnet", {"depth": 10, "width": 1}, "wide_resnet", "block2.layer.0.convShortcut.weight", "bn1.running_var"),
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
        (lambda f: {"weird": f["bn1.bias"]}, "keys such as weird.*wide_resnet, cifar_resnet, torchvision"),
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


def test_pickles_are_refused_with_the_way_out(tmp_path):
    with pytest.raises(InputError, match=r"torch.load.*weights_only=True.*resnet.safetensors") as error:
        arrays.read(tmp_path / "resnet.pth")
    assert "\n" not in str(error.value)
    path = tmp_path / "objects.npz"
    np.savez(path, x=np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(InputError, match="cannot be read"):
        arrays.read(path)


@pytest.mark.parametrize(("name", "message"), [("none.npz", "there is no file"), ("x.h5", "ending '.h5'")])
def test_other_files_are_refused(tmp_path, name, message):
    with pytest.raises(InputError, match=message):
        arrays.read(tmp_path / name)


def test_a_truncated_npz_is_one_clear_line(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, x=np.zeros(1000))
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(InputError, match="cannot be read"):
        arrays.read(path)
