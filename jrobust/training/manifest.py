"""A list of arrays with their checksums: what tells a damaged or a foreign checkpoint from the right one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

Manifest = dict[str, dict[str, Any]]

# How JAX names the types of random keys, and a key of each.
KEYS = {
    "key<fry>": lambda: jax.random.key(0, impl="threefry2x32"),
    "key<rbg>": lambda: jax.random.key(0, impl="rbg"),
    "key<urbg>": lambda: jax.random.key(0, impl="unsafe_rbg"),
}


def flatten(tree: Any) -> dict[str, Any]:
    """Return the leaves of a tree by path, such as "params/layer1.0/conv1/kernel".

    Raises:
      ValueError: two leaves have the same path.
    """
    leaves: dict[str, Any] = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if name in leaves:
            raise ValueError(f"two leaves have the path {name!r}")
        leaves[name] = leaf
    return leaves


def describe(leaves: Mapping[str, Any]) -> Manifest:
    """Return shape and type of each leaf, arrays or their shapes alike."""
    return {
        name: {"shape": [int(side) for side in leaf.shape], "dtype": str(leaf.dtype)} for name, leaf in leaves.items()
    }


def sign(leaves: Mapping[str, jax.Array]) -> Manifest:
    """Return shape, type and SHA-256 of each leaf. Copies the arrays to the host."""
    entries = describe(leaves)
    for name, leaf in leaves.items():
        entries[name]["sha256"] = _sha256(leaf)
    return entries


def damaged(leaves: Mapping[str, jax.Array], manifest: Manifest) -> list[str]:
    """Return the paths whose arrays do not have the checksum of the manifest."""
    return [name for name, leaf in leaves.items() if _sha256(leaf) != manifest[name]["sha256"]]


def differences(found: Manifest, expected: Manifest) -> Iterator[str]:
    """Yield what differs in paths, shapes and types, in words."""
    # Those of the optimizer last: they repeat those of the parameters.
    for name in sorted(found.keys() | expected.keys(), key=lambda name: (name.startswith("opt_state"), name)):
        if name not in expected:
            yield f"{name} {_in_words(found[name])} is in the checkpoint only"
        elif name not in found:
            yield f"{name} {_in_words(expected[name])} is not in the checkpoint"
        elif _in_words(found[name]) != _in_words(expected[name]):
            yield f"{name} is {_in_words(found[name])}, expected {_in_words(expected[name])}"


def digest(record: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a JSON object, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def _in_words(entry: Mapping[str, Any]) -> str:
    return f"{entry['dtype']}[{','.join(map(str, entry['shape']))}]"


def dtype(name: str) -> Any:
    """Return the type of a manifest's entry: of numbers, or of random keys."""
    return KEYS[name]().dtype if name in KEYS else jnp.dtype(name)


def _sha256(array: jax.Array) -> str:
    if jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
        array = jax.random.key_data(array)
    if isinstance(array, jax.Array) and not (array.is_fully_addressable or array.is_fully_replicated):
        # Split over processes, which all call this.
        array = multihost_utils.process_allgather(array, tiled=True)
    return hashlib.sha256(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data).hexdigest()
