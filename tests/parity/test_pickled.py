"""Files that torch.save writes, read without torch."""

from __future__ import annotations

import collections

import pytest

from jrobust import pickled
from jrobust.pickled import Symbol

torch = pytest.importorskip("torch")


@pytest.mark.parametrize("new", [True, False], ids=["zip", "legacy"])
def test_files_of_torch(tmp_path, new):
    data = {"train": [["a"], [0]], "weights": collections.OrderedDict(w=torch.arange(6.0).reshape(2, 3))}
    torch.save(data, tmp_path / "a.torch", _use_new_zipfile_serialization=new)
    read = pickled.read_torch(tmp_path / "a.torch")
    tensor = read["weights"]["w"]
    assert read["train"] == data["train"]
    assert tensor.function == Symbol("torch._utils", "_rebuild_tensor_v2")
    assert tensor.args[0].id[:2] == ("storage", Symbol("torch", "FloatStorage"))
    assert tensor.args[1:4] == (0, (2, 3), (3, 1))


def test_a_network_and_its_moments(tmp_path):
    network = torch.nn.Linear(2, 3)
    torch.save(
        {"state": network.state_dict(), "optimizer": torch.optim.Adam(network.parameters()).state_dict()},
        tmp_path / "a.pt",
    )
    read = pickled.read_torch(tmp_path / "a.pt")
    assert list(read["state"]) == ["weight", "bias"]
    assert read["optimizer"]["param_groups"][0]["betas"] == (0.9, 0.999)
