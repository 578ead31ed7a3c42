"""A second set of batch-norm variables for the same network, as trees: no network needs to know of it.

Xie et al., "Adversarial Examples Improve Image Recognition", CVPR 2020: clean and adversarial images share every
convolution, but not the batch norms.
"""

from __future__ import annotations

from typing import Any

from jrobust.models.tree import flatten, unflatten


def split_norm(params: Any, batch_stats: Any) -> Any:
    """Return the scales and biases of the batch norms, as a tree of those paths alone.

    A batch norm is a layer that has running statistics. The result is the start of an auxiliary branch:
    `classifier.apply(with_norm(params, branch), branch_stats, images)` runs the network on it.
    """
    layers = {path.rpartition("/")[0] for path in flatten(batch_stats)}
    return unflatten({path: leaf for path, leaf in flatten(params).items() if path.rpartition("/")[0] in layers})


def with_norm(params: Any, norms: Any) -> Any:
    """Return `params` with the batch-norm parameters of `norms`, a tree as `split_norm` returns it."""
    return unflatten(flatten(params) | flatten(norms))
