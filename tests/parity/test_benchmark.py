"""The networks that the benchmark writes in PyTorch are ours, and so is its attack."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from benchmarks import attack_steps, torch_attack  # noqa: E402


def both(model, batch=4):
    case = attack_steps.make_case(model, "float32", batch)
    theirs = torch_attack.port(case.classifier, *jax.device_get((case.params, case.batch_stats)))
    return case, theirs


@pytest.mark.parametrize("model", ["wrn-10-1", "wrn-16-2", "resnet18"])
def test_logits(model):
    case, theirs = both(model)
    ours = case.classifier.apply(case.params, case.batch_stats, case.images).logits
    images = torch.tensor(np.asarray(case.images).transpose(0, 3, 1, 2).copy())
    np.testing.assert_allclose(theirs(images).detach(), ours, rtol=0, atol=2e-5)


def test_a_network_that_is_not_written_there():
    case = attack_steps.make_case("small_cnn", "float32", 2)
    assert torch_attack.port(case.classifier, *jax.device_get((case.params, case.batch_stats))) is None
    assert "not written" in attack_steps._obstacle("small_cnn")
    assert attack_steps._obstacle("wrn-10-1") is None


@pytest.mark.parametrize(("variant", "dtype"), [("torch", "float32"), ("channels_last", "bfloat16")])
def test_attacks_are_equally_strong(variant, dtype):
    """Also after half of the steps the two are not: so the check can fail."""
    batch, eps, steps = 16, 8 / 255, 4
    case = attack_steps.make_case("wrn-10-1", dtype, batch)
    ours = attack_steps.ours(case, steps)
    half = attack_steps.half_broken(case, ours, eps)
    expected = attack_steps.strength(case, ours, eps, half)
    theirs = attack_steps.theirs(case, variant, dtype, steps, eps)
    found = attack_steps.strength(case, theirs, eps, half)
    assert attack_steps.same_strength(expected, found, dtype, batch)
    assert 0 < expected["robust_accuracy_at_half_broken_eps"] < 1
    weaker = attack_steps.strength(case, attack_steps.theirs(case, variant, dtype, 1, eps), eps, half)
    assert not attack_steps.same_strength(expected, weaker, dtype, batch)


def test_one_step_moves_the_same_way():
    case, _ = both("wrn-10-1", 8)
    adv = [
        c.images(c.at(8 / 255)())
        for c in (attack_steps.ours(case, 1), attack_steps.theirs(case, "torch", "float32", 1, 8 / 255))
    ]
    same = np.abs(adv[0] - adv[1]) < 1e-6
    assert same.mean() > 0.999  # the rest are gradients near zero, of other sign
    assert not jnp.allclose(adv[0], case.start(8 / 255), atol=1e-4)
