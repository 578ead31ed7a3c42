"""The smooth two-layer network and data on which the reference packages were run; float64, no random numbers."""

import jax.numpy as jnp
import numpy as np

_i, _j, _k = np.arange(32.0), np.arange(192.0), np.arange(10.0)
W1 = 0.25 * np.sin(1 + 0.7 * _i[:, None] + 1.3 * _j + 0.01 * _i[:, None] * _j)
B1 = 0.1 * np.cos(_i)
W2 = np.sin(2 + 1.1 * _k[:, None] + 0.5 * _i + 0.02 * _k[:, None] * _i)
B2 = 0.05 * _k
LABELS = np.array([7, 7, 7, 5, 9, 9, 8, 7, 7, 6, 6, 9, 9, 8, 7, 7])


def images():
    """float64[16, 8, 8, 3] in [0, 1]; the definition runs over channel, row, column."""
    n = np.arange(16.0)[:, None]
    flat = 0.5 + 0.45 * np.sin(0.9 * n + 0.31 * _j + 0.05 * n * _j + 0.7)
    return jnp.asarray(flat.reshape(16, 3, 8, 8).transpose(0, 2, 3, 1))


def logits(x):
    """float64[B, 10]: W2 tanh(W1 (x - 0.5) + b1) + b2."""
    # In the type of x: NumPy's float64 would meet programs that JAX keeps from tests in the other precision.
    w1, b1, w2, b2 = (jnp.asarray(array, x.dtype) for array in (W1, B1, W2, B2))
    flat = x.transpose(0, 3, 1, 2).reshape(x.shape[0], -1)
    return jnp.tanh((flat - 0.5) @ w1.T + b1) @ w2.T + b2
