import pytest

from benchmarks import paper_steps
from jrobust.errors import InputError


def test_numbers_are_those_of_the_configs():
    method = paper_steps.numbers(paper_steps.get_config("biasadv").method.to_dict())
    assert method["biasadv"]["step_size"] == pytest.approx(2 / 255) and method["biasadv"]["eps"] == 0.5
    assert (method["q"], method["alpha"]) == (0.7, 0.7)
    assert paper_steps.numbers(paper_steps.get_config("pgd").method.to_dict())["step_size"] == pytest.approx(2 / 255)
    fsr = paper_steps.make_method("fsr", "resnet18", "float32")
    assert (fsr.separation_weight, fsr.recalibration_weight, fsr.classifier.module.fsr.tau) == (1.0, 1.0, 0.1)
    assert paper_steps.make_method("art", "wrn-16-4", "float32").classifier.module.dropout == 0


def test_bad_options(monkeypatch):
    monkeypatch.setattr(paper_steps.options.jax.config, "update", lambda *_: None)
    with pytest.raises(InputError, match="did you mean 'biasadv'"):
        paper_steps.main(["--methods=bias_adv", "--local"])


def test_notes_say_what_is_not_the_same():
    row = {"dtype": "float32", "name": "pgd torch", "platform": "cpu", "load_before": 0.1, "cpu_cores": 2}
    row |= {"speed_of_jrobust_over_this": (1.0, 1.5, 2.0), "first_loss": 2.0, "expected_loss": 2.5}
    for same, words in ((False, "NOT THE SAME"), (True, "1.50 times as fast (quartiles 1.00 .. 2.00)")):
        assert words in paper_steps.notes([row | {"same_loss": same}])[0]
    assert "busy" in paper_steps.notes([row | {"same_loss": True, "load_before": 9.0}])[0]
