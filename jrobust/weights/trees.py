"""Variables of any kind by name: dicts, visual prompts, and what is `Replicated` over devices."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax

from jrobust.replicated import Replicated


def named(tree: Any) -> dict[str, Any]:
    """Return the leaves of a tree by path; a `Replicated` is no part of the path, and None is no leaf.

    >>> named({"text": Replicated(1.0), "tower": Replicated({"proj": {"kernel": 2.0}})})
    {'text': 1.0, 'tower/proj/kernel': 2.0}
    """
    plain = jax.tree.map(_value, tree, is_leaf=lambda node: isinstance(node, Replicated))
    leaves = jax.tree_util.tree_leaves_with_path(plain)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def refilled(tree: Any, leaves: Mapping[str, Any]) -> Any:
    """Return a tree with other leaves, given by the names of `named`.

    >>> refilled({"text": Replicated(1.0)}, {"text": 3.0})
    {'text': Replicated(value=3.0)}
    """
    return jax.tree.unflatten(jax.tree.structure(tree), [leaves[name] for name in named(tree)])


def _value(node: Any) -> Any:
    return node.value if isinstance(node, Replicated) else node
