"""Variables as a flat dict of slash-separated paths, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flax import traverse_util


def flatten(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Return the leaves of nested dicts by path.

    >>> flatten({"layer1": {"0": {"bn1": {"scale": 1.0}}}, "fc": {"bias": 0.0}})
    {'layer1/0/bn1/scale': 1.0, 'fc/bias': 0.0}
    """
    return traverse_util.flatten_dict(dict(tree), sep="/")


def unflatten(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """Return the nested dicts that `flatten` came from.

    >>> unflatten({"layer1/0/bn1/scale": 1.0, "fc/bias": 0.0})
    {'layer1': {'0': {'bn1': {'scale': 1.0}}}, 'fc': {'bias': 0.0}}
    """
    return traverse_util.unflatten_dict(dict(leaves), sep="/")
