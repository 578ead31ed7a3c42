"""Files of PyTorch, written by hand; `tests/parity` has those that PyTorch writes."""

from __future__ import annotations

import collections
import os
import random
import struct
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jrobust.errors import InputError
from jrobust.weights import arrays, torch_archive
from jrobust.weights.load import load
from jrobust.weights.torch_layouts import to_torch
from tests.weights.torch_files import ROW, Made, Reference, dumps, save, symbol, tensor, write, write_stream


def test_strides_offsets_and_shared_storages(tmp_path):
    data = {
        "whole": tensor("0", 6, (2, 3), (3, 1)),
        "transposed": tensor("0", 6, (3, 2), (1, 3)),
        "part": tensor("0", 6, (2,), (2,), offset=1),
        "scalar": tensor("0", 6, (), (), offset=5),
        "stretched": tensor("0", 6, (4, 2), (0, 1)),
        "empty": tensor("0", 6, (0, 3), (3, 1)),
        "parameter": Made(symbol("torch._utils._rebuild_parameter"), tensor("0", 6, (6,), (1,)), True, {}),
        "old": tensor("0", 6, (6,), (1,), version=1),
        "count": 3,
    }
    expected = {
        "whole": ROW.reshape(2, 3),
        "transposed": ROW.reshape(2, 3).T,
        "part": ROW[1::2][:2],
        "scalar": ROW[5],
        "stretched": np.broadcast_to(ROW[:2], (4, 2)),
        "empty": np.zeros((0, 3), np.float32),
        "parameter": ROW,
        "old": ROW,
    }
    for path in (write(tmp_path / "a.pt", data), write_stream(tmp_path / "old.pt", data, {"0": ROW})):
        found = torch_archive.read(path)
        assert list(found) == list(expected)
        for name, array in expected.items():
            assert found[name].shape == array.shape and found[name].dtype == np.float32
            np.testing.assert_array_equal(found[name], array, err_msg=name)


@pytest.mark.parametrize("kind", [*torch_archive.STORAGES, *torch_archive.DTYPES])
def test_types(tmp_path, kind):
    dtype = np.dtype((torch_archive.STORAGES | torch_archive.DTYPES)[kind])
    array = np.array([0, 1, 3, 100], np.float32).astype(dtype)
    if kind in torch_archive.STORAGES:
        data = {"x": tensor("0", 4, (4,), (1,), kind=kind)}
    else:
        place = Reference("storage", symbol("torch.storage.UntypedStorage"), "0", "cpu", array.nbytes)
        arguments = (place, 0, (4,), (1,), False, {}, symbol(f"torch.{kind}"))
        data = {"x": Made(symbol("torch._utils._rebuild_tensor_v3"), *arguments)}
    found = torch_archive.read(write(tmp_path / "a.pt", data, {"0": array}))["x"]
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, array)
    assert (jnp.bfloat16 in torch_archive.STORAGES.values()) and found.tobytes() == array.tobytes()


def test_a_stream_has_its_storages_in_the_order_of_its_keys(tmp_path):
    storages = {"7": ROW, "3": ROW.astype(np.int64) + 10, "5": ROW[:2] + 20}
    data = {
        "state_dict": {"a": tensor("3", 6, (6,), (1,), kind="LongStorage"), "b": tensor("5", 2, (2,), (1,))},
        "optimizer": {"state": {0: {"momentum": tensor("7", 6, (6,), (1,))}}},
    }
    found = torch_archive.read(write_stream(tmp_path / "a.pth", data, storages, ["7", "3", "5"]))
    np.testing.assert_array_equal(found["a"], ROW + 10)
    np.testing.assert_array_equal(found["b"], [20, 21])


def test_the_state_dict_of_a_checkpoint(tmp_path):
    one, two = tensor("0", 6, (6,), (1,)), tensor("0", 6, (2,), (1,))
    moments = {"state": {0: {"exp_avg": two}}}
    for checkpoint in ({"net_of_mine": {"x": one}}, {"ema": {"x": two}, "state_dict": {"x": one}}):
        path = write(tmp_path / "a.pt", checkpoint | {"epoch": 3, "optimizer": moments})
        assert torch_archive.read(path)["x"].shape == (6,)
    path = write(tmp_path / "a.pt", {"best_acc1": two, "model": {"x": one}, "ema": {"y": two}})
    assert list(torch_archive.read(path)) == ["x"]
    assert torch_archive.entries(path) == ["model", "ema"]
    path = write(tmp_path / "a.pt", {"x": one, "buffers": {"y": two}})
    assert list(torch_archive.read(path)) == ["x"]
    path = write(tmp_path / "a.pt", {"vision": {"x": one}, "prompts": {"y": two}})
    assert list(torch_archive.read(path, entry="prompts")) == ["y"]
    with pytest.raises(InputError, match="entries: vision, prompts; expected one of them"):
        torch_archive.read(path)
    with pytest.raises(InputError, match="entries: vision, prompts; expected audio"):
        torch_archive.read(path, entry="audio")


