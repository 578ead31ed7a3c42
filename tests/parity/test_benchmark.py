"""The networks that the benchmark writes in PyTorch are ours, and so is its attack."""

import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from benchmarks import contenders  # noqa: E402


def both(model, batch=4):
    case = contenders.make_case(model, "float32", batch)
    return case, contenders.in_torch(case)


@pytest.mark.parametrize("model", ["wrn-10-1", "wrn-16-2", "resnet18", "small"])
def test_logits(model):
    case, theirs = both(model)
    ours = case.network.apply(case.params, case.state, case.images).logits
    images = torch.tensor(np.asarray(case.images).transpose(0, 3, 1, 2).copy())
    np.testing.assert_allclose(theirs(images).detach(), ours, rtol=0, atol=2e-5)


def test_a_network_that_is_not_written_there():
    assert contenders.in_torch(contenders.make_case("small_cnn", "float32", 2)) is None
    for model in ("small_cnn", "RN50"):
        assert "not written" in contenders.obstacle(model, "torch")
    for model in ("wrn-10-1", "ViT-B/32"):
        assert contenders.obstacle(model, "torch") is None


@pytest.mark.parametrize(("variant", "dtype"), [("torch", "float32"), ("channels_last", "bfloat16")])
def test_attacks_are_equally_strong(variant, dtype):
    """Also after half of the steps the two are not: so the check can fail."""
    batch, eps, steps = 16, 8 / 255, 4
    case = contenders.make_case("wrn-10-1", dtype, batch)
    ours = contenders.ours(case, steps)
    half = contenders.half_broken(case, ours.images, eps)
    expected = contenders.strength(case, ours.images, eps, half)
    theirs = contenders.theirs(case, variant, steps, eps)
    found = contenders.strength(case, theirs.images, eps, half)
    assert contenders.same_strength(expected, found, dtype, batch)
    assert 0 < expected["robust_accuracy_at_half_broken_eps"] < 1
    weaker = contenders.strength(case, contenders.theirs(case, variant, 1, eps).images, eps, half)
    assert not contenders.same_strength(expected, weaker, dtype, batch)


@pytest.fixture(scope="module")
def one_step():
    case, _ = both("wrn-10-1", 8)
    return case, contenders.ours(case, 1).images(8 / 255)


@pytest.mark.parametrize("variant", ["torch", *contenders.PEERS])
def test_one_step_moves_the_same_way(one_step, variant):
    if variant in contenders.PEERS:
        pytest.importorskip(variant)
    case, ours = one_step
    same = np.abs(ours - contenders.theirs(case, variant, 1, 8 / 255).images(8 / 255)) < 1e-6
    assert same.mean() > 0.999  # the rest are gradients near zero, of other sign
    assert not jnp.allclose(ours, case.start(8 / 255), atol=1e-4)
