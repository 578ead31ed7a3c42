"""What makes a number besides its config: the commit, the versions and the devices it was computed with."""

from __future__ import annotations

import contextlib
import importlib.metadata
import pathlib
import platform
import subprocess

import jax

import jrobust

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "scipy")


def commit() -> str:
    """Return the commit of the checkout this package runs from, "+changes" added if files differ; "" outside one."""
    root = pathlib.Path(jrobust.__file__).parent.parent
    if not (root / ".git").exists():
        return ""
    command = ["git", "-C", str(root), "describe", "--always", "--dirty=+changes", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def versions() -> dict[str, str]:
    """Return the versions of Python, of this package and of those among `PACKAGES` that are installed."""
    found = {"python": platform.python_version(), "jrobust": jrobust.__version__}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def devices() -> str:
    """Return how many of which device this process computes on, e.g. "1 x NVIDIA H200 (gpu)"."""
    local = jax.local_devices()
    return f"{len(local)} x {local[0].device_kind} ({local[0].platform})"
