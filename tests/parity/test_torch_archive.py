"""Tensors of the files that PyTorch writes, to the bit."""

from __future__ import annotations

import collections
import sys

import numpy as np
import pytest

from jrobust.errors import InputError
from jrobust.weights import torch_archive

torch = pytest.importorskip("torch")

DTYPES = ("float32", "float64", "float16", "bfloat16", "uint8", "int8", "int16", "int32", "int64", "bool")
NEW_DTYPES = ("uint16", "uint32", "uint64")


def same(found, expected):
    assert list(found) == list(expected)
    for name, value in expected.items():
        assert (found[name].shape, found[name].dtype.name) == (value.shape, str(value.dtype).removeprefix("torch."))
        numbers = value.detach().contiguous().reshape(-1).view(torch.uint8).numpy()
        assert found[name].tobytes() == numbers.tobytes(), name


def tensors():
    torch.manual_seed(0)
    base = torch.randn(4, 6)
    return collections.OrderedDict(
        base=base,
        transposed=base.T,
        rows=base[1:3],
        columns=base[:, 1::2],
        stretched=base[0].expand(3, 6),
        channels_last=torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last),
        scalar=torch.tensor(2.5),
        empty=torch.zeros(0, 3),
        parameter=torch.nn.Parameter(torch.randn(3)),
        special=torch.tensor([float("nan"), float("inf"), -0.0, 1e-45]),
        **{name: (10 * torch.randn(5, 2)).to(getattr(torch, name)) for name in DTYPES},
    )


@pytest.mark.parametrize("new", [True, False], ids=["zip", "stream"])
@pytest.mark.parametrize("nested", [True, False])
def test_a_state_dict(tmp_path, new, nested):
    data = tensors()
    checkpoint = {"epoch": 3, "optimizer": {"state": {0: {"step": torch.ones(3)}}}, "state_dict": data}
    torch.save(checkpoint if nested else data, tmp_path / "a.pth", _use_new_zipfile_serialization=new)
    same(torch_archive.read(tmp_path / "a.pth"), data)


def test_types_without_a_class_of_storages(tmp_path):
    data = {name: torch.arange(5).to(getattr(torch, name)) for name in NEW_DTYPES}
    torch.save(data, tmp_path / "a.pt")
    same(torch_archive.read(tmp_path / "a.pt"), data)


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 2), torch.nn.BatchNorm2d(4), torch.nn.ReLU())
        self.attention = torch.nn.MultiheadAttention(8, 2)
        self.text = torch.nn.Parameter(torch.randn(3, 4).T.half())
        self.register_buffer("context_length", torch.tensor(77))
        self.size = 224

    def forward(self, x):
        return self.layers(x).sum() * self.size + self.text.float().sum()


@pytest.mark.filterwarnings("ignore:`torch.jit")
@pytest.mark.parametrize("traced", [True, False])
def test_a_torchscript_module(tmp_path, traced):
    torch.manual_seed(0)
    net = Net().eval()
    script = torch.jit.trace(net, torch.zeros(1, 3, 8, 8)) if traced else torch.jit.script(net)
    torch.jit.save(script, tmp_path / "a.pt")
    found = torch_archive.read(tmp_path / "a.pt")
    expected = script.state_dict()
    assert len(expected) >= 8
    same({name: found[name] for name in expected}, expected)
    assert set(found) == set(expected)


def test_what_has_no_plain_numbers_is_one_line(tmp_path):
    bad = {
        "sparse": torch.ones(2, 2).to_sparse(),
        "complex": torch.ones(2, dtype=torch.complex64),
        "negated": torch._neg_view(torch.ones(2)),
        "float8": torch.ones(2).to(torch.float8_e4m3fn),
    }
    for name, value in bad.items():
        torch.save({"good": torch.ones(2), name: value}, tmp_path / "a.pt")
        with pytest.raises(InputError, match=name):
            torch_archive.read(tmp_path / "a.pt")
    torch.save(torch.nn.Linear(2, 2), tmp_path / "a.pt")
    with pytest.raises(InputError, match=r"an object of torch.nn.modules.linear.Linear: expected a state_dict"):
        torch_archive.read(tmp_path / "a.pt")


def test_pytorch_agrees_on_what_is_damaged(tmp_path):
    assert sys.byteorder == "little"
    torch.save(tensors(), tmp_path / "a.pt")
    content = (tmp_path / "a.pt").read_bytes()
    for length in np.linspace(1, len(content) - 1, 20).astype(int):
        (tmp_path / "a.pt").write_bytes(content[:length])
        with pytest.raises(InputError) as error:
            torch_archive.read(tmp_path / "a.pt")
        assert "\n" not in str(error.value)
