import importlib
import os

import pytest

from benchmarks import processes


def test_a_contender_lives_in_a_process_of_its_own_and_says_what_went_wrong():
    apart = processes.Apart(importlib.import_module, "os")
    assert apart.ask("getpid") != os.getpid()
    assert apart.ask("getppid") == os.getpid()
    with pytest.raises(RuntimeError, match="no_such"):
        apart.ask("no_such")


def test_a_process_that_dies_is_seen():
    apart = processes.Apart(importlib.import_module, "os")
    with pytest.raises(RuntimeError, match="ended with status 3"):
        apart.ask("_exit", 3)


def test_on_a_cpu_contenders_are_apart(monkeypatch):
    monkeypatch.setattr(processes, "Apart", lambda *made: ("apart", *made))
    assert processes.place(dict) == ("apart", dict)
    monkeypatch.setattr(processes.jax, "default_backend", lambda: "gpu")
    assert processes.place(dict, {"a": 1}).ask("get", "a") == 1
