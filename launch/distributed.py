"""Many processes and hosts: starts JAX's own runtime, and ends it without leaving one process waiting for another.

Under Slurm and on TPU pods --distributed is enough: JAX finds the others. By hand, on each machine:

    python launch/run.py --config=FILE --workdir=SHARED/RUN --coordinator=HOST:PORT --num_processes=2 --process_id=0

HOST:PORT is of process 0, the only one that prints. See launch/slurm.sh and launch/tpu_pod.sh.
"""

from __future__ import annotations

import atexit
import os
import socket
import sys
import time
from collections.abc import Callable

import jax
from absl import flags

from jrobust.errors import InputError
from jrobust.training import processes

DISTRIBUTED = flags.DEFINE_bool("distributed", False, "train in all processes of this Slurm step or TPU pod together")
COORDINATOR = flags.DEFINE_string("coordinator", "", "HOST:PORT of process 0, to start the processes by hand")
NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "how many processes there are")
PROCESS_ID = flags.DEFINE_integer("process_id", None, "which of them this is, from 0")
INITIALIZATION_TIMEOUT = flags.DEFINE_integer("initialization_timeout", 300, "seconds to wait for the other processes")
HEARTBEAT_TIMEOUT = flags.DEFINE_integer("heartbeat_timeout", 60, "seconds of silence after which a process is lost")

FAILED_TOGETHER = 5.0  # seconds in which processes that fail for one reason all do


def joined(main: Callable[[], int]) -> Callable[[], int]:
    """Return `main` as one of the processes that the flags name; with no such flag, as it is."""

    def run() -> int:
        if not _asked():
            return main()
        _initialize()
        if not processes.is_primary():
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115  (for as long as the process lives)
        try:
            return main()
        except BaseException as error:
            if not processes.gone(FAILED_TOGETHER):
                raise
            # After the message. JAX's own way out would wait for processes that wait for this one.
            atexit.register(_leave)
            if isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" not in str(error):
                raise InputError(
                    f"another process is gone ({str(error).splitlines()[0]}): see what it wrote; the same commands go"
                    " on from the last checkpoint"
                ) from error
            raise

    return run


def _asked() -> bool:
    """Return whether there are other processes.

    Raises:
      InputError: flags that do not go together.
    """
    if _by_hand():
        if DISTRIBUTED.value:
            raise InputError("--distributed finds the other processes itself: leave it out or the three other flags")
        return (NUM_PROCESSES.value or 0) > 1
    tasks = int(os.environ.get("SLURM_STEP_NUM_TASKS", "1"))
    if tasks > 1 and not DISTRIBUTED.value:
        raise InputError(f"this is one of {tasks} tasks of a Slurm step: add --distributed to train in all of them")
    return bool(DISTRIBUTED.value)


def _by_hand() -> bool:
    """Return whether the three flags are given.

    Raises:
      InputError: not all three are, or one has a value that cannot be.
    """
    given = {
        "--coordinator": COORDINATOR.value or None,
        "--num_processes": NUM_PROCESSES.value,
        "--process_id": PROCESS_ID.value,
    }
    missing = [name for name, value in given.items() if value is None]
    if len(missing) == len(given):
        return False
    if missing:
        there = " and ".join(name for name in given if name not in missing)
        raise InputError(f"{there} without {' and '.join(missing)}: by hand, all three are needed")
    host, _, port = str(COORDINATOR.value).rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise InputError(f"--coordinator={COORDINATOR.value}: expected HOST:PORT of process 0, such as node1:12345")
    process, count = int(PROCESS_ID.value or 0), int(NUM_PROCESSES.value or 0)
    if not 0 <= process < count:
        raise InputError(f"--process_id={process} of --num_processes={count}: expected one of 0 to num_processes - 1")
    return True


def _initialize() -> None:
    """Join the others.

    Raises:
      InputError: they are not there, or they have different numbers of devices.
    """
    by_hand = bool(COORDINATOR.value)
    if by_hand:
        _find_coordinator(*str(COORDINATOR.value).rsplit(":", 1))
    try:
        jax.distributed.initialize(
            COORDINATOR.value or None,
            NUM_PROCESSES.value,
            PROCESS_ID.value,
            cluster_detection_method="deactivate" if by_hand else None,
            initialization_timeout=INITIALIZATION_TIMEOUT.value or 0,
            heartbeat_timeout_seconds=HEARTBEAT_TIMEOUT.value or 0,
        )
    except ValueError as error:
        raise InputError(
            f"--distributed finds no other processes ({error}): start it by srun or on every worker of a TPU pod, or"
            " give --coordinator, --num_processes and --process_id"
        ) from error
    if jax.device_count() != processes.count() * jax.local_device_count():
        raise InputError(
            f"{jax.local_device_count()} of {jax.device_count()} devices are of this process, one of"
            f" {processes.count()}: expected the same number in each"
        )


def _find_coordinator(host: str, port: str) -> None:
    """Wait until process 0 answers: JAX would abort with a stack trace.

    Raises:
      InputError: it does not, or it cannot listen there.
    """
    if PROCESS_ID.value == 0:
        print(f"waiting for {NUM_PROCESSES.value} processes at {host}:{port}", flush=True)
        try:
            socket.create_server(("", int(port))).close()
        except OSError as error:
            raise InputError(
                f"--coordinator={host}:{port}: cannot listen there ({error}); take another port"
            ) from error
        return
    seconds = INITIALIZATION_TIMEOUT.value or 0
    end = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection((host, int(port)), timeout=5).close()
            return
        except OSError as error:
            if time.monotonic() > end:
                raise InputError(
                    f"--coordinator={host}:{port} does not answer within {seconds} s ({error}): start process 0 there"
                ) from error
            time.sleep(0.2)


def _leave() -> None:
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(1)
