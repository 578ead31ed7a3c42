"""The models that are averaged: checkpoints of runs and files, each seen to be of one model before any is read."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import assembly
import jax
import numpy as np
import sources
import untrained

from jrobust.errors import InputError
from jrobust.models.network import Network
from jrobust.replicated import Replicated
from jrobust.training import checkpoint, run_folder
from jrobust.training.method import Variables
from jrobust.weights import arrays, safetensors_file
from jrobust.weights.trees import named

# Of config.model, what does not say which function of its parameters a network is.
WITHOUT_EFFECT = tuple(f"model.{name}" for name in ("weights", "new_head", "vocabulary", "template", "dtype"))
# Features of texts are computed by each run, perhaps on another device; everything else is copied.
ROUNDED = {"text": 1e-3}


@dataclasses.dataclass(frozen=True)
class Ingredient:
    """A model that is read when it is needed.

    Attributes:
      name: how tables and manifests call it.
      load: reads it, and says where it is from.
    """

    name: str
    load: Callable[[], tuple[Variables, dict[str, Any]]]


def of_run(workdir: str, step: int | str, data_dir: str | None, parts: assembly.Parts) -> Ingredient:
    """Return a checkpoint of a run.

    Raises:
      InputError: there is no such run, or its model is not that of `parts`.
    """
    own, shapes = assembly.reopen(workdir, data_dir)
    _check_classes(workdir, own.train.class_names, parts)
    _check_network(workdir, _network(own), own.config.model.to_dict(), parts)
    method, chosen = own.method, assembly.choice(own.config, step)
    known: dict[str, Any] = {"run": str(pathlib.Path(workdir).resolve()), "seed": own.config.seed}
    if (drawn := sources.held_out_draw(own.config)) is not None:
        known["held_out"] = dict(zip(("images", "seed"), drawn, strict=True))

    def load() -> tuple[Variables, dict[str, Any]]:
        variables, found = checkpoint.restore_variables(workdir, step, shapes)
        origin = known | {"step": found} | ({"chosen": chosen} if chosen else {})
        return method.deployed(variables), origin

    return Ingredient(workdir, load)


def of_file(path: str, parts: assembly.Parts) -> Ingredient:
    """Return a file of weights: the library's own, or one that `jrobust.weights.load` knows for this model.

    Raises:
      InputError: there is no such file, or it is of another model; of others' files only `load` can say that.
    """
    metadata = arrays.metadata(path)
    if "jrobust" in metadata:
        manifest = arrays.read_json(metadata["jrobust"], f"the manifest of {path}")
        if manifest.get("class_names"):
            _check_classes(path, manifest["class_names"], parts)
        section = dict(manifest.get("model", {})) | {"dtype": "float32"}
        network = safetensors_file.classifier(manifest | {"model": section})
        _check_network(path, network, section, parts)
    return Ingredient(path, lambda: (untrained.of_file(parts, path), arrays.source(path)))


def check_state(name: str, found: Any, wanted: Any) -> None:
    """Raise InputError where what is not trained, which is not averaged, differs between models."""
    ours, theirs = named(wanted), named(found)
    for path in sorted({*ours, *theirs}):
        if path in ours and path in theirs and _same(path, ours[path], theirs[path]):
            continue
        if isinstance(wanted, dict) and isinstance(wanted.get(path.partition("/")[0]), Replicated):
            raise InputError(
                f"{name} has another {path} than the first model, and it is not trained: average models that began with"
                " the same weights and texts"
            )
        raise InputError(
            f"{name} has other batch statistics ({path}) than the first model: the average of two networks' statistics"
            " is not what the averaged network has; average networks without batch norm, or with frozen statistics"
        )


def digest(params: Any) -> str:
    """Return the SHA-256 of parameters."""
    return safetensors_file.digest({name: np.asarray(leaf) for name, leaf in named(params).items()})


def _same(path: str, ours: jax.Array, theirs: jax.Array) -> bool:
    if ours.shape != theirs.shape:
        return False
    return bool(np.allclose(np.asarray(ours), np.asarray(theirs), rtol=0, atol=ROUNDED.get(path, 0)))


def _check_classes(name: str, found: Sequence[str], parts: assembly.Parts) -> None:
    wanted = list(parts.train.class_names)
    if list(found) == wanted:
        return
    known = [f"{len(names)} classes ({arrays.some(list(names))})" for names in (found, wanted)]
    raise InputError(f"{name} has {known[0]}, not the {known[1]} of the others in their order: average equal models")


def _check_network(name: str, found: Network, section: dict[str, Any], parts: assembly.Parts) -> None:
    """Raise InputError where a network, made from a config section, is not that of `parts`, and say in what."""
    wanted = _network(parts)
    for what in ("input_shape", "mean", "std", "resize_to"):
        if getattr(found, what) != getattr(wanted, what):
            raise InputError(
                f"{name} has the {what} {getattr(found, what)}, not {getattr(wanted, what)}: average models of equal"
                " preprocessing"
            )
    if found != wanted:
        theirs = {"model": json.loads(json.dumps(section))}
        said = run_folder.differences(theirs, {"model": parts.config.model.to_dict()}, WITHOUT_EFFECT)
        raise InputError(f"{name} is of another model ({'; '.join(said[:3]) or 'other layers'}): average equal models")


def _network(parts: assembly.Parts) -> Network:
    """Return the network of parts, whatever it computes in."""
    config = parts.config.copy_and_resolve_references().unlock()
    config.model.dtype = "float32"
    return assembly.network(config, parts.train)
