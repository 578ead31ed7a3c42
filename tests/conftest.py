"""Settings of every test: simulated devices, and compiled programs kept between runs."""

import os
import pathlib

# Eight simulated devices for the tests of parallelism; a test that does not ask for a mesh uses the first.
# Nearly all of a test's time is compilation, and LLVM's optimisations are a good part of that.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax

CACHE = pathlib.Path(__file__).parent.parent / ".pytest_cache" / "compiled"
jax.config.update("jax_compilation_cache_dir", str(CACHE))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
