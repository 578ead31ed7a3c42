"""The training steps that the benchmark writes in PyTorch compute our losses, of the same weights, images and draws."""

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from benchmarks import paper_steps, papers, torch_attack, torch_steps  # noqa: E402

# What is wrong in a step that is not the same: numbers of its method, or a draw.
WRONG = {
    "pgd": ({"num_steps": 2}, {"step_size": 0.0079}),
    "biasadv": ({"q": 0.6}, {"biasadv": {"debiased_weight": 0.0}}, {"biasadv": {"adv_weight": 0.99}}),
    "art": ({"attribution_weight": 0.49}, {"mask_size": 999}, {"num_steps": 2}),
    "pmg_aft": ({"general_weight": 0.0}, {"clean_weight": 0.0}, {"reduction": "batchmean"}, {"num_steps": 2}),
    "masked_images": ({"feature_weight": 29.9}, {"threshold": 0.5}, "donors"),
    "fsr": ("noise", "start"),
}


@pytest.fixture(scope="module", params=papers.METHODS)
def step(request):
    name, batch = request.param, 4 if request.param in papers.OF_CLIP else 2
    with jax.enable_x64(True):
        made = papers.small_step(name, "resnet18" if name == "fsr" else "wrn-10-1", batch, num_steps=name != "fsr")
        start, arguments = papers.first_step(made, batch)
        ours = papers.once(lambda *given: made.method.loss(*given)[0], *arguments)
    return made, start, float(ours)


def changed(start, wrong):
    if isinstance(wrong, str):
        return start._replace(draws=start.draws | {wrong: np.roll(start.draws[wrong], 1, 0)})
    inner = {name: start.method[name] | value for name, value in wrong.items() if isinstance(value, dict)}
    return start._replace(method=start.method | wrong | inner)


def test_first_loss_is_ours_and_the_second_is_lower(step):
    made, start, ours = step
    run = paper_steps.torch_step(made, start)
    first, second = run(), run()
    assert first == pytest.approx(ours, rel=paper_steps.LOSS_TOLERANCE)
    assert second < first


def test_another_step_has_another_loss(step):
    """So the comparison can fail."""
    made, start, ours = step
    for wrong in WRONG[made.name]:
        found = paper_steps.torch_step(made, changed(start, wrong))()
        assert found != pytest.approx(ours, rel=10 * paper_steps.LOSS_TOLERANCE), wrong


def test_a_branch_shares_all_but_its_batch_norms():
    net = torch_attack.Normalized(torch_attack.WideNet(10, 1, 3), (0.0,) * 3, (1.0,) * 3)
    twin = torch_steps._with_own_norms(net)
    own = {name for name, parameter in twin.named_parameters() if parameter is not dict(net.named_parameters())[name]}
    assert own and all(".bn" in name for name in own)
    assert any("conv" in name for name, _ in net.named_parameters())
