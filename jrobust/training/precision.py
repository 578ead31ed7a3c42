"""The policy of floating-point types, in one place.

* Parameters, losses, norms, statistics of batch norm and accumulations are float32.
* `model.dtype` is the type of the body of the network, and of nothing else: float32, or bfloat16 for speed.
* Training multiplies with the device's default precision. Evaluation multiplies in full float32, also on devices that
  would use fewer bits for it (TF32 on NVIDIA, bfloat16 passes on TPU): a robust accuracy is compared with other
  people's numbers.
"""

from __future__ import annotations

import contextlib

import jax

EVALUATION = "highest"


def evaluation_precision() -> contextlib.AbstractContextManager[None]:
    """Return the context in which evaluation is traced and run: matrix products and convolutions in full float32."""
    return jax.default_matmul_precision(EVALUATION)
