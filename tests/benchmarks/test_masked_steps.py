import doctest

import jax
import pytest

from benchmarks import masked_steps, passes, training
from configs import masked_images_imagenet
from jrobust import methods
from jrobust.errors import InputError
from jrobust.training import cost

BATCH = 32  # weights of the head and of the optimizer are part of a step, and less so the larger the batch


@pytest.mark.parametrize("name", [masked_steps.MAPPED, "random none"])
def test_the_compiler_counts_what_is_counted_by_hand(name):
    """The map is one reverse of the forward pass that the cross-entropy needs anyway; the frozen tower has none."""
    network = masked_steps.classifier(name, masked_steps.SMALL, "float32")
    config = masked_steps.config_of(name, masked_steps.SMALL)
    method = methods.build(config.method, network)
    found, arguments = training.assemble(config, method, BATCH, network.input_shape)
    work = cost.flops(found.step, *arguments) / training.forward_flops(network, BATCH)
    assert work == pytest.approx(masked_steps.counted(name, masked_steps.SMALL), rel=0.03)


def test_examples():
    assert not doctest.testmod(masked_steps).failed


def test_full_size_is_the_config_of_the_paper():
    config = masked_steps.config_of("object multi", "ViT-L/14")
    assert (config.method.masking, config.method.refilling, config.method.threshold) == ("object", "multi", 0.6)
    assert masked_steps.classifier("ft", "ViT-L/14", "bfloat16").clip.sizes.image_width == 1024


def test_released_distillation_by_hand():
    """Rows of the config that are not in the table: a frozen teacher of logits instead of features, and the head."""
    for words, expected in (("kd", 4), ("masked_kd", 8), ("masked_kd,masking=random", 7), ("lp", 1), ("wise_kd", 9)):
        assert passes.of_step(masked_images_imagenet.get_config(f"method={words}").method) == expected


def test_share_of_the_map_is_paired_by_turn():
    mapped = {"seconds_all": (2.0, 40.0, 10.0), "flops": 8.0}
    unmapped = {"seconds_all": (1.0, 30.0, 9.0), "flops": 7.0}
    found = masked_steps.map_share(mapped, unmapped)
    assert found["map_share_of_flops"] == 0.125
    assert found["map_share_of_seconds"] == pytest.approx([0.175, 0.25, 0.375])  # of 0.5, 0.25, 0.1


def test_notes():
    row = {"dtype": "float32", "passes_counted": 8.0, "seconds_over_ft": (2.0, 2.5, 3.0)}
    share = {"map_share_of_flops": 0.125, "map_share_of_seconds": (0.1, 0.2, 0.3)}
    lines = masked_steps.notes([row | {"name": "ft"}, row | share | {"name": masked_steps.MAPPED}])
    assert lines == [
        "float32 object single: 2.50 times the seconds of ft (quartiles 2.00 .. 3.00); 2.67 by passes",
        "float32 object single: the map is 12.5% of its FLOPs and 20.0% of its seconds (quartiles 10.0 .. 30.0); one"
        " pass of 8",
    ]


@pytest.mark.parametrize(
    ("argument", "message"), [("--model=ViT-B32", "did you mean 'ViT-B/32'"), ("--microbatches=0", "--microbatches=0")]
)
def test_bad_options(argument, message, monkeypatch):
    monkeypatch.setattr(jax.config, "update", lambda *_: None)
    with pytest.raises(InputError, match=message):
        masked_steps.main([argument])
