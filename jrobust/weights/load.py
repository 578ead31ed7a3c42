"""Weights of any known layout into a model."""

from __future__ import annotations

import math
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jrobust.errors import InputError
from jrobust.models.clip.linear_head import LinearHead
from jrobust.models.clip.tower_classifier import TowerClassifier
from jrobust.models.clip.zero_shot import ZeroShot
from jrobust.models.network import Network
from jrobust.models.tree import flatten
from jrobust.weights import arrays as arrays_file
from jrobust.weights import safetensors_file
from jrobust.weights.clip_towers import load_image_tower
from jrobust.weights.torch_layouts import check_names, fit, from_torch, is_head
from jrobust.weights.trees import named, refilled


def load(
    path: str | pathlib.Path, classifier: Network, params: Any, batch_stats: Any, *, replace_head: bool = False
) -> tuple[Any, Any]:
    """Return `(params, batch_stats)` of `classifier` with the numbers of a file.

    The layout is known by the keys: this library's own (`jrobust.weights.safetensors_file`) or one of PyTorch's
    (`jrobust.weights.torch_layouts`), in .safetensors, .npz or a file of PyTorch. Nothing is unpickled. For a CLIP,
    PyTorch's are those of `jrobust.weights.clip_towers`: they give the image tower, and the prompts where prompts are
    trained; texts and logit scale stay.

    Args:
      path: the file.
      classifier: the model; its mean and std must be those of an own file, as must a CLIP's activation.
      params, batch_stats: as `classifier.init` returns them; they fix the structure, shapes and dtypes. Their shapes
        (`jax.eval_shape`) will do, unless a part of them is kept.
      replace_head: keep the linear layer `fc` of `params` and the auxiliary heads, or a CLIP's texts, for other classes
        than the file's.

    Raises:
      InputError: the file cannot be read, is damaged, or is not of exactly this model.
    """
    arrays, metadata = arrays_file.read(path)
    if "jrobust" in metadata or any(name.startswith("params/") for name in arrays):
        file = safetensors_file.check(arrays, metadata, str(path))
        _check_preprocessing(file.manifest, classifier, str(path))
        new = (
            _own(file.params, params, f"{path}: params", replace_head),
            _own(file.batch_stats, batch_stats, f"{path}: batch_stats", replace_head),
        )
    elif isinstance(classifier, TowerClassifier):
        new = _clip(path, classifier, params, batch_stats)
    else:
        new = from_torch(arrays, params, batch_stats, source=str(path), replace_head=replace_head)
    return jax.tree.map(jnp.asarray, new)


def _own(tree: Any, old: Any, source: str, replace_head: bool) -> Any:
    """Return `tree` checked against the structure, shapes and dtypes of `old`."""
    found, wanted = flatten(tree), named(old)
    new = {name: leaf for name, leaf in wanted.items() if replace_head and is_head(name)}
    missing = [name for name in wanted if name not in found and name not in new]
    check_names(source, missing, sorted(set(found) - set(wanted)), "jrobust")
    for name in wanted.keys() - new.keys():
        new[name] = fit(found[name], wanted[name], f"{source}/{name}")
    return refilled(old, new)


def _clip(path: str | pathlib.Path, classifier: TowerClassifier, params: Any, state: Any) -> tuple[Any, Any]:
    """Return the variables of a CLIP with the image tower of a file, and its prompts or its head where it has them."""
    tower = load_image_tower(path, classifier.clip)
    if "batch_stats" in tower.params:
        state = state | {"batch_stats": refilled(state["batch_stats"], named(tower.params["batch_stats"]))}
    if isinstance(classifier, LinearHead):
        if tower.head is None:
            raise InputError(f"{path} has an image tower and no head: expected the weights of a fine-tuned classifier")
        head = {name: fit(np.asarray(tower.head[name]), old, f"{path}: {name}") for name, old in params["head"].items()}
        return {"image": tower.params["image"], "head": head}, state
    assert isinstance(classifier, ZeroShot)
    if classifier.prompts is None:
        return tower.params["image"], state
    found, wanted = named(tower.prompts), named(params)
    check_names(str(path), sorted(set(wanted) - set(found)), sorted(set(found) - set(wanted)), "visual prompts")
    fitted = {name: fit(np.asarray(found[name]), old, f"{path}: {name}", hint="") for name, old in wanted.items()}
    return refilled(params, fitted), state | {"tower": refilled(state["tower"], named(tower.params["image"]))}


def _check_preprocessing(manifest: dict[str, Any], classifier: Network, source: str) -> None:
    """Raise InputError where the file's network is another function of the same arrays: nothing else would say so."""
    for field in ("mean", "std"):
        theirs, ours = manifest.get("preprocessing", {}).get(field, []), getattr(classifier, field)
        if len(theirs) != len(ours) or not all(map(math.isclose, theirs, ours)):
            raise InputError(
                f"{source} has {field} {tuple(theirs)}, this model has {ours}: set model.{field} to that of the file"
            )
    if isinstance(classifier, TowerClassifier):
        theirs, ours = (
            manifest.get("model", {}).get("activation", classifier.clip.activation),
            classifier.clip.activation,
        )
        if theirs != ours:
            raise InputError(
                f"{source} was trained with the activation {theirs}, this model has {ours}: set that of the file"
            )
