"""The flags that start several processes: what they ask for, and what cannot be."""

import socket

import distributed
import grid
import jax
import pytest
from absl import flags
from absl.testing import flagsaver

from jrobust.errors import InputError
from jrobust.training import parallel, processes


@pytest.fixture(autouse=True)
def parsed(monkeypatch):
    flags.FLAGS.mark_as_parsed()
    monkeypatch.delenv("SLURM_STEP_NUM_TASKS", raising=False)


@pytest.fixture
def never(monkeypatch):
    """Joining others is an error."""

    def initialize(*_, **__):
        raise AssertionError("initialised")

    monkeypatch.setattr(jax.distributed, "initialize", initialize)


@pytest.mark.parametrize("given", [{}, {"coordinator": "localhost:1", "num_processes": 1, "process_id": 0}])
def test_one_process_starts_nothing(never, given):
    with flagsaver.flagsaver(**given):
        assert distributed.joined(lambda: 7)() == 7


@pytest.mark.parametrize(
    "given, message",
    [
        ({"coordinator": "node:12"}, "--coordinator without --num_processes and --process_id"),
        ({"process_id": 0, "num_processes": 2}, "--num_processes and --process_id without --coordinator"),
        ({"coordinator": "node", "num_processes": 2, "process_id": 0}, "--coordinator=node: expected HOST:PORT"),
        ({"coordinator": "a:99999", "num_processes": 2, "process_id": 0}, "--coordinator=a:99999: expected HOST:PORT"),
        ({"coordinator": "a:1", "num_processes": 2, "process_id": 2}, "--process_id=2 of --num_processes=2"),
        ({"coordinator": "a:1", "num_processes": 2, "process_id": 1, "distributed": True}, "--distributed finds"),
    ],
)
def test_flags_that_do_not_go_together(never, given, message):
    with flagsaver.flagsaver(**given), pytest.raises(InputError, match=message):
        distributed.joined(lambda: 0)()


def test_a_task_of_slurm_that_would_train_alone(never, monkeypatch):
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "8")
    with pytest.raises(InputError, match="one of 8 tasks of a Slurm step: add --distributed"):
        distributed.joined(lambda: 0)()


def test_nobody_is_found(monkeypatch):
    def initialize(*_, **__):
        raise ValueError("coordinator_address should be defined.")

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    with (
        flagsaver.flagsaver(distributed=True),
        pytest.raises(InputError, match=r"--distributed finds no other processes .*start it by srun"),
    ):
        distributed.joined(lambda: 0)()


def test_a_coordinator_that_does_not_answer_and_a_port_that_is_taken(never):
    with socket.socket() as taken:
        taken.bind(("", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        for process, message in ((1, f"{address} does not answer within 0 s"), (0, f"{address}: cannot listen there")):
            given = {"coordinator": address, "num_processes": 2, "process_id": process, "initialization_timeout": 0}
            with flagsaver.flagsaver(**given), pytest.raises(InputError, match=message):
                distributed.joined(lambda: 0)()


def test_what_one_process_alone_can_do(monkeypatch):
    monkeypatch.setattr(processes, "count", lambda: 2)
    with pytest.raises(InputError, match=r"train.parallelism=pmap trains in one process: set train.parallelism=jit"):
        parallel.parallelize(lambda *_: None, parallel.make_mesh(), "pmap")
    with pytest.raises(InputError, match="a study is of one process"):
        grid.start("FILE", [], {})
