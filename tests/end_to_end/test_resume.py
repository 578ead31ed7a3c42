"""The command as it is written in the README, killed by force, asked to stop, and started again."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest

from jrobust.training import checkpoint, logging

ROOT = pathlib.Path(__file__).resolve().parents[2]
DRIVER = pathlib.Path(__file__).with_name("interrupted_run.py")
FLAGS = (
    "--config=configs/art_digits.py:variant=pgd,runlocal",
    "--config.method.num_steps=2",
    "--config.train.steps=14",
    "--config.train.log_every_steps=4",
    "--config.train.evaluate_every_epochs=0.12",  # every 5 steps
    "--config.checkpoint.every_steps=3",
    "--config.evaluation.after_training=()",
)


def start(workdir, *flags, interrupt=None, devices=1):
    """Run the command to its end; return what it did."""
    script = [str(DRIVER), str(interrupt[0]), interrupt[1]] if interrupt else ["launch/run.py"]
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".pytest_cache" / "compiled"),
    }
    command = [sys.executable, *script, *FLAGS, f"--workdir={workdir}", *flags]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)


def variables(workdir):
    found, step = checkpoint.restore_variables(workdir)
    assert step == 14
    return jax.tree.leaves(found)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of the run that nothing interrupted."""
    workdir = tmp_path_factory.mktemp("whole")
    done = start(workdir)
    assert done.returncode == 0, done.stderr
    return workdir


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """The folder of a run that was killed while the checkpoint of step 9 was being written, or just after."""
    workdir = tmp_path_factory.mktemp("killed")
    done = start(workdir, interrupt=(9, "SIGKILL"))
    assert done.returncode == -9, done.stderr
    assert checkpoint.saved_steps(workdir)[-1] in (6, 9)
    return workdir


def test_killed_stopped_and_finished_is_the_same_run(whole, killed, tmp_path):
    workdir = shutil.copytree(killed, tmp_path / "run")
    stopped = start(workdir, interrupt=(10, "SIGTERM"))
    assert stopped.returncode == 143, stopped.stderr
    assert "resuming from step" in stopped.stdout and "stopped and saved at step 11 of 14" in stopped.stdout
    assert checkpoint.saved_steps(workdir)[-1] == 11
    finished = start(workdir)
    assert finished.returncode == 0, finished.stderr
    assert "resuming from step 11 of 14" in finished.stdout
    for left, right in zip(variables(workdir), variables(whole), strict=True):
        assert np.asarray(left).tobytes() == np.asarray(right).tobytes()
    assert (workdir / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    exported = "export/model.safetensors"
    assert (workdir / exported).read_bytes() == (whole / exported).read_bytes()
    assert [entry["step"] for entry in json.loads((workdir / "environment.json").read_text())["resumed"]][-1] == 11


def test_another_mode_and_more_devices_may_go_on(whole, killed, tmp_path):
    workdir = shutil.copytree(killed, tmp_path / "run")
    finished = start(workdir, "--config.train.parallelism=pmap", devices=2)
    assert finished.returncode == 0, finished.stderr
    for left, right in zip(variables(workdir), variables(whole), strict=True):
        np.testing.assert_allclose(left, right, rtol=0, atol=5e-3)  # float32: signs of tiny gradients may differ
    steps = [record["step"] for record in logging.read(workdir / "metrics.jsonl")]
    assert steps == [record["step"] for record in logging.read(whole / "metrics.jsonl")]


def test_the_folder_says_what_was_run(whole):
    assert {path.name for path in whole.iterdir()} >= {
        *("config.json", "environment.json", "metrics.jsonl", "throughput.jsonl", "checkpoints", "export", "report")
    }
    config = json.loads((whole / "config.json").read_text())
    assert config["train"]["steps"] == 14 and len(config["model"]["mean"]) == 1
    assert list(whole.glob("events.out.tfevents.*"))


@pytest.mark.parametrize(
    "flags, message",
    [
        (("--config.seed=5",), "holds a run with another config: seed is 0 there and 5 here"),
        (("--config.train.steps=7",), "is at step 14 and the config asks for 7"),
    ],
)
def test_mistakes_are_one_line(whole, flags, message):
    before = (whole / "metrics.jsonl").read_bytes(), (whole / "config.json").read_bytes()
    failed = start(whole, *flags)
    assert failed.returncode == 1
    assert failed.stderr.startswith("error: ") and message in failed.stderr and failed.stderr.count("\n") == 1
    assert ((whole / "metrics.jsonl").read_bytes(), (whole / "config.json").read_bytes()) == before