def module(name, **state):
    return Made(symbol(f"__torch__.{name}"), state=state)


def test_a_torchscript_module(tmp_path):
    inner = module("torch.nn.Linear", weight=tensor("0", 6, (2, 3), (3, 1)), training=True)
    layers = module("Sequential", **{"0": inner, "1": module("torch.nn.ReLU", training=True)})
    data = module("CLIP", layers=layers, scale=tensor("0", 6, (), ()), size=224, sizes=[1, 2], more=None)
    found = torch_archive.read(write(tmp_path / "a.pt", data, **{"constants.pkl": dumps(()), "version": b"3\n"}))
    assert list(found) == ["layers.0.weight", "scale"]
    np.testing.assert_array_equal(found["layers.0.weight"], ROW.reshape(2, 3))


def test_nothing_is_executed(tmp_path):
    evil = Made(os.mkdir, str(tmp_path / "made"))
    kinds = {"state_dict": {"x": tensor("0", 6, (6,), (1,)), "y": evil}, "script": module("Net", x=evil), "root": evil}
    for name, data in kinds.items():
        with pytest.raises(InputError, match=r"mkdir would make|holds no tensors|an object of \w+.mkdir"):
            torch_archive.read(write(tmp_path / f"{name}.pt", data))
    assert not (tmp_path / "made").exists()


BAD = [
    (tensor("0", 6, (7,), (1,)), r"shape \(7,\) needs 7 numbers, its storage has 6"),
    (tensor("0", 6, (2, 3), (4, 1)), "needs 7 numbers"),
    (tensor("0", 6, (6,), (1,), offset=1), "needs 7 numbers"),
    (tensor("0", 6, (2,), (2**61,)), "its storage has 6"),
    (tensor("0", 6, (2**40, 6), (0, 1)), "far larger than the file"),
    (tensor("0", 6, (2**61, 2**61), (0, 0)), "x has the shape"),
    (tensor("0", 6, (2**33,), (0,)), "far larger than the file"),
    (tensor("0", 6, (0, 2**61), (0, 0)), "x has the shape"),
    (tensor("0", 6, (1,) * 70, (1,) * 70), "x has the shape"),
    (tensor("0", 6, (-1,), (1,)), r"shape \(-1,\).*damaged"),
    (tensor("0", 6, (3,), (-1,)), r"strides \(-1,\).*damaged"),
    (tensor("0", 6, (3,), (1, 1)), r"strides \(1, 1\).*damaged"),
    (tensor("0", 6, (2.0,), (1,)), "damaged"),
    (tensor("0", 6, [2], [1]), "damaged"),
    (tensor("0", 6, 2, (1,)), "damaged"),
    (tensor("0", 6, (3,), (1,), offset=-1), "damaged"),
    (tensor("0", 7, (3,), (1,)), "24 bytes, expected 28 for 7 numbers of float32.*damaged"),
    (tensor("0", 5, (3,), (1,)), "24 bytes, expected 20"),
    (tensor("0", 6, (3,), (1,), kind="HalfStorage"), "24 bytes, expected 12"),
    (tensor("1", 6, (3,), (1,)), r"archive/data/1 is not in the zip"),
    (tensor("../data.pkl", 6, (3,), (1,)), "not in the zip"),
    (tensor(0, 6, (3,), (1,)), "damaged"),
    (tensor("0", 3, (3,), (1,), kind="ComplexFloatStorage"), "numbers of torch.ComplexFloatStorage: expected.*float32"),
    (tensor("0", 6, (3,), (1,), kind="storage.UntypedStorage"), "numbers of .*expected one of"),
    (tensor("0", 6, (3,), (1,), rest=({"neg": True},)), "neg.*clone"),
    (Made(symbol("torch._utils._rebuild_tensor_v2"), 1, 2, 3, 4), "without a storage"),
    (Made(symbol("torch._utils._rebuild_tensor_v2")), "without a storage"),
    (Made(symbol("torch._utils._rebuild_tensor_v2"), Reference("elsewhere"), 0, (), ()), "expected one inside"),
    (Made(symbol("torch._utils._rebuild_parameter"), 3), "a parameter without a tensor"),
    (Made(symbol("torch._utils._rebuild_qtensor"), 3), "what torch._utils._rebuild_qtensor would make"),
]


