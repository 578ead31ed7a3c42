"""Two processes with two devices each train as one with four does: whole, killed and started again, and stopped."""

import json
import os
import re
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest

from jrobust.evaluation.record import Record
from jrobust.training import checkpoint, logging, parallel
from tests.end_to_end import two_processes

HEARTBEAT = 10
WHOLE = "--config.train.shard_state=none"  # of one process; that of two is split over all four devices


def launch(phase, folder):
    """Start both processes and wait for them; return their statuses and what they wrote."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2 --xla_backend_optimization_level=0",
        "JAX_COMPILATION_CACHE_DIR": str(two_processes.ROOT / ".pytest_cache" / "compiled"),
    }
    flags = [f"--coordinator={address}", "--num_processes=2", f"--heartbeat_timeout={HEARTBEAT}"]
    command = [sys.executable, two_processes.__file__, phase, str(folder), *flags]
    pair = [
        subprocess.Popen(
            [*command, f"--process_id={i}"], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for i in range(2)
    ]
    try:
        written = [process.communicate(timeout=240) for process in pair]
    finally:
        for process in pair:
            process.kill()
    return [process.returncode for process in pair], written


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The folder of a whole run, and of one whose second process was killed and whose newest checkpoint is damaged."""
    folder = tmp_path_factory.mktemp("runs")
    statuses, written = launch("first", folder)
    assert checkpoint.saved_steps(folder / "whole")[-1] == 12, written
    # The process that is left ends when the other has been silent for too long.
    assert statuses[1] == -9 and statuses[0] not in (0, None), written
    assert checkpoint.saved_steps(folder / "killed") == [3, 6], written
    (folder / "killed" / "checkpoints" / "6" / "_CHECKPOINT_METADATA").write_text("{")
    return folder


@pytest.fixture(scope="module")
def restarted(folder):
    statuses, written = launch("second", folder)
    assert statuses == [0, 0], written
    return folder, written


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("single")
    two_processes.train(workdir, WHOLE, mesh=parallel.make_mesh(4))
    return workdir


def leaves(workdir):
    variables, step = checkpoint.restore_variables(workdir)
    assert step == 12
    return [np.asarray(leaf) for leaf in jax.tree.leaves(variables)]


def close(left, right):
    return all(np.allclose(a, b, rtol=0, atol=1e-6) for a, b in zip(leaves(left), leaves(right), strict=True))


def test_two_processes_are_one(folder, single):
    assert close(folder / "whole", single)
    ours, theirs = (logging.read(workdir / "metrics.jsonl") for workdir in (folder / "whole", single))
    assert [list(record) for record in ours] == [list(record) for record in theirs]
    for left, right in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(list(left.values()), list(right.values()), rtol=2e-6)


def test_killed_and_started_again_is_the_same_run(restarted):
    folder, written = restarted
    assert "resuming from step 3 of 12" in written[0][0] and "resuming" not in written[1][0]
    assert "4 x cpu in 2 processes" in written[0][0]
    for left, right in zip(leaves(folder / "killed"), leaves(folder / "whole"), strict=True):
        assert left.tobytes() == right.tobytes()
    assert (folder / "killed" / "metrics.jsonl").read_bytes() == (folder / "whole" / "metrics.jsonl").read_bytes()
    # What comes after training is of process 0 alone.
    assert Record.read(folder / "killed" / "evaluation" / "accuracy.json").examples == 360
    assert json.loads((folder / "killed" / "finished.json").read_text())["failures"] == []
    environment = json.loads((folder / "killed" / "environment.json").read_text())
    assert environment["processes"] == 2 and [entry["step"] for entry in environment["resumed"]] == [3]


def test_a_signal_to_one_stops_both_after_the_same_step(restarted, single):
    folder, written = restarted
    stopped = [re.search(r"stopped at (\d+) by (\d+)", text)[0] for _, text in written]
    assert stopped[0] == stopped[1]
    step = checkpoint.saved_steps(folder / "stopped")[-1]
    assert f"stopped at {step} by 15" == stopped[0] and 3 < step < 12
    # One process goes on from there.
    assert two_processes.train(folder / "stopped", WHOLE, mesh=parallel.make_mesh(4)).resumed_from == step
    assert close(folder / "stopped", single)
