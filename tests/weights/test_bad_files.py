"""Whatever file is given as weights: it is read, or refused in one line, and nothing in it runs."""

from __future__ import annotations

import os
import pickle

import jax
import numpy as np
import pytest
import safetensors.numpy

from jrobust.errors import InputError
from jrobust.weights import clip_layouts
from jrobust.weights.clip_layouts import to_foreign
from jrobust.weights.clip_towers import load_image_tower
from jrobust.weights.load import load
from jrobust.weights.torch_layouts import to_torch
from tests.weights.clip_models import VIT, random
from tests.weights.torch_files import Made, dumps, save, write, write_stream


@pytest.fixture(scope="module")
def clip():
    return random(VIT)


@pytest.fixture
def loaders(variables):
    """Every way to weights: a whole CLIP, its image tower, another network."""
    network = variables("resnet20_cifar")
    return {
        "clip": lambda path: clip_layouts.load(path, VIT),
        "tower": lambda path: load_image_tower(path, VIT),
        "network": lambda path: load(path, *network),
    }


def refused(loaders, path, match, names=("clip", "tower", "network")):
    for name in names:
        with pytest.raises(InputError, match=match) as error:
            loaders[name](path)
        text = str(error.value)
        assert "\n" not in text and path.name in text, name


def test_whole_files_are_read(loaders, clip, tmp_path):
    path = save(tmp_path / "a.pt", to_foreign(clip))
    loaders["clip"](path), loaders["tower"](path)


@pytest.mark.parametrize("ending", [".pt", ".safetensors", ".npz"])
def test_files_cut_off_anywhere(loaders, clip, tmp_path, ending):
    path = tmp_path / f"cut{ending}"
    arrays = to_foreign({"image": clip["image"]})
    {
        ".pt": lambda: save(path, arrays),
        ".safetensors": lambda: safetensors.numpy.save_file(arrays, path),
        ".npz": lambda: np.savez(path, **arrays),
    }[ending]()
    content = path.read_bytes()
    lengths = [0, 1, 4, 30, 1000, *(len(content) * i // 7 for i in range(1, 7)), len(content) - 22, len(content) - 1]
    for length in lengths:
        path.write_bytes(content[:length])
        refused(loaders, path, r"cut off|cannot be read")


def evil(folder):
    return [
        Made(os.mkdir, str(folder / "made")),
        Made(os.system, f"touch {folder / 'made'}"),
        Made(eval, f"open({str(folder / 'made')!r}, 'w')"),
    ]


def test_nothing_in_a_pickle_runs(loaders, clip, tmp_path):
    arrays = to_foreign(clip)
    for number, call in enumerate(evil(tmp_path)):
        places = {
            "root": call,
            "leaf": {"visual.conv1.weight": call},
            "entry": {"vision_encoder_state_dict": call, "state_dict": {"x": call}},
            "key": {"epoch": 3, "arguments": [call]},
        }
        for name, data in places.items():
            write(path := tmp_path / f"{name}{number}.pt", data)
            refused(loaders, path, "expected")
            write_stream(path, data, {})
            refused(loaders, path, "expected")
        (path := tmp_path / f"plain{number}.bin").write_bytes(dumps(call))
        refused(loaders, path, "no file of torch.save")
        path = save(tmp_path / f"among{number}.pt", arrays | {"more": call})
        refused(loaders, path, "more is no tensor but what .* would make", ("clip", "tower"))
    assert pickle.loads(dumps(Made(os.path.join, "a", "b"))) == os.path.join("a", "b")  # such calls would run
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"weights\n",
        b"<!DOCTYPE html><html>404</html>",
        b"version https://git-lfs.github.com/spec/v1\n",
        b"\x80\x02}.",
    ],
    ids=["empty", "text", "page", "pointer", "pickle"],
)
@pytest.mark.parametrize("ending", [".pt", ".pth", ".safetensors", ".npz", ".bin"])
def test_files_of_something_else(loaders, tmp_path, content, ending):
    (path := tmp_path / f"file{ending}").write_bytes(content)
    refused(loaders, path, "cannot be read|no file of torch.save|cut off")


def test_folders_and_unknown_endings(loaders, tmp_path):
    (path := tmp_path / "folder.pt").mkdir()
    refused(loaders, path, "there is no file")
    (path := tmp_path / "weights.h5").write_bytes(b"")
    refused(loaders, path, "ending '.h5'")


def test_weights_of_another_network(loaders, clip, variables, tmp_path):
    _, params, stats = variables("resnet18", size=64)
    path = save(tmp_path / "resnet18.pth", to_torch(params, stats))
    refused(loaders, path, "expected CLIP's", ("clip", "tower"))
    refused(loaders, path, r"lacks linear.weight|surplus|of another model", ("network",))
    refused(loaders, save(tmp_path / "clip.pt", to_foreign(clip)), "keys such as .* expected one of", ("network",))


@pytest.mark.parametrize("dtype", ["int64", "uint8", "bool", "complex64"])
@pytest.mark.parametrize("ending", [".npz", ".safetensors"])
def test_numbers_of_another_kind(loaders, clip, tmp_path, dtype, ending):
    arrays = to_foreign(clip)
    arrays["visual.proj"] = np.ones(arrays["visual.proj"].shape, dtype)
    path = tmp_path / f"a{ending}"
    np.savez(path, **arrays) if ending == ".npz" else safetensors.numpy.save_file(arrays, path)
    refused(loaders, path, f"visual.proj has dtype {dtype}, expected floating point", ("clip", "tower"))


def test_no_name_too_few_or_too_many(loaders, clip, tmp_path):
    arrays = to_foreign({"image": clip["image"]})
    for name in list(arrays)[::4]:
        path = save(tmp_path / "few.pt", {other: array for other, array in arrays.items() if other != name})
        refused(loaders, path, f"{name}|keys such as", ("tower",))
    path = save(tmp_path / "many.pt", arrays | {"visual.more": np.ones(1, "f4")})
    refused(loaders, path, "surplus visual.more", ("tower",))
    jax.tree.map(np.testing.assert_array_equal, loaders["tower"](save(path, arrays)).params["image"], clip["image"])
