import doctest

import pytest

from benchmarks import clip_steps, options, passes, train_steps, training
from jrobust.models import zoo


def test_examples():
    for module in (passes, train_steps, clip_steps):
        found = doctest.testmod(module)
        assert found.attempted and not found.failed


@pytest.mark.parametrize(("name", "tolerance"), [("wrn-16-4", 0.005), ("wrn-10-1", 0.02), ("resnet18", 0.005)])
def test_forward_passes_of_networks(name, tolerance):
    """What the compiler counts besides are batch norms and activations, which matter less the wider the network."""
    network = options.classifier(name, "float32")
    assert passes.forward_flops(network) == pytest.approx(training.forward_flops(network, 1), rel=tolerance)


@pytest.mark.parametrize("last_stride", [1, 2])
def test_forward_pass_of_bottlenecks(last_stride):
    section = {"name": "resnet50", "last_stride": last_stride}
    network = zoo.build(section, num_classes=7, input_shape=(64, 64, 3), mean=(0.5,) * 3, std=(0.5,) * 3)
    assert passes.forward_flops(network) == pytest.approx(training.forward_flops(network, 1), rel=0.015)


@pytest.mark.parametrize("variant", ["ft", "vpt_tecoa"])
def test_forward_pass_of_a_tower(variant):
    network = clip_steps.classifier(variant, clip_steps.SMALL, "float32")
    assert passes.forward_flops(network) == pytest.approx(training.forward_flops(network, 1), rel=0.04)


def test_networks_nobody_has_counted():
    assert passes.forward_flops(options.classifier("small_cnn", "float32")) is None
    assert passes.of_step({"name": "contrastive"}) is None
