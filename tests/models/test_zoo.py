import ml_collections
import pytest

from jrobust.errors import InputError
from jrobust.models import zoo


def build(**fields):
    fields = {"name": "wide_resnet", "mean": (0.5,) * 3, "std": (0.2,) * 3} | fields
    return zoo.build(fields, num_classes=10, input_shape=(32, 32, 3))


def test_a_locked_config_section_builds():
    section = ml_collections.ConfigDict(
        {"name": "wide_resnet", "depth": 16, "width": 4, "dropout": 0.1, "dtype": "bfloat16", "weights": ""}
    ).lock()
    classifier = zoo.build(section, num_classes=17, input_shape=[128, 128, 3], mean=(0.5,) * 3, std=(0.2,) * 3)
    assert (classifier.module.depth, classifier.module.width, classifier.module.dropout) == (16, 4, 0.1)
    assert classifier.module.dtype == "bfloat16"
    assert (classifier.num_classes, classifier.input_shape) == (17, (128, 128, 3))
    hash(classifier)


def test_arguments_win_over_the_section():
    classifier = zoo.build(
        {"name": "mlp", "mean": (0.1,), "std": (1.0,)}, num_classes=2, input_shape=(8, 8, 1), mean=(0.3,), std=(0.4,)
    )
    assert (classifier.mean, classifier.std) == ((0.3,), (0.4,))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "wide_resnt"}, "unknown model 'wide_resnt'.*did you mean 'wide_resnet'"),
        ({"detph": 28}, "unknown field of model 'wide_resnet' 'detph'.*did you mean 'depth'"),
        ({"name": "resnet18", "depth": 18}, "unknown field of model 'resnet18' 'depth'"),
        ({"last_stride": 1}, "unknown field of model 'wide_resnet' 'last_stride'"),
        ({"name": "resnet18_cifar", "dropout": 0.1}, "unknown field"),
        ({"depth": 27}, "6 n \\+ 4"),
        ({"depth": 4}, "6 n \\+ 4"),
        ({"width": 0}, "model.width is 0"),
        ({"dropout": 1.0}, "model.dropout is 1.0"),
        ({"name": "resnet50", "last_stride": 3}, "expected 1 or 2"),
        ({"name": "vgg16", "hidden": 0}, "model.hidden is 0"),
        ({"name": "vgg16", "freeze_norm": True}, "would switch off dropout"),
        ({"dtype": "float16"}, "unknown model.dtype 'float16'"),
        ({"dtype": "float64"}, "JAX_ENABLE_X64"),
        ({"mean": (), "std": ()}, "model.mean and model.std are not set"),
        ({"mean": (0.5,)}, "one number for each of the 3 channels"),
    ],
)
def test_a_bad_section_is_one_clear_line(fields, message):
    with pytest.raises(InputError, match=message) as error:
        build(**fields)
    assert "\n" not in str(error.value)


def test_description_counts_each_layer():
    lines = zoo.describe(build(depth=28, width=10)).splitlines()
    assert lines[0] == "WideResNet: 36,479,194 parameters, images 32x32x3, 10 classes"
    assert sum(int(line.split()[1].replace(",", "")) for line in lines[1:]) == 36_479_194
