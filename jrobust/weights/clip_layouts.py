"""CLIP's weights in the files of others, both ways: `jrobust.weights.clip_names` has their names.

Which activation the weights were trained with (`CLIP.activation`) stands in none of these files; `clip_files` has what
is known of those that are published.
"""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jrobust.errors import InputError, unknown
from jrobust.models.clip import CLIP
from jrobust.models.tree import flatten, unflatten
from jrobust.weights import arrays as arrays_file
from jrobust.weights.arrays import some
from jrobust.weights.clip_names import LAYOUTS, Layout, detect, order
from jrobust.weights.clip_sizes import architecture, check_architecture
from jrobust.weights.torch_layouts import fit

__all__ = ["LAYOUTS", "architecture", "fill", "from_foreign", "load", "to_foreign", "write"]


def from_foreign(arrays: Mapping[str, Any], clip: CLIP, *, source: str) -> dict[str, Any]:
    """Return the parameters of `clip`, as `clip.init` makes them, with the numbers of a file's arrays.

    Args:
      arrays: by the names of any layout; a prefix `module.` is passed over, as are counters and position ids.
      clip: the model, of the file's architecture.
      source: the file's name, for messages.

    Raises:
      InputError: none of the layouts; another architecture; missing or surplus names; a shape that differs; or no
        finite numbers of floating point.
    """
    layout, arrays = detect(arrays, source)
    check_architecture(arrays, clip.sizes, source)
    wanted = flatten(jax.eval_shape(clip.init, jax.random.key(0)))
    return fill(wanted, {path: layout.foreign(path) for path in wanted}, arrays, layout, source)


def fill(
    wanted: Mapping[str, Any],
    places: Mapping[str, tuple[str, int | None]],
    arrays: Mapping[str, Any],
    layout: Layout,
    source: str,
) -> dict[str, Any]:
    """Return the tree of own leaves, each with the numbers of its array, or of a third of it.

    Args:
      wanted: the shapes and dtypes of leaves by own path.
      places: the name in the file, and the third of that array or None, by own path.
      arrays: of the file; each is used.
      layout, source: for the order of axes, and for messages.

    Raises:
      InputError: missing or surplus names; a shape that differs; or no finite numbers of floating point.
    """
    expected = {name for name, _ in places.values()}
    missing, surplus = sorted(expected - set(arrays)), sorted(set(arrays) - expected)
    found = [f"lacks {some(missing)}"] if missing else []
    found += [f"has the surplus {some(surplus)}"] if surplus else []
    if found:
        raise InputError(f"{source} ({layout.name} layout) {' and '.join(found)}: expected exactly this model's arrays")
    leaves = {}
    for path, leaf in wanted.items():
        name, third = places[path]
        flat, axes = order(path, leaf.shape, layout)
        shape = tuple(flat[axis] for axis in axes)
        whole = shape if third is None else (3 * shape[0], *shape[1:])
        array = fit(np.asarray(arrays[name]), jax.ShapeDtypeStruct(whole, leaf.dtype), f"{source}: {name}", hint="")
        if third is not None:
            array = array[third * shape[0] : (third + 1) * shape[0]]
        leaves[path] = array.transpose(np.argsort(axes)).reshape(leaf.shape)
    return unflatten(leaves)


def to_foreign(params: Mapping[str, Any], layout: str = "openai") -> dict[str, np.ndarray]:
    """Return parameters under the names and axis orders of a layout; the inverse of `from_foreign`, to the bit.

    Raises:
      InputError: an unknown layout, or a ResNet for Hugging Face's.
    """
    if layout not in LAYOUTS:
        raise unknown("layout of CLIP's weights", layout, LAYOUTS)
    if layout == "hugging_face" and "patch_embed" not in params["image"]:
        raise InputError("the layout hugging_face has no ResNet image tower: expected openai or open_clip_text")
    thirds: dict[str, dict[int, np.ndarray]] = {}
    for path, leaf in flatten(params).items():
        array = np.asarray(leaf)
        name, third = LAYOUTS[layout].foreign(path)
        flat, axes = order(path, array.shape, LAYOUTS[layout])
        thirds.setdefault(name, {})[third or 0] = array.reshape(flat).transpose(axes)
    return {
        name: np.array(np.concatenate([parts[i] for i in range(3)]) if len(parts) == 3 else parts[0], order="C")
        for name, parts in thirds.items()
    }


def load(path: str | pathlib.Path, clip: CLIP) -> dict[str, Any]:
    """Return the parameters of `clip` with the numbers of a .safetensors, .npz, .pt or .pth file; nothing is unpickled.

    Raises:
      InputError: the file cannot be read, or as `from_foreign`.
    """
    arrays, _ = arrays_file.read(path)
    return jax.tree.map(jnp.asarray, from_foreign(arrays, clip, source=str(path)))


def write(path: str | pathlib.Path, params: Mapping[str, Any], layout: str = "openai") -> None:
    """Write parameters as .safetensors under the names of a layout, for PyTorch.

    Raises:
      InputError: as `to_foreign`; another ending, or a folder that cannot be written.
    """
    arrays_file.write(pathlib.Path(path), to_foreign(params, layout), {"format": "pt", "layout": layout})
