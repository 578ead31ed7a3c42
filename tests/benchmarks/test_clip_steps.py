import jax
import pytest

from benchmarks import clip_steps, training
from jrobust import methods
from jrobust.errors import InputError
from jrobust.training import cost


@pytest.mark.parametrize("variant", ["pmg_aft", "vpt_pmg_aft"])
def test_the_compiler_counts_what_is_counted_by_hand(variant):
    """No weight gradient in the attack, no pass twice, and a frozen tower without weight gradients."""
    network = clip_steps.classifier(variant, clip_steps.SMALL, "float32")
    config = clip_steps.config_of(variant, clip_steps.SMALL)
    step, arguments = training.assemble(config, methods.build(config.method, network), 2, (64, 64, 3))
    found = cost.flops(step.step, *arguments) / training.forward_flops(network, 2)
    assert found == pytest.approx(clip_steps.counted(variant, clip_steps.SMALL), rel=0.08)


def test_the_text_tower_is_not_in_the_step(monkeypatch):
    assert not clip_steps.text_tower_in_step(clip_steps.SMALL, "float32", 2)
    monkeypatch.setattr(clip_steps, "OTHER_TEXT", {"embed_dim": 32})  # which the step does see
    assert clip_steps.text_tower_in_step(clip_steps.SMALL, "float32", 2)


def test_full_size_is_the_config_of_the_paper():
    config, network = clip_steps.config_of("pmg_aft", "ViT-B/32"), clip_steps.classifier("ft", "ViT-B/32", "bfloat16")
    assert (config.data.augment.resize, config.data.augment.crop_size) == (256, 224)
    assert network.input_shape == (224, 224, 3) and network.clip.dtype == "bfloat16"
    assert clip_steps.config_of("ft", "ViT-L/14@336px").data.augment.resize == 384
    assert clip_steps.variants("RN50") == ("ft", "tecoa", "pmg_aft")


def test_bad_options(monkeypatch):
    monkeypatch.setattr(jax.config, "update", lambda *_: None)
    for argument, message in (("--model=ViT-B32", "did you mean 'ViT-B/32'"), ("--image-size=-1", "--image-size=-1")):
        with pytest.raises(InputError, match=message):
            clip_steps.main([argument])


def test_notes_say_where_the_text_tower_is():
    row = {"dtype": "float32", "name": "pmg_aft", "seconds_over_ft": (3.0, 3.5, 4.0), "passes_counted": 11.0}
    for found, words in ((True, "IN THE STEP"), (False, "in no step")):
        assert any(words in line for line in clip_steps.notes([row | {"text_tower_in_step": found}]))
