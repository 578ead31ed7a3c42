"""How the tests compile: fast, with nothing but correctness asked of the programs, and kept between runs."""

import importlib.metadata
import os
import pathlib

# Nearly all of a test's time is compilation: no optimisations of LLVM's, and one LLVM module for each program, which
# also takes fewer of the mappings that a process may have. An unknown flag ends the process, so every jaxlib that the
# project allows must know these.
_FLAGS = ["--xla_backend_optimization_level=0", "--xla_cpu_parallel_codegen_split_count=1"]
if importlib.metadata.version("jaxlib").startswith("0.10."):  # 0.11 has only the emitters that this turns off
    _FLAGS.append("--xla_cpu_use_fusion_emitters=false")  # they take half of the time

CACHE = str(pathlib.Path(__file__).parent.parent / ".pytest_cache" / "compiled")


def flags(devices: int) -> str:
    """XLA_FLAGS with which programs compile fast, for so many simulated devices."""
    return " ".join([f"--xla_force_host_platform_device_count={devices}", *_FLAGS])


def environment() -> dict[str, str]:
    """The environment of a command that a test starts."""
    return os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": flags(devices=1),
        "JAX_COMPILATION_CACHE_DIR": CACHE,
    }
