"""Robustness training, attacks and evaluation in JAX."""

__version__ = "0.1.0"
