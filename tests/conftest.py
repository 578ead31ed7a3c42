"""Settings of every test: simulated devices, and compiled programs kept between runs."""

import os

from tests import compilation

# Eight simulated devices for the tests of parallelism; a test that does not ask for a mesh uses the first.
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {compilation.flags(devices=8)}"
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax

jax.config.update("jax_compilation_cache_dir", compilation.CACHE)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
