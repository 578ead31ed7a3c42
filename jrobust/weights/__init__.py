"""Weights from and for the outside world: strict readers and writers that never unpickle."""
