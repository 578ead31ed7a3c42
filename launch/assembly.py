"""From a config to the parts of a run: sources, network, method. The one place where all rooms meet."""

from __future__ import annotations

import json
import pathlib
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np

from jrobust import data, evaluation, methods
from jrobust.errors import InputError
from jrobust.models import zoo
from jrobust.models.classifier import Classifier
from jrobust.training import checkpoint, parallel
from jrobust.training.method import Batch, Method, Variables
from jrobust.weights import load as weights
from jrobust.weights import safetensors_file, stablehlo


class Parts(NamedTuple):
    """A config brought to life."""

    config: Any  # the config with what was measured filled in
    train: data.Source
    test: data.Source
    classifier: Classifier
    method: Method


def build(config: Any) -> Parts:
    """Return the sources, the network and the method that a config names.

    Where model.mean and model.std are (), they are measured on the training set and written into the config.

    Raises:
      InputError: whatever of it cannot be had.
    """
    section = config.data
    options = section.get("options", {})  # runs of earlier versions have none
    train = data.load(section.name, "train", section.dir, image_size=section.image_size, **options)
    test = data.load(section.name, "test", section.dir, image_size=section.image_size, **options)
    if not (config.model.mean and config.model.std):
        config.model.mean, config.model.std = data.channel_statistics(train)
    if section.balance_to:
        train = data.balanced(train, section.balance_to, config.seed)
    classifier = network(config, train)
    return Parts(config, train, test, classifier, methods.build(config.method, classifier))


def network(config: Any, source: data.Source) -> Classifier:
    """Return the network of a config for the classes and the image shape of a source."""
    classifier = zoo.build(
        config.model,
        num_classes=len(source.class_names),
        input_shape=data.output_shape(source.image_shape, data.Augmentation.of(config.data.augment)),
    )
    return classifier.with_axis(parallel.axis_name(config.train.parallelism))


def first_variables(parts: Parts) -> Callable[[jax.Array, Batch], Variables] | None:
    """Return what makes the first variables from model.weights; None to initialise at random.

    `model.new_head=True` keeps a fresh linear layer, for classes other than the file's.
    """
    path = parts.config.model.get("weights", "")
    if not path:
        return None
    file = pathlib.Path(path).expanduser()
    if not file.is_file():
        raise InputError(
            f"model.weights is {path!r}, which is no file: expected a .safetensors or .npz, or '' for none"
        )

    def initialize(key: jax.Array, batch: Batch) -> Variables:
        fresh = parts.method.init(key, batch)
        new_head = parts.config.model.get("new_head", False)
        return Variables(*weights.load(file, parts.classifier, fresh.params, fresh.state, replace_head=new_head))

    return initialize


def subject(
    parts: Parts, variables: Variables, name: str, step: int | None = None, dtype: str = "float32"
) -> evaluation.Subject:
    """Return the model as the evaluation suites take it: the same variables, computed in `dtype`.

    Evaluation is in float32 unless asked otherwise, whatever the network was trained in.
    """
    config = parts.config.copy_and_resolve_references().unlock()
    config.model.dtype = dtype
    classifier = network(config, parts.train)
    method = methods.build(config.method, classifier)
    return evaluation.Subject(
        name,
        parts.train.class_names,
        method.logits,
        variables,
        dtype=dtype,
        step=step,
        feature_map=classifier.logits_and_map if classifier.has_map else None,
    )


def export(parts: Parts, variables: Variables, step: int, output: pathlib.Path, **measured: float) -> dict[str, Any]:
    """Write the weights with what one must know to use them; return their manifest. `measured` goes into it."""
    return safetensors_file.write(
        output,
        parts.classifier.with_axis(None),
        variables.params,
        variables.state,
        model=parts.config.model.to_dict(),
        **_origin(parts, step, **measured),
    )


def export_program(parts: Parts, variables: Variables, step: int, output: pathlib.Path) -> dict[str, Any]:
    """Write the method's logits, as they are evaluated, as one program with the weights inside; return what it says."""
    model = subject(parts, variables, output.stem, step)
    weights_inside = jax.tree.map(np.asarray, variables)
    return stablehlo.write(
        output,
        lambda images: model.logits(weights_inside, images),
        parts.classifier.with_axis(None),
        **_origin(parts, step),
    )


def _origin(parts: Parts, step: int, **measured: float) -> dict[str, Any]:
    """Return where a model comes from, as the exported files say it."""
    method = parts.config.method
    return {
        "class_names": parts.train.class_names,
        "data_set": parts.config.data.name,
        "threat_model": f"Linf {method.eps}" if "eps" in method else "",
        "extra": {"method": method.to_dict(), "step": step, "seed": parts.config.seed} | measured,
    }


def read_config(workdir: str | pathlib.Path) -> Any:
    """Return the config of a run, locked, from WORKDIR/config.json.

    Raises:
      InputError: there is none.
    """
    path = pathlib.Path(workdir) / "config.json"
    try:
        config = ml_collections.ConfigDict(_tuples(json.loads(path.read_text(encoding="utf-8"))))
    except OSError as error:
        raise InputError(f"{path} cannot be read: expected the folder of a run of launch/run.py") from error
    except ValueError as error:
        raise InputError(f"{path} is not JSON: expected the config that launch/run.py wrote") from error
    return config.lock()


def reopen(workdir: str | pathlib.Path, data_dir: str | None = None) -> tuple[Parts, Variables]:
    """Return the parts of a run from its config.json, and the shapes of its variables.

    `data_dir` is where the data are now, if not where they were.
    """
    config = read_config(workdir)
    if data_dir is not None:
        config.data.dir = data_dir
    config.train.parallelism = "jit"
    parts = build(config)
    return parts, jax.eval_shape(parts.method.init, jax.random.key(0), {})


def restore(
    workdir: str | pathlib.Path, step: int | str = "latest", data_dir: str | None = None
) -> tuple[Parts, Variables, int]:
    """Return the parts of a trained run, its variables and their step, as checkpointed.

    Args:
      workdir: the run's folder.
      step: "latest", "best" or a saved step.
      data_dir: as for `reopen`.
    """
    parts, shapes = reopen(workdir, data_dir)
    variables, found = checkpoint.restore_variables(workdir, step, shapes)
    return parts, variables, found


def run_name(config_argument: str, config: Any) -> str:
    """Return <config>-<variant>-<seed> for a config file and the words behind the colon.

    >>> class Config: seed = 3; method = ml_collections.ConfigDict({"name": "art"})
    >>> run_name("configs/art_digits.py:variant=pgd,runlocal", Config)
    'art_digits-pgd-runlocal-3'
    >>> run_name("configs/art_digits.py", Config)
    'art_digits-art-3'
    >>> run_name("configs/fsr_digits.py:method=at,fsr", Config)
    'fsr_digits-at-fsr-3'
    """
    path, _, words = config_argument.partition(":")
    values = [word.rpartition("=")[2] for word in words.split(",") if word]
    if not any(word.startswith(("variant=", "method=")) for word in words.split(",")):
        values.insert(0, config.method.name)
    return re.sub(r"[^\w.-]", "_", "-".join([pathlib.PurePath(path).stem, *values, str(config.seed)]))


def _tuples(value: Any) -> Any:
    """Return JSON with its lists as the tuples that a config has."""
    if isinstance(value, dict):
        return {key: _tuples(entry) for key, entry in value.items()}
    return tuple(_tuples(entry) for entry in value) if isinstance(value, list) else value
