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
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115: for as long as the process lives
        try:
            return main()
        except BaseException:
            if processes.gone(FAILED_TOGETHER):
                # After the message. JAX's own way out would wait for processes that wait for this one.
                atexit.register(_leave)
            raise

    return run


def _asked() -> bool:
    """Return whether there are other processes.

    Raises:
      InputError: flags that do not go together.
    """
    by_hand = {
        "coordinator": COORDINATOR.value or None,
        "num_processes": NUM_PROCESSES.value,
        "process_id": PROCESS_ID.value,
    }
    if missing := [name for name, value in by_hand.items() if value is None]:
        if len(missing) < len(by_hand):
            given = ", ".join(f"--{name}" for name in by_hand if name not in missing)
            raise InputError(f"{given} without --{', --'.join(missing)}: give all three, or --distributed alone")
        tasks = int(os.environ.get("SLURM_STEP_NUM_TASKS", "1"))
        if tasks > 1 and not DISTRIBUTED.value:
            raise InputError(f"this is one of {tasks} tasks of a Slurm step: add --distributed to train in all together")
        return DISTRIBUTED.value
    if DISTRIBUTED.value:
        raise InputError("--distributed finds the processes itself: leave --coordinator, --num_processes, --process_id")
    host, _, port = COORDINATOR.value.rpartition(":")
    if not host or not port.isdecimal():
        raise InputError(f"--coordinator={COORDINATOR.value}: expected HOST:PORT, such as node1:12345")
    if not 0 <= PROCESS_ID.value < NUM_PROCESSES.value:
        raise InputError(
            f"--process_id={PROCESS_ID.value} of --num_processes={NUM_PROCESSES.value}: expected 0 to"
            f" {NUM_PROCESSES.value - 1}"
        )
    return NUM_PROCESSES.value > 1


def _initialize() -> None:
    """Join the others.

    Raises:
      InputError: they are not there, or they have different numbers of devices.
    """
    by_hand = {}
    if COORDINATOR.value:
        by_hand = {
            "coordinator_address": COORDINATOR.value,
            "num_processes": NUM_PROCESSES.value,
            "process_id": PROCESS_ID.value,
            "cluster_detection_method": "deactivate",
        }
        _find_coordinator()
    try:
        jax.distributed.initialize(
            **by_hand,
            initialization_timeout=INITIALIZATION_TIMEOUT.value,
            heartbeat_timeout_seconds=HEARTBEAT_TIMEOUT.value,
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


def _find_coordinator() -> None:
    """Wait until process 0 answers; JAX would abort with a stack trace.

    Raises:
      InputError: it does not, or it cannot be process 0 here.
    """
    host, _, port = COORDINATOR.value.rpartition(":")
    if PROCESS_ID.value == 0:
        with socket.socket(socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET) as own:
            own.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                own.bind(("", int(port)))
            except (OSError, OverflowError) as error:
                raise InputError(f"--coordinator={COORDINATOR.value}: port {port} is taken; choose another") from error
        return
    end = time.monotonic() + INITIALIZATION_TIMEOUT.value
    while True:
        try:
            socket.create_connection((host, int(port)), timeout=5).close()
            return
        except (OSError, OverflowError) as error:
            if time.monotonic() > end:
                raise InputError(
                    f"--coordinator={COORDINATOR.value} does not answer after {INITIALIZATION_TIMEOUT.value} s"
                    f" ({error}): start process 0 there, or give its address"
                ) from error
            time.sleep(0.2)


def _leave() -> None:
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(1)
