"""Stopping in order: what a scheduler or a user asks by a signal is done after the step under way.

Of several processes, any may get the signal, and all stop after the same step: JAX's preemption service, which listens
for SIGTERM from the start of a process on, finds one that none of them is beyond.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from typing import Any

from jax.experimental import multihost_utils

from jrobust.training import processes


class Stop:
    """The signal that asked the run to stop, if any."""

    signal: int | None = None

    def before(self, step: int) -> bool:
        """Return whether to stop before this step; all processes ask about every step and get the same answer."""
        if processes.count() > 1 and multihost_utils.reached_preemption_sync_point(step):
            self.signal = signal.SIGTERM
        return self.signal is not None


@contextlib.contextmanager
def stop_signals() -> Iterator[Stop]:
    """Turn the first SIGTERM or Ctrl-C into a request to stop after the step; a second one acts as usual."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop  # only the main thread may set handlers
        return
    previous: dict[int, Any] = {}

    def restore() -> None:
        for number, handler in previous.items():
            signal.signal(number, handler)

    def handle(number: int, frame: Any) -> None:
        restore()
        if processes.count() > 1:
            os.kill(os.getpid(), signal.SIGTERM)
        else:
            stop.signal = number

    # Of several processes, SIGTERM is the preemption service's.
    for number in (signal.SIGTERM, signal.SIGINT) if processes.count() == 1 else (signal.SIGINT,):
        previous[number] = signal.signal(number, handle)
    try:
        yield stop
    finally:
        restore()
