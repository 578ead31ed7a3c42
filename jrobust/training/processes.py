"""Several processes that train one model together: who writes, and how they agree, go on and fail together.

All run the same program on their own devices and their own part of each batch; process 0, the primary one, writes the
run's folder. What is told here goes through the key-value store of JAX's own coordination service: it needs no device,
so a process may wait for as long as another evaluates, and it ends with an error when the other is gone. With one
process all of it is the plain call.
"""

from __future__ import annotations

import datetime
import itertools
import json
from collections.abc import Callable
from typing import Any, TypeVar

import jax

from jrobust.errors import InputError

T = TypeVar("T")

_calls = itertools.count()  # the same number in every process: all make the same calls in the same order
# The store wants a limit. A process that dies is noticed by its heartbeat, long before.
_FOREVER = int(datetime.timedelta(days=365) / datetime.timedelta(milliseconds=1))


def count() -> int:
    """Return how many processes train together."""
    return jax.process_count()


def is_primary() -> bool:
    """Return whether this process is the one that writes."""
    return jax.process_index() == 0


def gather(value: Any) -> list[Any]:
    """Return what each process gave, JSON all of it, in every process."""
    if count() == 1:
        return [value]
    store, name = _store(), f"jrobust/{next(_calls)}"
    store.key_value_set(f"{name}/{jax.process_index()}", json.dumps(value))
    if is_primary():
        values = [json.loads(store.blocking_key_value_get(f"{name}/{i}", _FOREVER)) for i in range(count())]
        store.key_value_set(f"{name}/all", json.dumps(values))
    return json.loads(store.blocking_key_value_get(f"{name}/all", _FOREVER))


def together(action: Callable[[], T]) -> T:
    """Run `action` in every process and return its own result in each; if it fails in one, it fails in all.

    Raises:
      InputError: what was raised here, or in another process: names it.
    """
    if count() == 1:
        return action()
    try:
        result = action()
    except Exception as error:
        gather(str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}")
        raise
    for process, problem in enumerate(gather("")):
        if problem:
            raise InputError(f"{problem} (in process {process})")
    return result


def from_primary(action: Callable[[], T]) -> T:
    """Run `action` in the primary process alone and return its result, which is JSON, in every process.

    Raises:
      InputError: it failed.
    """
    if count() == 1:
        return action()
    result = together(lambda: action() if is_primary() else None)
    return gather(result)[0]


def gone(seconds: float) -> bool:
    """Return whether other processes go on without this one, which has failed; waits so long for them to fail too."""
    if count() == 1:
        return False
    try:
        _store().wait_at_barrier("jrobust/failed", int(seconds * 1000))
    except jax.errors.JaxRuntimeError:
        return True
    return False


def _store() -> Any:
    # It has no public name; JAX's public ways of telling another process something all take the devices.
    from jax._src import distributed

    return distributed.global_state.client
