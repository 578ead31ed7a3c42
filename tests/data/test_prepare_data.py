"""The command that prepares and checks data, run as a user runs it."""

from __future__ import annotations

import importlib.util
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from jrobust.data import load
from jrobust.errors import InputError

SCRIPT = pathlib.Path(__file__).parents[2] / "launch" / "prepare_data.py"


@pytest.fixture(scope="module")
def prepare_data():
    spec = importlib.util.spec_from_file_location("prepare_data_under_test", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_as_a_command_from_anywhere(tmp_path):
    done = subprocess.run([sys.executable, SCRIPT, "digits"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and "1437" in done.stdout and "complete" in done.stdout, done.stderr
    done = subprocess.run([sys.executable, SCRIPT, "digit"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert "did you mean 'digits'?" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("arguments, match", [([], "required: DATASET"), (["digits", "--folder=x"], "--folder=x")])
def test_wrong_arguments_are_one_line(prepare_data, arguments, match):
    with pytest.raises(InputError, match=match) as error:
        prepare_data.main(arguments)
    assert "\n" not in str(error.value) and "DATASET ... --dir=DIR" in str(error.value)


def test_what_is_there_is_checked(prepare_data, layouts, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    layouts.cifar10()
    layouts.cub200()
    layouts.folder("own", {"a": 2, "b": 3})
    prepare_data.main(["cifar10", "cub200", "image_folder:own", f"--dir={layouts.root}"])
    out = " ".join(capsys.readouterr().out.split())
    assert "35 of 50000 images" in out and "2 of 200 classes" in out and "2 to 3" in out
    assert f"cifar10: read from {layouts.root}/cifar-10-batches-bin" in out


def test_damage_is_not_hidden_by_an_offer_to_prepare(prepare_data, layouts):
    layouts.cifar10()
    (layouts.root / "cifar-10-batches-bin/test_batch.bin").write_bytes(b"short")
    for extra in ([], ["--check"]):
        with pytest.raises(InputError, match=r"test_batch.bin has 5 bytes"):
            prepare_data.main(["cifar10", f"--dir={layouts.root}", *extra])


def test_what_is_missing_is_named_with_its_address(prepare_data, tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"cub200 was not found .*CUB_200_2011.tgz into .* and unpack it there"):
        prepare_data.main(["cub200", f"--dir={tmp_path}"])
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "tensorflow" else find_spec(name))
    with pytest.raises(
        InputError, match=r"pip install 'jrobust\[prepare\]'.*or without it fetch .*cifar-10-binary.tar.gz"
    ):
        prepare_data.main(["cifar10", f"--dir={tmp_path}"])
    with pytest.raises(InputError, match=r"svhn was not found .*looked for"):
        prepare_data.main(["svhn", f"--dir={tmp_path}", "--check"])
    with pytest.raises(InputError, match="no data folder given"):
        prepare_data.main(["svhn"])


def test_tfds_prepares_where_tensorflow_is_installed(prepare_data, layouts, monkeypatch, capsys):
    """TensorFlow and the network are simulated; the builder, its writer and the reading are those of TFDS."""
    import tensorflow_datasets as tfds

    find_spec, real = importlib.util.find_spec, tfds.builder
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name == "tensorflow" or find_spec(name))

    def fails(*args, **kwargs):
        raise OSError("no network\nand more lines")

    monkeypatch.setattr(tfds, "builder", fails)
    with pytest.raises(InputError, match=r"TFDS could not prepare cifar10 .no network.; fetch https"):
        prepare_data.main(["cifar10", f"--dir={layouts.root}"])

    splits = {s: (layouts.images(n, 32, 32, 3), np.arange(n) % 10) for s, n in (("train", 20), ("test", 10))}
    monkeypatch.setattr(tfds, "builder", lambda *args, **kwargs: layouts.give(real(*args, **kwargs), splits))
    monkeypatch.setenv("COLUMNS", "200")
    prepare_data.main(["cifar10", f"--dir={layouts.root}"])
    out = capsys.readouterr().out
    assert "preparing cifar10 through TFDS" in out and "20 of 50000 images" in out


def test_corrupted_cifar10_is_built_by_name_and_options(prepare_data, layouts, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "200")
    layouts.cifar10(per_file=40)
    arguments = ["corrupted_cifar10", f"--dir={layouts.root}", "--ratio=10", "--seed=3"]
    with pytest.raises(InputError, match=r"not built in .* run it without --check"):
        prepare_data.main([*arguments, "--check"])
    assert not (layouts.root / "corrupted_cifar10").exists()
    prepare_data.main([*arguments, f"--export={layouts.root / 'png'}"])
    assert (layouts.root / "corrupted_cifar10" / "10pct-seed3.npz").is_file()
    assert {path.name for path in (layouts.root / "png").iterdir()} == {"10pct", "test"}
    assert len(list((layouts.root / "png").rglob("*.png"))) == 240
    prepare_data.main([*arguments, "--check"])
    test = next(line for line in capsys.readouterr().out.splitlines() if "test" in line and "40" in line)
    biases, labels = (getattr(load("corrupted_cifar10", "test", layouts.root, seed=3), f) for f in ("biases", "labels"))
    assert f" {sum(biases != labels)} " in test
    with pytest.raises(InputError, match="cub200 takes no --ratio"):
        prepare_data.main(["cub200", f"--dir={layouts.root}", "--ratio=10"])
    with pytest.raises(InputError, match="--export writes corrupted_cifar10"):
        prepare_data.main(["cifar10", f"--dir={layouts.root}", "--export=x"])


def test_the_number_of_classes_and_conflicts_is_that_of_the_options(prepare_data, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "200")
    prepare_data.main(["shapes", "--check", "--task=color_shape", "--size=64"])
    lines = [line.split("│")[1:-1] for line in capsys.readouterr().out.splitlines() if line.startswith("│")]
    rows = {cells[0].strip(): [cell.strip() for cell in cells[1:]] for cells in lines}
    assert set(rows) == {"train", "validation", "test"}
    assert rows["test"] == ["1024", "", "64", "16 to 16", "32x32x3", "complete"]  # a pair has no bias


def test_a_part_of_the_pets_is_checked(prepare_data, layouts, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "200")
    for part in ("trainval", "test"):
        layouts.write_text(f"oxford-iiit-pet/annotations/{part}.txt", "Bengal_1 6 1 2", "Birman_2 7 1 3")
    for file in ("Bengal_1", "Birman_2"):
        layouts.write_image(f"oxford-iiit-pet/images/{file}.jpg", 20, 30)
    prepare_data.main(["oxford_pets", "--check", f"--dir={layouts.root}", "--fit=crop"])
    out = capsys.readouterr().out
    assert "varies" in out and "2 of 37 classes" in out
    with pytest.raises(
        InputError, match=r"fgvc_aircraft was not found .* TFDS cannot prepare it: fetch .*2013b.tar.gz"
    ):
        prepare_data.main(["fgvc_aircraft", f"--dir={layouts.root}"])
