"""The flags of the compiler: known to this jaxlib, with the effect they are for, and never over the user's own."""

import os
import subprocess
import sys

from jrobust import xla_flags

PROGRAM = """
from jrobust import xla_flags
xla_flags.set_defaults()
import jax, jax.numpy as jnp
images, kernel = jnp.ones((16, 32, 32, 64)), jnp.ones((3, 3, 64, 64))
convolve = lambda x, w: jax.lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
text = jax.jit(convolve).lower(images, kernel).compile().as_text()
print(text.count("convolution("), text.count("ynn_fusion"))
"""


def test_convolutions_are_not_of_the_slow_library():
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"} | {"JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", PROGRAM]
    found = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert found.stdout.split() == ["1", "0"], found.stderr


def test_a_flag_of_the_users_stays(monkeypatch):
    own = f"--xla_a=1 {xla_flags.LIBRARY}=LIBRARY_FUSION_TYPE_DOT"
    monkeypatch.setenv("XLA_FLAGS", own)
    xla_flags.set_defaults()
    assert os.environ["XLA_FLAGS"] == own
    monkeypatch.setenv("XLA_FLAGS", "--xla_a=1")
    xla_flags.set_defaults()
    xla_flags.set_defaults()
    assert os.environ["XLA_FLAGS"] == f"--xla_a=1 {xla_flags.EIGEN_CONVOLUTIONS}"


def test_a_jaxlib_that_may_not_know_them_gets_none(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "")
    monkeypatch.setattr(xla_flags.importlib.metadata, "version", lambda name: "0.13.0")
    xla_flags.set_defaults()
    assert os.environ["XLA_FLAGS"] == ""
