"""The compiler's flags that the commands and benchmarks set, each because it measures: the one place for them.

A library sets none: who attacks a function in a program of his own calls `set_defaults` or leaves it.
"""

from __future__ import annotations

import importlib.metadata
import os

# On a CPU jaxlib hands matrix products and convolutions to YNNPACK. Convolutions take 1.1 to 1.5 times as long there as
# in Eigen, to which they go without it; matrix products do not. On other backends it does nothing.
LIBRARY = "--xla_cpu_experimental_ynn_fusion_type"
EIGEN_CONVOLUTIONS = f"{LIBRARY}=-LIBRARY_FUSION_TYPE_INDIVIDUAL_CONVOLUTION"
# A flag that a jaxlib does not know ends the process. These know it: tried with 0.10.2 and 0.12.0.
_KNOWN_FROM, _UNKNOWN_FROM = (0, 10), (0, 13)


def set_defaults() -> None:
    """Add the flags to XLA_FLAGS for this process and those that it starts, before the first array is made.

    A flag that is there already stays as it is; jaxlibs for which nothing was measured get none.
    """
    version = tuple(int(part) for part in importlib.metadata.version("jaxlib").split(".")[:2])
    given = os.environ.get("XLA_FLAGS", "")
    if LIBRARY not in given and _KNOWN_FROM <= version < _UNKNOWN_FROM:
        os.environ["XLA_FLAGS"] = f"{given} {EIGEN_CONVOLUTIONS}".strip()
