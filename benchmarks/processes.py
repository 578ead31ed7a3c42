"""Contenders that share nothing but the machine: each in a process of its own, woken for its turn.

On a CPU two runtimes in one process hinder each other: the threads of one spin or hold cores, and its memory lies in
the caches, through the turn of the other. Apart, a process waits at its pipe, without work, until it is asked. On an
accelerator the work is elsewhere, and all contenders live in the calling process.
"""

from __future__ import annotations

import multiprocessing
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, Protocol

import jax


class Place(Protocol):
    """Where an object lives."""

    def ask(self, method: str, *arguments: Any) -> Any:
        """Call a method of the object and wait for its result."""

    def close(self) -> None:
        """Let go of the object."""


class Here:
    """An object in this process."""

    def __init__(self, make: Callable[..., Any], *arguments: Any):
        self._object: Any = make(*arguments)

    def ask(self, method: str, *arguments: Any) -> Any:
        """Call a method of the object."""
        return getattr(self._object, method)(*arguments)

    def close(self) -> None:
        """Let go of the object."""
        self._object = None


class Apart:
    """An object in a process of its own.

    Args:
      make: a function of a module; it and its arguments travel pickled.
      arguments: of `make`, which returns the object.

    Raises:
      RuntimeError: the process failed, with what it said, or is gone.
    """

    def __init__(self, make: Callable[..., Any], *arguments: Any):
        context = multiprocessing.get_context("spawn")  # a forked process would share the runtimes' locks
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, make, arguments), daemon=True)
        self._process.start()
        theirs.close()
        self._answer()

    def ask(self, method: str, *arguments: Any) -> Any:
        """Call a method of the object there and wait for its result, which travels pickled."""
        self._pipe.send((method, arguments))
        return self._answer()

    def close(self) -> None:
        """End the process."""
        self._pipe.close()
        self._process.join()

    def _answer(self) -> Any:
        try:
            failed, result = self._pipe.recv()
        except EOFError:
            self._process.join()
            raise RuntimeError(f"a contender's process ended with status {self._process.exitcode}") from None
        if failed:
            self.close()
            raise RuntimeError(f"in a contender's process:\n{result}")
        return result


def place(make: Callable[..., Any], *arguments: Any) -> Place:
    """Return `make(*arguments)` apart where JAX runs on a CPU, and here elsewhere."""
    return (Apart if jax.default_backend() == "cpu" else Here)(make, *arguments)


def _serve(pipe: Connection, make: Callable[..., Any], arguments: tuple) -> None:
    jax.config.update("jax_enable_compilation_cache", False)  # as in the parent: compile seconds are measured
    try:
        found: Any = make(*arguments)
        pipe.send((False, None))
        while True:
            method, arguments = pipe.recv()
            pipe.send((False, getattr(found, method)(*arguments)))
    except EOFError:  # the parent has no more questions
        pass
    except Exception:
        pipe.send((True, traceback.format_exc()))
