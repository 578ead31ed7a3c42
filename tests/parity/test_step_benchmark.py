"""The training steps that the benchmark writes in PyTorch compute our losses, of the same weights, images and draws."""

import dataclasses

import pytest

torch = pytest.importorskip("torch")

from benchmarks import paper_steps, torch_attack, torch_steps  # noqa: E402


@pytest.fixture(scope="module", params=["pgd", "biasadv", "art"])
def step(request):
    start, expected = paper_steps.given(request.param, "wrn-10-1", "float32", 2)
    network = paper_steps.make_method(request.param, "wrn-10-1", "float32").classifier

    def losses(count, **changes):
        section = start["method"] | changes.pop("method", {})
        taken = torch_steps.Given(**start | {"method": section} | changes)
        run = torch_steps.make_step(request.param, network, taken, where="cpu")
        return [run() for _ in range(count)]

    return request.param, expected, losses


def test_first_loss_is_ours_and_the_second_is_lower(step):
    name, expected, losses = step
    first, second = losses(2)
    assert first == pytest.approx(expected, rel=1e-4)
    assert second < first, name


def test_another_attack_has_another_loss(step):
    """So the comparison can fail."""
    name, expected, losses = step
    weaker = {"biasadv": {"debiased_weight": 0.0, "num_steps": 1}} if name == "biasadv" else {"num_steps": 1}
    if name == "biasadv":
        weaker["biasadv"] = {"eps": 0.5, "step_size": 0.02, "adv_weight": 1.0} | weaker["biasadv"]
    assert losses(1, method=weaker)[0] != pytest.approx(expected, rel=1e-3)


def test_the_module_of_fsr_computes_our_loss_where_no_sign_is_taken():
    method = paper_steps.make_method("fsr", "resnet18", "float32")
    method = dataclasses.replace(method, base=dataclasses.replace(method.base, num_steps=0))
    start, expected = paper_steps.given("fsr", "resnet18", "float32", 2, method)
    start["method"]["num_steps"] = 0
    assert start["draws"].keys() == {"start", "noise"}
    for changes, same in (({}, True), ({"draws": {"start": start["draws"]["start"]}}, False)):  # another noise
        taken = torch_steps.Given(**start | changes)
        first = torch_steps.make_step("fsr", method.classifier, taken, where="cpu")()
        assert (first == pytest.approx(expected, rel=1e-4)) == same


def test_a_branch_shares_all_but_its_batch_norms():
    net = torch_attack.Normalized(torch_attack.WideNet(10, 1, 3), (0.0,) * 3, (1.0,) * 3)
    twin = torch_steps._with_own_norms(net)
    own = {name for name, parameter in twin.named_parameters() if parameter is not dict(net.named_parameters())[name]}
    assert own and all(".bn" in name for name in own)
    assert any("conv" in name for name, _ in net.named_parameters())
