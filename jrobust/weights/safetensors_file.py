"""The library's own file: every array of a model and all that is needed to use it, in one .safetensors file.

Arrays are named `params/layer1/0/conv1/kernel` and `batch_stats/layer1/0/bn1/mean`, what a CLIP has besides trained
parameters `state/text`; any safetensors reader opens them.
The manifest is JSON, kept as the metadata entry `jrobust` inside the file and, for people, in a .json file beside it.
Writing the same model twice gives the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

import jrobust
from jrobust.errors import InputError
from jrobust.models import zoo
from jrobust.models.clip.tower_classifier import TowerClassifier
from jrobust.models.network import Network
from jrobust.models.tree import unflatten
from jrobust.weights import arrays as arrays_file
from jrobust.weights.trees import named

FORMAT = "jrobust-weights-1"


class WeightsFile(NamedTuple):
    """What a file holds."""

    params: Any
    batch_stats: Any  # of a CLIP its state
    manifest: dict[str, Any]


def write(
    path: str | pathlib.Path,
    classifier: Network,
    params: Any,
    batch_stats: Any,
    *,
    model: Mapping[str, Any],
    class_names: Sequence[str] = (),
    data_set: str = "",
    threat_model: str = "",
    source: Mapping[str, str] | None = None,
    extra: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Write a model; return its manifest.

    Args:
      path: ends in .safetensors; the manifest is also written beside it, with .json added to the name.
      classifier, params, batch_stats: what is written.
      model: the config section that `zoo.build` makes this model from.
      class_names: in the order of the logits; () if they have none.
      data_set: what the model was trained on.
      threat_model: what it was trained against, such as "Linf 8/255".
      source: the file of weights that training began with, as `jrobust.weights.arrays.source` says it; None for none.
      extra: anything else that JSON can hold, such as the method, the step and the accuracy.

    Raises:
      InputError: another ending, class names that are not one for each logit, or a folder that cannot be written.
    """
    path = pathlib.Path(path)
    if class_names and len(class_names) != classifier.num_classes:
        raise InputError(f"{len(class_names)} class names for {classifier.num_classes} classes: expected one for each")
    tensors = {f"params/{name}": np.asarray(leaf) for name, leaf in named(params).items()}
    collection = "state" if isinstance(classifier, TowerClassifier) else "batch_stats"
    tensors |= {f"{collection}/{name}": np.asarray(leaf) for name, leaf in named(batch_stats).items()}
    height, width, channels = classifier.input_shape
    manifest = {
        "format": FORMAT,
        "jrobust": jrobust.__version__,
        "model": {key: value for key, value in dict(model).items() if key not in ("weights", "new_head")},
        "num_classes": classifier.num_classes,
        "class_names": list(class_names),
        "preprocessing": {
            "input": "float32, batch x height x width x channels (RGB for 3 channels), normalised inside the model",
            "input_range": [0.0, 1.0],
            "input_shape": [height, width, channels],
            "resize_to": classifier.resize_to,
            "mean": list(classifier.mean),
            "std": list(classifier.std),
        },
        "data_set": data_set,
        "threat_model": threat_model,
        "source": dict(source or {}),
        "extra": dict(extra or {}),
        "sha256": digest(tensors),
        "tensors": {name: _entry(tensor) for name, tensor in sorted(tensors.items())},
    }
    text = json.dumps(manifest, indent=1)
    arrays_file.write(path, tensors, {"jrobust": text})
    arrays_file.write_bytes(path.with_name(path.name + ".json"), (text + "\n").encode())
    return json.loads(text)


def read(path: str | pathlib.Path) -> WeightsFile:
    """Return the arrays and the manifest of a file that `write` made, checked against each other.

    Raises:
      InputError: no such file, a damaged one, one without manifest, or one whose arrays are not those of its manifest.
    """
    tensors, metadata = arrays_file.read(path)
    return check(tensors, metadata, str(path))


def check(tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str], source: str) -> WeightsFile:
    """Return the content of a file of this layout, as `read` does, from its arrays and metadata."""
    if "jrobust" not in metadata:
        raise InputError(f"{source} has no manifest: expected a file written by launch/export.py")
    manifest = arrays_file.read_json(metadata["jrobust"], f"the manifest of {source}")
    if manifest.get("format") != FORMAT:
        raise InputError(
            f"{source} has the format {manifest.get('format')!r}: this version reads {FORMAT!r}; export the model again"
        )
    listed = manifest.get("tensors", {})
    for what, names in (("lacks", set(listed) - set(tensors)), ("has the surplus", set(tensors) - set(listed))):
        if names:
            raise InputError(
                f"{source} {what} {arrays_file.some(sorted(names))} by its manifest: export the model again"
            )
    for name, tensor in tensors.items():
        if _entry(tensor) != listed[name]:
            raise InputError(f"{source}: {name} is {_entry(tensor)}, its manifest says {listed[name]}: export it again")
    if digest(tensors) != manifest.get("sha256"):
        raise InputError(f"{source} is damaged: its SHA-256 is not the one in its manifest; copy or export it again")
    collections: dict[str, dict[str, Any]] = {"params": {}, "batch_stats": {}, "state": {}}
    for name, tensor in tensors.items():
        collection, _, path = name.partition("/")
        if collection not in collections:
            raise InputError(
                f"{source} has the surplus {name}: expected names that start with {', '.join(collections)}"
            )
        collections[collection][path] = tensor
    return WeightsFile(
        unflatten(collections["params"]), unflatten(collections["batch_stats"] | collections["state"]), manifest
    )


def classifier(manifest: Mapping[str, Any]) -> Network:
    """Return the model that a manifest describes."""
    try:
        preprocessing, model = manifest["preprocessing"], dict(manifest["model"])
        if model["name"] in zoo.NETWORKS:  # the others know their size
            model["resize_to"] = preprocessing["resize_to"]
        return zoo.build(
            model,
            num_classes=manifest["num_classes"],
            input_shape=preprocessing["input_shape"],
            mean=preprocessing["mean"],
            std=preprocessing["std"],
        )
    except KeyError as error:
        raise InputError(f"the manifest lacks {error.args[0]!r}: export the model again") from error


def digest(tensors: Mapping[str, np.ndarray]) -> str:
    """Return the SHA-256 of names, dtypes, shapes and bytes of arrays, in the order of the names."""
    state = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        state.update(f"{name} {tensor.dtype.name} {list(tensor.shape)}\n".encode())
        state.update(np.ascontiguousarray(tensor).tobytes())
    return state.hexdigest()


def _entry(tensor: np.ndarray) -> dict[str, Any]:
    return {"shape": list(tensor.shape), "dtype": tensor.dtype.name}
