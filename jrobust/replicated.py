"""State that is the same on all devices by construction."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Replicated:
    """State that a method itself keeps equal on all devices: tables over the whole data set, frozen networks.

    The trainer averages floating-point state over the devices, but not this: a mean over three devices
    would round it.
    """

    value: Any
