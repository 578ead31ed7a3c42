"""Settings of every test: simulated devices, and compiled programs kept between runs and freed in time."""

import gc
import os
import pathlib

import pytest

from jrobust import xla_flags
from tests import compilation

# Eight simulated devices for the tests of parallelism; a test that does not ask for a mesh uses the first.
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {compilation.flags(devices=8)}"
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax

xla_flags.set_defaults()  # as the commands; the backend, which reads them, starts with the first array
jax.config.update("jax_compilation_cache_dir", compilation.CACHE)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)

MAPPINGS = pathlib.Path("/proc/self/maps")


@pytest.fixture(autouse=True, scope="module")
def compiled_programs():
    """Frees a process's compiled programs before they reach the 65,530 mappings that Linux allows it, which ends it."""
    yield
    if MAPPINGS.exists() and MAPPINGS.read_bytes().count(b"\n") > 10_000:
        jax.clear_caches()
        gc.collect()
