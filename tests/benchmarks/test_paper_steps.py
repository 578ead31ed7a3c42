import argparse

import pytest

from benchmarks import paper_steps, papers
from jrobust.errors import InputError


def test_numbers_are_those_of_the_configs():
    method = papers.numbers(papers.config_of("biasadv", "resnet18").method.to_dict())
    assert method["biasadv"]["step_size"] == pytest.approx(2 / 255) and method["biasadv"]["eps"] == 0.5
    assert (method["q"], method["alpha"]) == (0.7, 0.7)
    assert papers.numbers(papers.config_of("pgd", "resnet18").method.to_dict())["step_size"] == pytest.approx(2 / 255)
    fsr = papers.make_step("fsr", "resnet18", "float32", 4).method
    assert (fsr.separation_weight, fsr.recalibration_weight, fsr.classifier.module.fsr.tau) == (1.0, 1.0, 0.1)
    assert papers.make_step("art", "wrn-16-4", "float32", 4).method.classifier.module.dropout == 0
    masked = papers.make_step("masked_images", "ViT-B/32", "float32", 8).method
    assert (masked.masking, masked.refilling, masked.threshold, masked.feature_weight) == ("object", "single", 0.3, 30)


def test_classes_are_as_many_for_an_image_as_in_the_paper():
    counts = [papers.make_step("pmg_aft", "ViT-B/32", "float32", n).method.classifier.num_classes for n in (256, 8, 1)]
    assert counts == [200, 6, 2]


def test_steps_of_clip_have_their_own_model_and_half_of_the_batch():
    chosen = argparse.Namespace(model="resnet18", tower="ViT-B/32", batch=16)
    assert [paper_steps.size_of(chosen, name) for name in ("art", "pmg_aft")] == [("resnet18", 16), ("ViT-B/32", 8)]


def test_bad_options(monkeypatch):
    monkeypatch.setattr(paper_steps.options.jax.config, "update", lambda *_: None)
    with pytest.raises(InputError, match="did you mean 'biasadv'"):
        paper_steps.main(["--methods=bias_adv", "--local"])
    with pytest.raises(InputError, match="unknown --tower 'RN50'"):  # a ResNet has no patches to mask
        paper_steps.main(["--tower=RN50", "--local"])


def test_notes_say_what_is_not_the_same():
    row = {"dtype": "float32", "name": "pgd torch", "platform": "cpu", "load_before": 0.1, "cpu_cores": 2}
    row |= {"speed_of_jrobust_over_this": (1.0, 1.5, 2.0), "first_loss": 2.0, "expected_loss": 2.5}
    for same, words in ((False, "NOT THE SAME"), (True, "1.50 times as fast (quartiles 1.00 .. 2.00)")):
        assert words in paper_steps.notes([row | {"same_loss": same}])[0]
    assert "busy" in paper_steps.notes([row | {"same_loss": True, "load_before": 9.0}])[0]
