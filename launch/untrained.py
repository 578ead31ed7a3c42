"""A model as it is before any training, for evaluation: the weights of a file, published or of a first stage."""

from __future__ import annotations

import pathlib
from typing import Any

import assembly
import beginning
import jax
import pretraining

from jrobust.errors import InputError
from jrobust.training import checkpoint, run_folder
from jrobust.training.method import Variables
from jrobust.weights import arrays
from jrobust.weights import load as weights


def build(config: Any, workdir: pathlib.Path, network_file: str = "") -> tuple[assembly.Parts, Variables]:
    """Return the parts of a config, and what its method would deploy before the first step of training.

    Args:
      config: whose model.weights are a file, or with a section `pretrain` whose first stage is through.
      workdir: of the records. The first stage is looked for beside it.
      network_file: takes the place of the network, see `of_file`; "" for none.

    Raises:
      InputError: the folder is that of a trained run or of another config; or there are no weights.
    """
    if checkpoint.saved_steps(workdir):
        raise InputError(f"{workdir} is the folder of a trained run: leave --config out, or choose another --workdir")
    file = pretraining.weights(config, workdir)
    if file and not pathlib.Path(file).exists():
        raise InputError(
            f"{file} is not there: train it first, with launch/run.py and this --config in a folder beside {workdir}"
        )
    parts = assembly.build(config, file)
    run_folder.check_config(workdir, config.to_dict())  # with what was measured
    return parts, of_file(parts, network_file) if network_file else original(parts)


def original(parts: assembly.Parts) -> Variables:
    """Return what the method of a config would deploy before the first step of training.

    Raises:
      InputError: it begins at random, or its weights are not there.
    """
    initialize = beginning.first_variables(parts)
    if initialize is None:
        raise InputError(
            "model.weights is not set: a model that is not trained is evaluated with the weights of a file"
        )
    return parts.method.deployed(initialize(_key(parts.config), {}))


def of_file(parts: assembly.Parts, path: str) -> Variables:
    """Return the network with the weights of a file; a CLIP has its image tower from there, and texts as it has them.

    Raises:
      InputError: there is no such file, or it is of another model.
    """
    if not pathlib.Path(path).is_file():
        raise InputError(f"{path} is no file: expected --weights=FILE, a .safetensors, .npz or .pth")
    if parts.texts is not None and beginning.first_variables(parts):
        deployed = original(parts)
    else:
        deployed = jax.eval_shape(lambda key: parts.method.deployed(parts.method.init(key, {})), _key(parts.config))
    return Variables(*weights.load(path, parts.classifier, deployed.params, deployed.state))


def note(path: str) -> str:
    """Return what records of a file's model are to warn of: that a choice behind it has seen the test labels."""
    metadata = arrays.metadata(path)
    manifest = arrays.read_json(metadata["jrobust"], f"the manifest of {path}") if "jrobust" in metadata else {}
    chosen = manifest.get("extra", {}).get("chosen", "")
    return chosen if "an oracle" in chosen else ""


def _key(config: Any) -> jax.Array:
    """Return the key of the first variables, where a part of them is random: as a run begins."""
    return jax.random.split(jax.random.key(config.seed))[0]


def record(config: Any, workdir: pathlib.Path) -> None:
    """Make the folder that of this config."""
    with run_folder.opened(workdir, config.to_dict()):
        run_folder.write_json(workdir / "config.json", config.to_dict())
        run_folder.record_environment(workdir, config.seed, step=0)
