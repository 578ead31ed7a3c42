"""torchvision's published files: their names, counts and shapes, at full size without computing."""

import jax
import numpy as np
import pytest

from jrobust.errors import InputError
from jrobust.models import zoo
from jrobust.models.tree import flatten
from jrobust.weights.load import load
from jrobust.weights.torch_layouts import AXES, LAYOUTS, layout_of, to_torch


def equal(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


def numbered(places, leaves=("weight", "bias"), before="features."):
    return {f"{before}{place}.{leaf}" for place in places for leaf in leaves}


def test_every_name_and_shape_of_torchvisions_files():
    """Counted with `num_batches_tracked`, one a batch norm, the numbers of keys are those of the published files."""
    norm = ("weight", "bias", "running_mean", "running_var")
    stages = {"resnet18": (2, 2, 2, 2), "resnet50": (3, 4, 6, 3)}
    expected = {"vgg16": numbered((0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28))}
    expected["vgg16"] |= numbered((0, 3, 6), before="classifier.")
    for name, blocks in stages.items():
        names = numbered([1], norm, "bn") | {"conv1.weight", "fc.weight", "fc.bias"}
        convolutions = (1, 2, 3) if name == "resnet50" else (1, 2)
        for stage, count in enumerate(blocks, start=1):
            for block in range(count):
                before = f"layer{stage}.{block}."
                names |= numbered(convolutions, ("weight",), f"{before}conv") | numbered(
                    convolutions, norm, f"{before}bn"
                )
                if block == 0 and (stage > 1 or name == "resnet50"):
                    names |= {f"{before}downsample.0.weight"} | numbered([1], norm, f"{before}downsample.")
        expected[name] = names
    shapes = {
        "vgg16": {
            "features.2.weight": (64, 64, 3, 3),
            "classifier.0.weight": (4096, 25088),
            "classifier.6.bias": (1000,),
        },
        "resnet18": {"layer2.0.conv1.weight": (128, 64, 3, 3), "layer2.0.downsample.0.weight": (128, 64, 1, 1)},
        "resnet50": {"layer2.0.conv1.weight": (128, 256, 1, 1), "layer2.0.conv2.weight": (128, 128, 3, 3)},
    }
    for name, count in (("vgg16", 32), ("resnet18", 122), ("resnet50", 320)):
        section = {"name": name, "mean": (0.5,) * 3, "std": (0.2,) * 3}
        classifier = zoo.build(section, num_classes=1000, input_shape=(224, 224, 3))
        # Arrays of one number, stretched.
        trees = jax.tree.map(
            lambda leaf: np.broadcast_to(np.float32(0), leaf.shape), jax.eval_shape(classifier.init, jax.random.key(0))
        )
        layout = LAYOUTS[layout_of(classifier)]
        foreign = {layout.foreign(path): leaf for tree in trees for path, leaf in flatten(tree).items()}
        assert set(foreign) == expected[name]
        assert len(foreign) + sum(key.endswith("running_var") for key in foreign) == count
        for key, shape in shapes[name].items():
            axes = AXES.get(("kernel" if key.endswith("weight") else "bias", foreign[key].ndim), (0,))
            assert foreign[key].transpose(axes).shape == shape


def test_the_file_of_vggs_features_alone_serves_for_a_new_head(variables, tmp_path):
    classifier, params, stats = variables("vgg16", width=2, hidden=6)
    foreign = to_torch(params, stats, "torchvision_vgg")
    path = tmp_path / "vgg16_features.npz"
    spoilt = {name: np.full_like(array, np.nan) if "classifier" in name else array for name, array in foreign.items()}
    features = {name: array for name, array in foreign.items() if "classifier" not in name}
    fresh = jax.tree.map(lambda leaf: leaf + 1, params)
    for arrays, message in ((spoilt, "classifier.* not finite"), (features, "lacks classifier")):
        np.savez(path, **arrays)
        with pytest.raises(InputError, match=message):
            load(path, classifier, fresh, stats)
        new, _ = load(path, classifier, fresh, stats, replace_head=True)
        equal(new, params | {name: fresh[name] for name in ("fc1", "fc2", "fc")})
    # A whole file gives its hidden layers too.
    np.savez(path, **foreign)
    new, _ = load(path, classifier, fresh, stats, replace_head=True)
    equal((new["fc1"], new["fc"]), (params["fc1"], fresh["fc"]))