@pytest.mark.parametrize(("bad", "message"), BAD, ids=[message for _, message in BAD])
def test_bad_tensors_are_one_line(tmp_path, bad, message):
    path = write(tmp_path / "a.pt", {"good": tensor("0", 6, (6,), (1,)), "x": bad})
    with pytest.raises(InputError, match=message) as error:
        torch_archive.read(path)
    assert str(error.value).startswith(f"{path}") and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({}, "holds no tensors"),
        ({"epoch": 3}, "holds no tensors"),
        ([tensor("0", 6, (6,), (1,))], "holds a list: expected a state_dict"),
        (Made(symbol("torch.nn.modules.linear.Linear"), state={}), "an object of torch.nn.modules.linear.Linear"),
        ({"two\nlines": tensor("0", 7, (6,), (1,))}, r"bytes, expected 28"),
        ({"two\nlines": Made(symbol("torch.other"))}, r"two\\nlines' is no tensor but what torch.other"),
    ],
)
def test_files_of_other_things_are_one_line(tmp_path, data, message):
    with pytest.raises(InputError, match=message) as error:
        torch_archive.read(write(tmp_path / "a.pt", data))
    assert "\n" not in str(error.value)


def test_damaged_archives_are_one_line(tmp_path):
    data = {"x": tensor("0", 600, (600,), (1,))}
    storages = {"0": np.arange(600, dtype=np.float32)}
    path = tmp_path / "a.pt"

    def fails(match):
        with pytest.raises(InputError, match=match) as error:
            torch_archive.read(path)
        assert "\n" not in str(error.value)

    fails("there is no file")
    for make in (write, write_stream):
        content = make(path, data, storages).read_bytes()
        for length in (0, 3, 10, len(content) // 2, len(content) - 10):
            path.write_bytes(content[:length])
            fails("cut off")
    write(path, data, storages)
    content = bytearray(path.read_bytes())
    content[content.index(storages["0"].tobytes()) + 100] ^= 1
    path.write_bytes(content)
    fails("Bad CRC-32")
    write(path, data, storages, byteorder=b"big")
    fails("little-endian")
    noise = {"0": np.random.default_rng(0).integers(0, 256, 2400, np.uint8)}
    write(path, data, noise, zipfile.ZIP_DEFLATED)
    fails("compressed")
    write_stream(path, data, storages)
    content = path.read_bytes()
    start = content.index(struct.pack("<q", 600))
    path.write_bytes(content[:start] + struct.pack("<q", 2**55) + content[start + 8 :])
    fails("more than the file")
    write_stream(path, data | {"y": tensor("9", 6, (6,), (1,))}, storages)
    fails("lacks the storage 9")


def test_whatever_is_changed_in_a_file_it_is_tensors_or_one_line(tmp_path):
    draw = random.Random(0)
    path, outcomes = tmp_path / "a.pt", collections.Counter()
    data, storages = {f"x{i}": tensor(str(i), 2, (2,), (1,)) for i in range(4)}, {str(i): ROW[:2] for i in range(4)}
    originals = [make(path, data, storages).read_bytes() for make in (write, write_stream)]
    for _ in range(400):
        content = bytearray(draw.choice(originals))
        for _ in range(draw.randint(1, 3)):
            content[draw.randrange(len(content))] = draw.randrange(256)
        path.write_bytes(content)
        try:
            torch_archive.read(path)
            outcomes["tensors"] += 1
        except InputError as error:
            outcomes["refused"] += 1
            assert "\n" not in str(error)
    assert min(outcomes["tensors"], outcomes["refused"]) > 20


@pytest.mark.parametrize("ending", [".pt", ".pth"])
def test_a_model_is_loaded_from_it(variables, tmp_path, ending):
    classifier, params, stats = variables("resnet20_cifar")
    foreign = to_torch(params, stats, "cifar_resnet")
    state = {f"module.{name}": array for name, array in foreign.items()}
    path = save(tmp_path / f"weights{ending}", {"state_dict": state, "epoch": 90})
    new = load(path, classifier, *jax.tree.map(np.zeros_like, (params, stats)))
    jax.tree.map(np.testing.assert_array_equal, new, (params, stats))


def test_what_cannot_be_read_is_refused_with_the_way_out(tmp_path):
    path = write(tmp_path / "resnet.pth", Made(symbol("models.ResNet"), state={}))
    with pytest.raises(
        InputError, match=r"of models.ResNet.*torch.load.*weights_only=True.*resnet.safetensors"
    ) as error:
        arrays.read(path)
    assert "\n" not in str(error.value)
